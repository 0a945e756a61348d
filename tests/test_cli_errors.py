"""Bad input on the command line: one clear line for every kind of it, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Output
from PIL import Image
from test_cli import SHAPE, compress_arguments

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")


def not_a_model(folder: Path) -> list[str]:
    (folder / "x.pqmodel").write_bytes(b"PK" + bytes(500))
    return ["inspect", "x.pqmodel"]


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [*map(str, compress_arguments(folder / "empty"))]


def corrupt_picture(folder: Path) -> list[str]:
    (folder / "bad").mkdir()
    (folder / "bad" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    return [*map(str, compress_arguments(folder / "bad"))]


def pickled_network(folder: Path) -> list[str]:
    import tiny_networks

    torch.save(tiny_networks.residual(), folder / "whole.pth")
    return ["compress", "tiny_networks:residual", "--out", "x.pqmodel", "--weights", "whole.pth"]


def weights_of_another(folder: Path) -> list[str]:
    import tiny_networks

    state = tiny_networks.residual(num_classes=5).state_dict()
    del state["bn.weight"]
    state["extra"] = torch.zeros(1)
    torch.save(state, folder / "w.pth")
    return ["compress", "tiny_networks:residual", "--out", "x.pqmodel", "--weights", "w.pth"]


def text_for_weights(folder: Path) -> list[str]:
    (folder / "w.pth").write_text("Repository not found")
    return ["compress", "tiny_networks:residual", "--out", "x.pqmodel", "--weights", "w.pth"]


def nan_weights(folder: Path) -> list[str]:
    import tiny_networks

    state = tiny_networks.residual().state_dict()
    state["wide.weight"][0] = float("nan")
    torch.save(state, folder / "w.pth")
    return ["compress", "tiny_networks:residual", "--out", "x.pqmodel", "--input-shape", SHAPE, "--weights", "w.pth"]


def output_is_input(folder: Path) -> list[str]:
    import tiny_networks

    torch.save(tiny_networks.residual().state_dict(), folder / "w.pth")
    return ["compress", "tiny_networks:residual", "--out", "./w.pth", "--weights", "w.pth"]


# Bad input: what is given, and what the one line of the answer must say.
TINY = ["compress", "tiny_networks:residual", "--out", "x.pqmodel", "--input-shape", SHAPE]

BAD: dict[str, tuple[list[str] | Callable[[Path], list[str]], str]] = {
    "missing file": (["inspect", "gone.pqmodel"], "gone.pqmodel: no such file"),
    "not a model": (not_a_model, "not a .pqmodel file"),
    "folder for a file": (["run", ".", "x.png"], "is not a file"),
    "unknown command": (["comprehend"], "comprehend"),
    "unknown option": (["inspect", "x.pqmodel", "--verbose"], "--verbose"),
    "no out": (["compress", "tiny_networks:residual"], "--out"),
    "bad input shape": ([*TINY, "--input-shape", "3,x,1"], "three whole numbers"),
    "bad mean": ([*TINY, "--mean", "0.5"], "three numbers"),
    "bad resize": ([*TINY, "--resize", "small"], "number of pixels"),
    "bad rule": ([*TINY, "--rule", "fc=coarse"], "fc=coarse"),
    "rule that matches nothing": ([*TINY, "--rule", "conv99=dense"], "conv99"),
    "unknown preset": ([*TINY, "--preset", "tiny"], "small-blocks, large-blocks"),
    "unknown network": (["compress", "resnet19", "--out", "x.pqmodel"], "resnet19"),
    "no such module": (["compress", "gone:net", "--out", "x.pqmodel"], "importing 'gone' failed"),
    "no such callable": (["compress", "tiny_networks:gone", "--out", "x.pqmodel"], "has no callable 'gone'"),
    "not a network": (["compress", "tiny_networks:not_a_network", "--out", "x.pqmodel"], "expected a torch.nn.Module"),
    "callable refuses": (["compress", "tiny_networks:not_a_network", "--out", "x.pqmodel", "--num-classes", "3"],
                         "building the network failed"),
    "missing weights": ([*TINY, "--weights", "gone.pth"], "gone.pth"),
    "pickled network": (pickled_network, "state_dict()"),
    "text for weights": (text_for_weights, "w.pth: not a file of PyTorch weights, or damaged"),
    "weights of another network": (weights_of_another, "missing bn.weight; unexpected extra; wrong shape of fc.bias"),
    "NaN weights": (nan_weights, "wide"),
    "output is input": (output_is_input, "would be overwritten"),
    "output in no folder": (["compress", "tiny_networks:residual", "--out", "gone/x.pqmodel"], "there is no folder"),
    "missing calibration": ([*TINY, "--calibration", "gone"], "gone"),
    "no picture": (empty_folder, "no picture found"),
    "corrupt picture": (corrupt_picture, "a.png"),
    "missing classes": ([*TINY, "--classes", "gone.txt"], "gone.txt"),
    "missing checkpoint": (["import", "gone.pth", "--arch", "resnet18", "--out", "x.pqmodel"], "gone.pth"),
    "unknown architecture": (["import", "gone.pth", "--arch", "vgg16", "--out", "x.pqmodel"], "vgg16"),
    "gray pictures": (["import", "gone.pth", "--arch", "resnet18", "--out", "x.pqmodel", "--input-shape", "1,64,64"],
                      "3 channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, cli: Callable[..., Output], tmp_path: Path) -> None:
    arguments, message = BAD[case]
    if callable(arguments):
        arguments = arguments(tmp_path)
    if case == "unknown network":
        pytest.importorskip("torchvision")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, err = cli(*arguments)
    assert code == 2, err
    assert out == ""
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{model}", "gone.png"], "gone.png"),
        (["run", "{model}", "{model}"], "not a picture"),
        (["eval", "{model}", "gone"], "gone"),
        (["profile", "{model}", "--input-shape", "4,32,32"], "expected shape"),
        (["bench", "{model}", "--against", "tensorrt"], "tensorrt"),
        (["bench", "{model}", "--input-shape", "1,8,8"], "expected shape"),
        (["calibrate", "{model}", "gone", "--out", "{model}"], "gone: no such folder or zip file"),
        (["calibrate", "{model}", "{model}", "--out", "{model}"], "is an input of this work"),
        (["calibrate", "{model}", "pictures"], "--out"),
        (["calibrate", "{model}", "pictures", "--out", "gone/x.pqmodel"], "there is no folder"),
        (["export", "{model}", "--out", "x.onx"], ".onnx"),
        (["export", "{model}", "--out", "{model}"], "overwritten"),
        (["inspect", "{model}", "--json", "--threads", "2"], "--threads"),
        (["run", "{model}", "x.png", "--precision", "sloppy"], "sloppy"),
        (["profile", "{model}", "--memory-budget", "much"], "expected a number and a unit"),
    ],
)
def test_bad_input_to_a_good_file(
    arguments: list[str], message: str, cli: Callable[..., Output], tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pqmodel"
    copy.write_bytes(tiny_model.read_bytes())
    if arguments[0] == "export" and arguments[-1] == "{model}":
        copy = copy.rename(tmp_path / "copy.onnx")
    code, out, err = cli(*[argument.format(model=copy) for argument in arguments])
    assert code == 2, err
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert message in err
    assert copy.read_bytes() == tiny_model.read_bytes()


def test_damaged_file(cli: Callable[..., Output], tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_model.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.pqmodel").write_bytes(data)
    code, _, err = cli("run", "damaged.pqmodel", pictures / "ant" / "0.png")
    assert code == 2
    assert "error: damaged.pqmodel:" in err
    assert "damaged" in err.partition(":")[2]


def test_unknown_class_folder(cli: Callable[..., Output], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "yak").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "data" / "yak" / "0.png")
    code, _, err = cli("eval", tiny_model, "data")
    assert code == 2
    assert "'yak'" in err
