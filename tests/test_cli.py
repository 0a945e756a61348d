"""The command line: every command on small data, and its JSON keys."""

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
from conftest import SIDE, Output

import pyquant
from pyquant.cli import COMMANDS, commands

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")

LAYER_KEYS = {
    "name", "op", "status", "codec", "reason", "block", "centroids", "codebooks", "levels", "kept", "setting", "rate",
    "bits_per_weight", "bytes", "relative_output_error",
}  # fmt: skip
REPORT_KEYS = {"file", "bytes", "dense_bytes", "ratio", "bit_operations", "layers", "self_check"}
SHAPE = f"3,{SIDE},{SIDE}"


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
