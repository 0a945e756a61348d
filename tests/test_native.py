"""The core without Python: its kernels in a C++ program, run here and, emulated, on AArch64."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY

CMAKE = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
PROGRAM = tuple(sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("tests/native/*.cpp")))
KERNELS = ("csrc/base/", "csrc/kernels/", *PROGRAM)  # what the program is made of
SECONDS = 600  # far more than anything here needs


def find_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed; skip the test where none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"needs {' or '.join(names)}, which is not installed")


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def sources_for(machine: str) -> list[str]:
    """Return the files that CMakeLists.txt builds for a processor, without the bindings."""
    names = re.search(r"pybind11_add_module\(_core MODULE([^)]+)\)", CMAKE)[1].split()
    for machines, own in re.findall(
        r'PROCESSOR MATCHES "\^\((.+)\)\$"\)\s+target_sources\(_core PRIVATE\s+([^)]+)', CMAKE
    ):
        names += own.split() if machine in machines.split("|") else []
    return [name for name in names if not name.startswith("csrc/bindings/")]


def options_for(source: str) -> list[str]:
    """Return the options with which CMakeLists.txt compiles a file."""
    common = re.search(r"target_compile_options\(_core PRIVATE (.+)\)", CMAKE)[1].split()
    own = dict(re.findall(r'set_source_files_properties\((\S+) PROPERTIES\s+COMPILE_OPTIONS "(.+)"\)', CMAKE))
    return ["-std=c++20", "-Icsrc", *common, *filter(None, own.get(source, "").split(";"))]


@dataclass(frozen=True)
class Objects:
    """What a compiler made of some files."""

    compiler: str
    folder: Path
    files: dict[str, Path]

    def link(self, name: str, *options: str, only: tuple[str, ...] = ("",)) -> str:
        """Return the path of a program made of the files whose names begin with one of `only`."""
        program = str(self.folder / name)
        files = [str(path) for source, path in self.files.items() if source.startswith(only)]
        run([self.compiler, *options, *files, "-pthread", "-o", program])
        return program


def compile_all(compiler: str, sources: list[str], folder: Path) -> Objects:
    def compile_one(source: str) -> Path:
        target = folder / f"{source.replace('/', '-')}.o"
        run([compiler, *options_for(source), "-c", source, "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return Objects(compiler, folder, dict(zip(sources, pool.map(compile_one, sources), strict=True)))


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The whole core and the program, for AArch64."""
    compiler = find_program("aarch64-linux-gnu-g++")
    return compile_all(compiler, [*sources_for("aarch64"), *PROGRAM], tmp_path_factory.mktemp("aarch64"))


@pytest.mark.parametrize(
    ("machine", "source", "option"),
    [
        ("x86_64", "csrc/kernels/amx.cpp", "-mamx-int8"),
        ("x86_64", "csrc/kernels/avx2.cpp", "-mfma"),
        ("x86_64", "csrc/kernels/avxvnni.cpp", "-mavxvnni"),
        ("x86_64", "csrc/kernels/avx512.cpp", "-mavx512bw"),
        ("x86_64", "csrc/kernels/avx512vnni.cpp", "-mavx512vnni"),
        ("x86_64", "csrc/kernels/avx512vbmi.cpp", "-mavx512vbmi"),
        ("aarch64", "csrc/kernels/neon.cpp", "-fno-schedule-insns"),
    ],
)
def test_cmake_is_understood(machine: str, source: str, option: str) -> None:
    assert source in sources_for(machine)
    assert source not in sources_for("riscv64")
    assert option in options_for(source)
    assert option not in options_for("csrc/kernels/reference.cpp")


def test_kernels_meet_the_reference_here(tmp_path: Path) -> None:
    compiler = find_program(os.environ.get("CXX", "c++"), "g++", "clang++")
    sources = [source for source in sources_for(os.uname().machine) if source.startswith(KERNELS)]
    program = compile_all(compiler, [*sources, *PROGRAM], tmp_path).link("kernels_test")
    tested = run([program])
    assert "reference finish_tile: " in tested
    assert "reference finish_tile8: " in tested


def test_whole_core_is_built_for_aarch64(aarch64: Objects) -> None:
    aarch64.link("core")


@pytest.mark.parametrize("isa", ["reference", "neon"])
def test_kernels_meet_the_reference_on_aarch64(isa: str, aarch64: Objects) -> None:
    emulator = find_program("qemu-aarch64", "qemu-aarch64-static")
    tested = run([emulator, aarch64.link("kernels_test", "-static", only=KERNELS), isa])
    assert f"{isa} finish_tile: " in tested
    assert f"{isa} finish_tile8: " in tested
