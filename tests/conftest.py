"""What the tests share: seeded random numbers, pictures in class folders, a small network, the command line."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
SHIMS = TESTS / "shims"

sys.path.insert(0, str(SHIMS))
import torchvision_operators  # noqa: E402

torchvision_operators.install()

CLASSES = ("ant", "bee", "cat")
SIDE = 32  # pixels of the pictures' shorter sides, and of the tiny network's inputs

Output = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests tune must neither change nor depend on what this machine remembers."""
    os.environ["PYQUANT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve smooth coloured pictures, 40 x 32, in three class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for index in range(4):
            coarse = Image.fromarray(rng.integers(256, size=(5, 4, 3), dtype=np.uint8))
            coarse.resize((SIDE, 40), Image.Resampling.BILINEAR).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def classes_txt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three classes as --classes wants them."""
    path = tmp_path_factory.mktemp("classes") / "classes.txt"
    path.write_text("".join(f"{name} a {name}\n" for name in CLASSES))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, pictures: Path, classes_txt: Path) -> Path:
    """A .pqmodel of `tiny_networks.residual`, with preprocessing and class names."""
    pytest.importorskip("torch")
    import tiny_networks

    import pyquant
    from pyquant.pictures import read_classes
    from pyquant.preprocessing import Preprocessing

    path = tmp_path_factory.mktemp("tiny") / "tiny.pqmodel"
    pyquant.compress(
        tiny_networks.residual(),
        pictures,
        out=path,
        input_shape=(3, SIDE, SIDE),
        preprocessing=Preprocessing(resize=SIDE, crop=(SIDE, SIDE)),
        classes=read_classes(classes_txt),
        threads=1,
    )
    return path


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Output]:
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Output:
        capfd.readouterr()
        from pyquant.cli import main

        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def cli_json(cli: Callable[..., Output]) -> Callable[..., Any]:
    """Run a command with --json and return what it printed."""

    def run(*arguments: str | Path) -> Any:
        code, out, err = cli(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment of a Python process that a test starts: it finds the tiny networks, and torchvision."""
    paths = [str(SHIMS), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real checkpoints and pictures, for the few tests that need it."""
    folder = Path(os.environ.get("PYQUANT_DATA", ""))
    if not os.environ.get("PYQUANT_DATA") or not folder.is_dir():
        pytest.skip("no real data; name their folder with PYQUANT_DATA")
    return folder
