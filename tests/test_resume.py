"""Jobs that are stopped, or killed, and go on: the file is bit for bit that of a job without interruption."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")

import tiny_networks  # noqa: E402

from pyquant import checkpoint, console, planning  # noqa: E402
from pyquant.checkpoint import Checkpoint  # noqa: E402
from pyquant.cli import main  # noqa: E402
from pyquant.compression import compress, compress_sizes  # noqa: E402
from pyquant.container import parse_json, unpack  # noqa: E402
from pyquant.errors import FormatError, InputError  # noqa: E402

INPUTS = np.random.default_rng(0).standard_normal((32, 3, SIDE, SIDE), dtype=np.float32)
STEPS = 4  # of fine-tuning
PLAIN: dict[str, Any] = {}
SIZED = {"target_bytes": 12_000}
TUNED = {"finetune_steps": STEPS, "threads": 1}
KINDS = {"plain": PLAIN, "sized": SIZED, "tuned": TUNED}


class Stopped(Exception):
    """The job was stopped."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of jobs without interruption, and where no size is asked for without a checkpoint."""
    folder = tmp_path_factory.mktemp("expected")
    path = folder / "x.pqmodel"
    files = {}
    for kind, arguments in KINDS.items():
        checkpoint = folder / kind if kind == "sized" else None
        compress(tiny_networks.residual(), INPUTS, out=path, checkpoint=checkpoint, **arguments)
        files[kind] = path.read_bytes()
    return files


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after each step of fine-tuning."""
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_SAVES", 0.0)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(console, "warn", messages.append)
    return messages


def run(folder: Path, **arguments: Any) -> bytes:
    out = folder / "x.pqmodel"
    compress(tiny_networks.residual(), INPUTS, out=out, checkpoint=folder / "checkpoint", **arguments)
    return out.read_bytes()


def stop_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop jobs after so many records."""
    original, count = Checkpoint.save, 0

    def save(self: Checkpoint, name: str, values: Any, arrays: Any) -> None:
        nonlocal count
        original(self, name, values, arrays)
        count += 1
        if count == saves:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", save)


@pytest.mark.parametrize("kind", ["sized", "tuned"])
def test_stopped_after_every_record(
    kind: str, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job, stopped each time that it has saved anything."""
    stops = 0
    while True:
        with monkeypatch.context() as patch:
            stop_after(1, patch)
            with suppress(Stopped):
                assert run(tmp_path, **KINDS[kind]) == expected[kind]
                break
        assert not (tmp_path / "x.pqmodel").exists()
        stops += 1
    records = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").glob("*.safetensors")}
    assert stops == len(records) + (STEPS if kind == "tuned" else 0)  # training is one record, saved again and again
    # Parameters and optimizer too: whether the file shows them depends on what training has gained.
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole", **KINDS[kind])
    for name, data in records.items():
        assert (tmp_path / "whole" / "checkpoint" / name).read_bytes() == data, name


def test_several_sizes_are_parts_of_one_job(
    expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (SIZED["target_bytes"], 16_000)

    def make() -> None:
        compress_sizes(
            tiny_networks.residual(),
            INPUTS,
            out=tmp_path / "{bytes}.pqmodel",
            target_bytes=sizes,
            checkpoint=tmp_path / "checkpoint",
        )

    with monkeypatch.context() as patch:
        stop_after(10, patch)  # in the second size
        with pytest.raises(Stopped):
            make()
    first, second = (tmp_path / f"{size}.pqmodel" for size in sizes)
    assert not second.exists()
    assert first.read_bytes() == expected["sized"]
    monkeypatch.setattr(planning, "measure_curves", lambda *_, **__: pytest.fail("measured again"))
    make()
    assert first.read_bytes() == expected["sized"]
    monkeypatch.undo()
    whole: dict[str, Any] = {"out": tmp_path / "whole.pqmodel", "checkpoint": tmp_path / "whole"}
    compress(tiny_networks.residual(), INPUTS, target_bytes=sizes[1], **whole)
    assert second.read_bytes() == (tmp_path / "whole.pqmodel").read_bytes()


@pytest.mark.parametrize("method", ["gram", "abgd"])
@pytest.mark.parametrize("size", [None, SIZED["target_bytes"]])
def test_other_fine_tuning_takes_up_what_was_learnt(
    method: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none, with some and with more; `abgd` learns anew each time, for it trains each layer before the next."""
    arguments: dict[str, Any] = {"method": method, "target_bytes": size, "threads": 1}
    untuned, few, more = {}, {"finetune_steps": STEPS}, {"finetune_steps": STEPS + 1}
    files = [run(tmp_path, **arguments, **training) for training in (untuned, few)]
    from pyquant import job

    if method == "gram":
        monkeypatch.setattr(job, "learn", lambda *_, **__: pytest.fail("learnt again"))
    files.append(run(tmp_path, **arguments, **more))
    monkeypatch.undo()
    assert len(set(files)) == 3
    for number, (training, file) in enumerate(zip((untuned, few, more), files, strict=True)):
        (tmp_path / str(number)).mkdir()
        assert run(tmp_path / str(number), **arguments, **training) == file
        assert run(tmp_path, **arguments, **training) == file


def test_threads_may_change_where_there_is_no_fine_tuning(
    expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            run(tmp_path, threads=2)
    assert run(tmp_path, threads=1) == expected["plain"]


def test_a_job_that_is_done_only_writes_its_file(
    expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, **TUNED) == expected["tuned"]
    (tmp_path / "x.pqmodel").unlink()
    from pyquant import job

    for name in ("learn", "finetuned"):
        monkeypatch.setattr(job, name, lambda *_, **__: pytest.fail("done again"))
    assert run(tmp_path, **TUNED) == expected["tuned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed is 0 in the checkpoint, 1 asked for"),
        ({"target_bytes": 9000}, "target size is \\[\\] in the checkpoint, \\[9000\\] asked for"),
        ({"method": "abgd"}, "method is gram in the checkpoint, abgd asked for"),
    ],
)
def test_other_settings_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            run(tmp_path, **TUNED)
    with pytest.raises(InputError, match=message):
        run(tmp_path, **TUNED | arguments)
    assert not (tmp_path / "x.pqmodel").exists()


def test_another_network_and_other_inputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            run(tmp_path)
    module = tiny_networks.residual()
    module.wide.weight.data *= 2
    arguments: dict[str, Any] = {"out": tmp_path / "x.pqmodel", "checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(InputError, match=r"weights: wide.weight is \w{16} in the checkpoint, \w{16} asked for\. Give"):
        compress(module, INPUTS, **arguments)
    with pytest.raises(InputError, match=r"calibration is 32 inputs of .* in the checkpoint, 31 inputs of 3 x 32 x 32"):
        compress(tiny_networks.residual(), INPUTS[1:], **arguments)


@pytest.mark.parametrize("kind", ["plain", "tuned"])
def test_damaged_records_are_told_and_done_again(
    kind: str, expected: dict[str, bytes], tmp_path: Path, warnings: list[str]
) -> None:
    assert run(tmp_path, **KINDS[kind]) == expected[kind]
    damaged = [path for path in (tmp_path / "checkpoint").glob("*.safetensors") if path.name != "job.safetensors"]
    for number, path in enumerate(sorted(damaged)):
        data = bytearray(path.read_bytes())
        data[-1 - number] ^= 1
        path.write_bytes(data if number % 2 else data[: len(data) // 2])
    assert run(tmp_path, **KINDS[kind]) == expected[kind]
    told = {message.partition(": ")[0] for message in warnings if message.endswith("is done again")}
    assert told == {str(path) for path in damaged}


def test_a_full_disk_stops_the_job_and_loses_nothing(
    expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.fsync
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device.*make room, and give the same command"):
            run(tmp_path, **TUNED)
    assert not [name for name in os.listdir(tmp_path / "checkpoint") if name.endswith(".tmp")]
    assert run(tmp_path, **TUNED) == expected["tuned"]


def test_killed_on_the_command_line(
    pictures: Path, tmp_path: Path, child_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 the command once a layer is saved, and once some steps of fine-tuning are, then let it end."""
    for number, path in enumerate([*pictures.rglob("*.png")] * 2):
        shutil.copy(path, tmp_path / f"{number}.png")
    program = "import sys; from pyquant import checkpoint; from pyquant.cli import main; "
    program += "checkpoint.SECONDS_BETWEEN_SAVES = 0.0; sys.exit(main(sys.argv[1:]))"
    arguments = ["compress", "tiny_networks:residual", "--input-shape", f"3,{SIDE},{SIDE}", "--calibration", "."]
    arguments += ["--finetune-steps", "40", "--threads", "1"]
    command = [sys.executable, "-c", program, *arguments, "--out", "x.pqmodel", "--checkpoint", "kept"]
    kept = tmp_path / "kept"

    def steps() -> int:
        with suppress(OSError, FormatError, ValueError):
            (training,) = kept.glob("finetuning*training*.safetensors")
            metadata, _ = unpack(training.read_bytes())
            return int(parse_json(metadata["values"], "training")["done"])
        return 0

    for there in (lambda: (kept / "layer block.conv1.safetensors").exists(), lambda: steps() >= 3):
        with subprocess.Popen(command, cwd=tmp_path, env=child_environment) as child:
            while child.poll() is None and not there():
                time.sleep(0.001)
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert not (tmp_path / "x.pqmodel").exists()
    assert 3 <= steps() < 40
    subprocess.run(command, cwd=tmp_path, env=child_environment, check=True)
    assert not list(kept.glob(".pyquant-*"))
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--out", "whole.pqmodel"]) == 0
    assert (tmp_path / "x.pqmodel").read_bytes() == (tmp_path / "whole.pqmodel").read_bytes()
