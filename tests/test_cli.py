"""The command line: every command on small data, its JSON keys, and one clear line for every kind of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SIDE
from PIL import Image

import pyquant
from pyquant.cli import COMMANDS, commands, main

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")

LAYER_KEYS = {
    "name", "op", "status", "codec", "reason", "block", "centroids", "codebooks", "levels", "kept", "setting", "rate",
    "bits_per_weight", "bytes", "relative_output_error",
}  # fmt: skip
REPORT_KEYS = {"file", "bytes", "dense_bytes", "ratio", "bit_operations", "layers", "self_check"}
SHAPE = f"3,{SIDE},{SIDE}"

Output = tuple[int, str, str]  # exit code, standard output, standard error


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Output]:
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Output:
        capfd.readouterr()
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


def compress_arguments(pictures: Path, out: str = "x.pqmodel") -> list[str | Path]:
    return ["compress", "tiny_networks:residual", "--out", out, "--input-shape", SHAPE, "--calibration", pictures,
            "--threads", "1"]  # fmt: skip


def test_compress(cli_json: Callable[..., Any], pictures: Path, classes_txt: Path) -> None:
    report = cli_json(*compress_arguments(pictures), "--classes", classes_txt, "--samples", "8")
    assert set(report) == REPORT_KEYS
    assert all(set(layer) == LAYER_KEYS for layer in report["layers"])
    assert report["bytes"] == Path(report["file"]).stat().st_size
    assert report["self_check"]["max_relative_error"] < 1e-3
    by_name = {layer["name"]: layer for layer in report["layers"]}
    assert by_name["conv"]["status"] == "dense"  # the first convolution
    assert by_name["conv"]["reason"]
    assert by_name["block.conv1"]["status"] == "compressed"
    assert by_name["block.conv1"]["block"] == [1, 3, 3]
    assert 0 <= by_name["block.conv1"]["relative_output_error"] < 1


def test_json_is_alone_on_standard_output(cli_json: Callable[..., Any]) -> None:
    arguments = ["compress", "tiny_networks:talkative", "--out", "x.pqmodel", "--input-shape", SHAPE]
    assert set(cli_json(*arguments)) == REPORT_KEYS


def test_compress_says_how_many_pictures_it_uses(cli: Callable[..., Output], pictures: Path) -> None:
    code, out, err = cli(*compress_arguments(pictures), "--samples", "8")
    assert code == 0, err
    assert "8 of 12 pictures" in err
    assert "times smaller" in out
    assert "block.conv1" in out


def test_compress_without_calibration_says_so(cli: Callable[..., Output]) -> None:
    code, _, err = cli("compress", "tiny_networks:residual", "--out", "x.pqmodel", "--input-shape", SHAPE)
    assert code == 0, err
    assert "calibration" in err


def test_rules_and_preset(cli_json: Callable[..., Any], pictures: Path) -> None:
    arguments = [*compress_arguments(pictures), "--preset", "large-blocks", "--rule", "*=dense"]
    report = cli_json(*arguments, "--rule", "block.conv?=block:2,3,3;centroids:8", "--rule", "block.conv2=dense")
    stored = {layer["name"]: layer["block"] and (layer["block"], layer["centroids"]) for layer in report["layers"]}
    assert stored == {"conv": None, "block.conv1": ([2, 3, 3], 8), "block.conv2": None, "wide": None, "fc": None}


def test_weights_as_safetensors_and_pth(cli: Callable[..., Output], pictures: Path, tmp_path: Path) -> None:
    """Weights saved as fp16 in either format give the same file, and another one than the callable's own weights."""
    import tiny_networks
    from safetensors.torch import save_file

    state = {key: value * 2 for key, value in tiny_networks.residual().state_dict().items()}
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, tmp_path / "w.safetensors")
    torch.save({"model": half}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        code, _, err = cli(*compress_arguments(pictures, f"{name}.pqmodel"), "--weights", name)
        assert code == 0, err
    code, _, err = cli(*compress_arguments(pictures, "own.pqmodel"))
    assert "weights: as tiny_networks:residual returns them" in err
    first, second, own = ((tmp_path / f"{n}.pqmodel").read_bytes() for n in ("w.safetensors", "w.pth", "own"))
    assert first == second != own


def test_num_classes_reaches_the_callable(cli_json: Callable[..., Any], pictures: Path) -> None:
    report = cli_json(*compress_arguments(pictures), "--num-classes", "7", "--rule", "*=dense")
    parameters = 3 * 16 * 9 + 2 * 16 * 16 * 9 + 3 * 2 * 16 + 16 * 64 + 64 + 64 * 7 + 7
    assert report["dense_bytes"] == 4 * parameters


def test_torchvision_name_warns_of_random_weights(cli: Callable[..., Output], tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    code, _, err = cli("compress", "resnet18", "--num-classes", "2", "--input-shape", "3,32,32", "--out", "r.pqmodel",
                       "--rule", "*=dense")  # fmt: skip
    assert code == 0, err
    assert "warning: resnet18 is built with random weights" in err
    assert (tmp_path / "r.pqmodel").exists()


def test_inspect(cli_json: Callable[..., Any], cli: Callable[..., Output], tiny_model: Path) -> None:
    found = cli_json("inspect", tiny_model)
    assert set(found) == {
        "format_version", "features", "bytes", "ratio", "bit_operations", "input", "classes", "activation_ranges",
        "layers",
    }  # fmt: skip
    assert found["format_version"].split(".")[0] == "1"
    assert "product" in found["features"]
    assert len(found["classes"]) == 3
    assert found["activation_ranges"] is True
    _, out, _ = cli("inspect", tiny_model)
    assert "block.conv1" in out
    assert "activation ranges: yes" in out
    assert max(map(len, out.splitlines())) <= 80


def test_run(cli_json: Callable[..., Any], cli: Callable[..., Output], tiny_model: Path, pictures: Path) -> None:
    paths = [pictures / "ant" / "0.png", pictures / "bee" / "1.png"]
    results = cli_json("run", tiny_model, *paths, "--topk", "2")
    assert [result["picture"] for result in results] == [str(path) for path in paths]
    expected = pyquant.load(tiny_model).predict(paths, topk=2)
    for result, best in zip(results, expected, strict=True):
        assert [p["class"] for p in result["predictions"]] == [p["class"] for p in best]
        assert result["predictions"][0]["class"] in ("a ant", "a bee", "a cat")
        np.testing.assert_allclose([p["probability"] for p in result["predictions"]], [p["probability"] for p in best])
    _, out, _ = cli("run", tiny_model, *paths)
    assert "%" in out


def test_eval_counts_right_answers(cli_json: Callable[..., Any], tiny_model: Path, pictures: Path) -> None:
    result = cli_json("eval", tiny_model, pictures)
    assert set(result) == {"top1", "top5", "n", "pictures_per_second"}
    model = pyquant.load(tiny_model)
    right = sum(
        model.predict([path], topk=1)[0][0]["class"] == f"a {path.parent.name}" for path in pictures.rglob("*.png")
    )
    assert result["n"] == 12
    assert result["top1"] == pytest.approx(100 * right / 12)
    assert result["top5"] == 100  # there are three classes


def test_eval_of_some_pictures(cli_json: Callable[..., Any], tiny_model: Path, pictures: Path) -> None:
    assert cli_json("eval", tiny_model, pictures, "--limit", "5")["n"] == 5


def test_eval_takes_a_subset_of_the_classes_and_other_names(
    cli_json: Callable[..., Any], cli: Callable[..., Output], tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(pictures / "cat")
    assert cli_json("eval", tiny_model, tmp_path / "some")["n"] == 4
    (tmp_path / "other.txt").write_text("dog a dog\nemu an emu\nfox a fox\n")
    code, _, err = cli("eval", tiny_model, pictures, "--classes", "other.txt")
    assert code == 2
    assert "'ant'" in err


def test_bench(cli_json: Callable[..., Any], cli: Callable[..., Output], tiny_model: Path) -> None:
    result = cli_json("bench", tiny_model, "--against", "torch", "--threads", "1", "--tune", "0")
    assert set(result) == {"machine", "threads", "batch", "isa", "rows", "ratios"}
    assert [row["engine"] for row in result["rows"]] == ["pyquant", "torch"]
    keys = {"engine", "precision", "file_bytes", "median_ms", "p10_ms", "p90_ms", "load_ms", "peak_rss_bytes"}
    assert all(set(row) == keys for row in result["rows"])
    assert set(result["ratios"]) == {"torch"}
    code, out, err = cli("bench", tiny_model, "--threads", "1", "--tune", "0.01")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80


def test_export_is_what_compress_takes(cli: Callable[..., Output], tiny_model: Path, pictures: Path) -> None:
    code, out, err = cli("export", tiny_model, "--out", "dense.safetensors")
    assert code == 0, err
    assert out == ""
    code, _, err = cli(*compress_arguments(pictures), "--weights", "dense.safetensors")
    assert code == 0, err


def test_export_to_onnx(cli: Callable[..., Output], tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code, _, err = cli("export", tiny_model, "--out", "dense.onnx")
    assert code == 0, err
    assert (tmp_path / "dense.onnx").stat().st_size > 4 * 5000


# Bad input: what is given, and what the one line of the answer must say.


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_when_printing(tiny_model: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyquant", "inspect", str(tiny_model)],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are always text")
def test_file_names_need_not_be_text(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    Path(os.fsdecode(odd)).write_bytes((pictures / "ant" / "0.png").read_bytes())
    command = [sys.executable, "-m", "pyquant", "run", str(tiny_model)]
    done = subprocess.run([*command, odd, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)[0]["picture"]) == odd
    done = subprocess.run([*command, b"\xfe.png"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_closed_pipe_is_quiet(tiny_model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyquant", "inspect", str(tiny_model)],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_interrupt_is_clean_and_leaves_nothing(
    pictures: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef network():\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pyquant", "compress", "slow:network", "--out", "x.pqmodel"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=child_environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what a shell puts behind it
    )  # fmt: skip
    assert process.stderr is not None
    while process.stderr.readline() != "begun\n":
        pass
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert not (tmp_path / "x.pqmodel").exists()


def test_version_and_help() -> None:
    runner = CliRunner()
    assert pyquant.__version__ in runner.invoke(commands, ["--version"]).output
    overview = runner.invoke(commands, []).output
    for name in COMMANDS:
        assert name in overview
        text = runner.invoke(commands, [name, "--help"])
        assert text.exit_code == 0
        assert all(o.help for o in commands.get_command(None, name).params if isinstance(o, click.Option))
