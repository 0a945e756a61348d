"""What imports what at run time: no PyTorch where none is needed, and a quick start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from conftest import REPOSITORY

OPTIONAL = ("torch", "faiss", "torchvision", "sklearn", "onnx", "onnxruntime", "openvino")
START_UP_S = 0.3

WITHOUT_OPTIONAL = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Missing())
from pyquant.cli import main
sys.exit(main(sys.argv[1:]))
"""


def minimal_python() -> Path:
    """Return the interpreter of an environment with nothing but run-time dependencies, which `make test` makes."""
    python = Path(os.environ.get("PYQUANT_MINIMAL_PYTHON", REPOSITORY / ".venv-minimal" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no environment without PyTorch at {python}; `make test` makes it")
    return python


@pytest.fixture(params=["blocked", "not installed"])
def without_torch(request: pytest.FixtureRequest) -> list[str]:
    """How to start the command line where there is no PyTorch: imports blocked, and a real environment."""
    if request.param == "blocked":
        return [sys.executable, "-c", WITHOUT_OPTIONAL]
    return [str(minimal_python()), "-I", "-m", "pyquant"]


def run(command: list[str], *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    # In a folder of its own, so that an installed pyquant is found, not the sources beside the tests.
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=folder, check=False
    )


def test_files_run_without_torch(without_torch: list[str], tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    picture = pictures / "bee" / "0.png"
    results = {}
    for command, arguments in {
        "inspect": (tiny_model, "--json"),
        "run": (tiny_model, picture, "--json"),
        "eval": (tiny_model, pictures, "--json"),
        "profile": (tiny_model, "--json"),
        "calibrate": (tiny_model, pictures, "--out", "calibrated.pqmodel", "--json"),
    }.items():
        done = run(without_torch, command, *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        results[command] = json.loads(done.stdout)
    assert results["inspect"]["layers"]
    assert len(results["run"][0]["predictions"]) == 3
    assert results["eval"]["n"] == 12
    assert results["profile"]["steps"]
    assert results["calibrate"]["pictures"] == 12


def test_export_needs_no_torch(without_torch: list[str], tiny_model: Path, tmp_path: Path) -> None:
    done = run(without_torch, "export", tiny_model, "--out", "dense.safetensors", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dense.safetensors").stat().st_size > tiny_model.stat().st_size


def test_python_interface_without_torch_names_what_to_install() -> None:
    blocked = WITHOUT_OPTIONAL.partition("from pyquant.cli")[0]
    script = f"{blocked}\nimport pyquant\ntry:\n    pyquant.compress\nexcept pyquant.PyquantError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'pyquant-codec[train]'" in done.stdout


def test_compressing_without_torch_names_what_to_install(without_torch: list[str], tmp_path: Path) -> None:
    done = run(without_torch, "compress", "resnet18", "--out", "x.pqmodel", folder=tmp_path)
    assert done.returncode == 2
    assert "pip install 'pyquant-codec[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_minimal_environment_has_no_torch() -> None:
    done = subprocess.run([minimal_python(), "-I", "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr


def test_import_loads_neither_torch_nor_faiss() -> None:
    code = f"import pyquant, sys; print([m for m in {OPTIONAL!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_is_quick() -> None:
    # Processor time, of one thread: the machine may be busy with something else, and NumPy's own threads wait actively.
    code = "from time import process_time as t; a = t(); import pyquant; print(t() - a)"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
        for _ in range(5)
    ]
    assert min(seconds) < START_UP_S, f"median {median(seconds):.2f} s"
