"""The shape of the code: one sentence per file and its row in the README, short files, dependencies that point down."""

import ast
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

PYTHON = sorted((REPOSITORY / "pyquant").rglob("*.py"))
HEADERS = sorted((REPOSITORY / "csrc").rglob("*.h"))
# A source file is described by the header of the same name; one without a header speaks for itself.
CXX = [*HEADERS, *sorted(p for p in (REPOSITORY / "csrc").rglob("*.cpp") if p.with_suffix(".h") not in HEADERS)]
NATIVE = sorted((REPOSITORY / "tests" / "native").iterdir())
TESTS = [*sorted([*(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]), *NATIVE]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAX_LINES = 450

MAY_INCLUDE = {  # layers of csrc, each with those that it may use besides itself
    "base": set(),
    "codec": {"base"},
    "kernels": {"base"},
    "learn": {"base", "kernels"},
    "runtime": {"base", "codec", "kernels"},
    "bindings": {"base", "codec", "kernels", "learn", "runtime"},
}

LEVELS = (  # of pyquant, lowest first: a module may import from levels below its own, and from its own
    {"errors", "extras", "console", "layers", "classes", "codecs", "machine", "storage", "_core", "masks", "drawing"},
    {"histogram", "graph", "shapes", "preprocessing", "detector"},
    {"pictures", "annotations", "container", "declared", "entropy", "reference", "reference_detection", "tuning"},
    {"file", "checkpoint"},
    {"report", "runtime", "export", "choose", "torch_network"},
    {
        "capture",
        "learn",
        "evaluate",
        "selfcheck",
        "models",
        "engines",
        "distortion",
        "sensitivity",
        "allocate",
        "candidates",
        "rates",
        "planning",
        "ranges",
        "average_precision",
    },
    {"accuracy", "drop", "module_state", "settings", "suitability", "targets", "yardstick"},
    {"identity"},
    {"job", "outcome"},
    {"report_page"},
    {"order"},
    {"compression", "interop", "bench"},
    {"demo"},
    {"cli", "__main__"},
)


def identify(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def sentence(path: Path) -> str:
    """Return what a file says of itself in its first line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    first = text.partition("\n")[0]
    return first.removeprefix("// ") if first.startswith("// ") else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY / "pyquant").with_suffix("").parts
    return parts[0] if parts[0] != "__init__" else ""


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{identify(path)}: imports are absolute here"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", PYTHON + CXX + TESTS, ids=identify)
def test_file_states_its_purpose_in_one_sentence(path: Path) -> None:
    assert sentence(path).endswith("."), f"{identify(path)}: begin with one full sentence on one line"


@pytest.mark.parametrize("path", PYTHON + CXX + TESTS, ids=identify)
def test_file_fits_in_the_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{identify(path)}: {lines} lines; is it about two things?"


def test_map_in_readme_is_true() -> None:
    rows = dict(re.findall(r"^\| `((?:pyquant|csrc)/[^`]+)` \| (.+) \|$", README, re.MULTILINE))
    files = {identify(path): sentence(path) for path in PYTHON + CXX}
    wrong = [f"| `{name}` | {text} |" for name, text in files.items() if rows.get(name) != text]
    assert not wrong, "rows missing from README.md, or out of date:\n" + "\n".join(wrong)
    assert set(rows) == set(files), f"README.md names files that do not exist: {sorted(set(rows) - set(files))}"


@pytest.mark.parametrize("path", [*HEADERS, *sorted((REPOSITORY / "csrc").rglob("*.cpp"))], ids=identify)
def test_includes_point_down(path: Path) -> None:
    layer = path.relative_to(REPOSITORY / "csrc").parts[0]
    text = path.read_text(encoding="utf-8")
    used = {include.partition("/")[0] for include in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE)}
    above = used - MAY_INCLUDE[layer] - {layer}
    assert not above, f"{identify(path)}: {layer} must not include {above}"
    if layer != "bindings":
        assert "Python.h" not in text
        assert "pybind11" not in text, f"{identify(path)}: only bindings/ knows Python"


@pytest.mark.parametrize("path", [p for p in PYTHON if module_name(p)], ids=identify)
def test_imports_point_down(path: Path) -> None:
    level = {name: index for index, names in enumerate(LEVELS) for name in names}
    own = module_name(path)
    assert own in level, f"pyquant.{own}: give it a level in {Path(__file__).name}"
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pyquant.")}
    above = sorted(name for name in used & set(level) if level[name] > level[own])
    assert not above, f"{identify(path)}: must not import {above}, which build on it"


def test_faiss_is_imported_in_one_module() -> None:
    users = [identify(path) for path in PYTHON if any(name.split(".")[0] == "faiss" for name in imports(path))]
    assert users == ["pyquant/learn/cluster.py"]


def test_nothing_is_built_for_the_processor_at_hand() -> None:
    flags = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "-march=native" not in flags
    assert "-ffast-math" not in flags
