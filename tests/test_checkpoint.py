"""Checkpoints: records that are whole or not there, one job a folder, one process at a time, refusals that say why."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyquant import checkpoint, console
from pyquant.checkpoint import NOWHERE, Checkpoint, digest, digests
from pyquant.errors import InputError

JOB: dict[str, Any] = {
    "weights": {f"conv{index}.weight": digest([bytes([index])]) for index in range(9)},
    "seed": 0,
    "preset": "small-blocks",
    "rules": ["fc=dense"],
    "target": None,
}
ARRAYS = {"codes": np.arange(7, dtype=np.uint8), "codebook": np.ones((1, 3, 2), np.float16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user is warned of."""
    messages: list[str] = []
    monkeypatch.setattr(console, "warn", messages.append)
    return messages


def begun(folder: Path, job: dict[str, Any] = JOB) -> Checkpoint:
    made = Checkpoint(folder)
    made.begin(job, {"PyTorch": "2.6"})
    return made


def test_what_is_saved_is_there_in_the_next_process(folder: Path) -> None:
    with begun(folder) as records:
        records.save("layer fc", {"error": 0.1}, ARRAYS)
        records.part("963000").save("layer fc", {"error": 0.2}, {})
    with begun(folder) as records:
        record = records.load("layer fc")
        assert record is not None
        assert record.values == {"error": 0.1}
        assert {name: (a.dtype, a.shape) for name, a in record.arrays.items()} == {
            name: (a.dtype, a.shape) for name, a in ARRAYS.items()
        }
        np.testing.assert_array_equal(record.arrays["codes"], ARRAYS["codes"])
        other = records.part("963000").load("layer fc")
        assert other is not None
        assert other.values == {"error": 0.2}
        assert records.load("layer conv") is None
        assert records.has("layer fc")
        assert records.part("963000").has("layer fc")
        assert not records.part("963001").has("layer fc")


@pytest.mark.parametrize("name", ["..", "a/b", "A", "a", "ä" * 300, "ä" * 301, "job ", "x\0y", "%2F", "/"])
def test_any_name_will_do(folder: Path, name: str) -> None:
    with begun(folder) as records:
        records.save(name, {"name": name}, {})
        record = records.load(name)
        assert record is not None
        assert record.values == {"name": name}
        assert records.load("job") is not None
    assert len(os.listdir(folder)) == 3
    assert os.listdir(folder.parent) == [folder.name]


def test_names_that_differ_in_case_alone_have_files_of_their_own(folder: Path) -> None:
    with begun(folder) as records:
        records.save("a", {}, {})
        records.save("A", {}, {})
    assert len({name.lower() for name in os.listdir(folder)}) == 4


def test_nowhere_keeps_nothing() -> None:
    NOWHERE.save("a", {}, {})
    assert NOWHERE.load("a") is None
    assert not NOWHERE.has("a")
    assert NOWHERE.part("b").load("a") is None
    assert not NOWHERE.is_due()


def test_steps_are_saved_each_minute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint, "monotonic", lambda: now)
    with begun(folder) as records:
        part = records.part("1")
        now = 59.0
        assert not part.is_due()
        now = 60.0
        assert part.is_due()
        part.save("training", {}, {})
        assert not part.is_due()
        now = 120.0
        assert records.is_due()


MISMATCHES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "seed": ({"seed": 1}, ["seed is 0 in the checkpoint, 1 asked for"]),
    "rules": ({"rules": []}, [r'rules is \["fc=dense"\] in the checkpoint, \[\] asked for']),
    "target": ({"target": 1000}, ["target is none in the checkpoint, 1000 asked for"]),
    "new setting": ({"device": "cuda"}, ["device is none in the checkpoint, cuda asked for"]),
    "two": ({"seed": 1, "preset": "large"}, ["seed is 0 in .*; preset is small-blocks in the .*, large asked"]),
    "one weight": (
        {"weights": JOB["weights"] | {"conv3.weight": "0123456789abcdef"}},
        [f"weights: conv3.weight is {JOB['weights']['conv3.weight']} in the checkpoint, 0123456789abcdef asked for"],
    ),
    "all weights": (
        {"weights": dict.fromkeys(JOB["weights"], "0123456789abcdef")},
        ["weights: conv0.weight is", "conv4.weight is", "weights: 4 more"],
    ),
    "layers": ({"weights": {"fc.weight": "0" * 16}}, ["conv0.weight is", "weights: 5 more"]),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_job_is_refused_and_all_that_differs_is_named(folder: Path, case: str) -> None:
    change, messages = MISMATCHES[case]
    with begun(folder) as records:
        records.save("layer fc", {}, ARRAYS)
    for message in messages:
        with pytest.raises(InputError, match=message), Checkpoint(folder) as records:
            records.begin(JOB | change, {})
    with pytest.raises(InputError, match=r"checkpoint of another job: .*\. Give what .* or delete this one to begin"):
        begun(folder, JOB | change)


def test_other_circumstances_are_a_warning(folder: Path, warnings: list[str]) -> None:
    begun(folder).__exit__(None, None, None)
    begun(folder).__exit__(None, None, None)
    assert not warnings
    with Checkpoint(folder) as records:
        records.begin(JOB, {"PyTorch": "2.7"})
    (message,) = warnings
    assert "PyTorch is 2.6 in the checkpoint, 2.7 asked for" in message


def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years of work")
    with pytest.raises(InputError, match=r"holds files that are not a checkpoint's, such as 'thesis\.txt'"):
        Checkpoint(folder)
    assert os.listdir(folder) == ["thesis.txt"]


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "gone" / "checkpoint", "cannot hold a checkpoint: No such file or directory"),
        (tmp_path / "file" / "checkpoint", "cannot hold a checkpoint: Not a directory"),
    ):
        with pytest.raises(InputError, match=message):
            Checkpoint(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_that_takes_no_files_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot hold a checkpoint: Permission denied"):
        Checkpoint(folder)


def test_a_folder_that_takes_no_new_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def fail(path: str | Path, flags: int, *mode: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        Checkpoint(folder)


def test_one_process_at_a_time(folder: Path) -> None:
    program = "import sys; from pyquant.checkpoint import Checkpoint; x = Checkpoint(sys.argv[1]); print(1, flush=True)"
    program += "; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        with pytest.raises(InputError, match="is the checkpoint of a job that is running; wait"):
            Checkpoint(folder)
        child.kill()
        child.wait()
        with begun(folder), pytest.raises(InputError, match="is running"):
            Checkpoint(folder)
    with begun(folder):
        pass


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    elif how == "flipped header":
        data[150] ^= 1
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2]}.get(how, data))


@pytest.mark.parametrize("how", ["flipped", "flipped header", "truncated", "empty"])
def test_damaged_records_are_done_again(folder: Path, how: str, warnings: list[str]) -> None:
    with begun(folder) as records:
        records.save("layer fc", {}, ARRAYS)
        damage(folder / "layer fc.safetensors", how)
        assert records.load("layer fc") is None
        (message,) = warnings
        assert re.search(r"layer fc\.safetensors: .*(damaged|truncated|empty).* is done again", message)
        records.save("layer fc", {}, ARRAYS)
        assert records.load("layer fc") is not None


@pytest.mark.parametrize("how", ["flipped header", "truncated", "empty"])
def test_a_damaged_job_is_an_error(folder: Path, how: str) -> None:
    begun(folder).__exit__(None, None, None)
    damage(folder / "job.safetensors", how)
    with pytest.raises(InputError, match=r"job\.safetensors: .*; delete .*checkpoint to begin anew"):
        begun(folder)


def test_a_record_under_another_name_does_not_count(folder: Path) -> None:
    with begun(folder) as records:
        records.save("a", {}, {})
        (folder / "a.safetensors").rename(folder / "b.safetensors")
        assert records.load("b") is None


def test_another_format_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", "1")
    begun(folder).__exit__(None, None, None)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format 1 of a checkpoint; this pyquant reads format 2"):
        begun(folder)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_keeps_what_was_saved_before(folder: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with begun(folder) as records:
        records.save("training", {"step": 1}, {})
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(InputError, match=r"training\.safetensors: .*No space left on device.*make room"):
            records.save("training", {"step": 2}, ARRAYS)
        monkeypatch.undo()
        record = records.load("training")
        assert record is not None
        assert record.values == {"step": 1}
    assert sorted(os.listdir(folder)) == ["job.safetensors", "lock", "training.safetensors"]


def test_what_a_killed_process_left_half_written_is_removed(folder: Path) -> None:
    folder.mkdir()
    (folder / ".pyquant-0123456789abcdef.tmp").write_bytes(b"half")
    with begun(folder):
        assert sorted(os.listdir(folder)) == ["job.safetensors", "lock"]


def test_digests_tell_dtypes_shapes_and_contents_apart() -> None:
    array = np.arange(6, dtype=np.float32)
    variants = [array, array[::-1], array.reshape(2, 3), array.view(np.int32), array.astype(np.float16), array[:0]]
    assert len({digests({"a": variant})["a"] for variant in variants}) == len(variants)
    assert digests({"a": array.reshape(2, 3).T}) == digests({"a": np.ascontiguousarray(array.reshape(2, 3).T)})
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])


def test_arrays_keep_their_shapes(folder: Path) -> None:
    arrays = {
        "number": np.float32(3).reshape(()),
        "none": np.zeros((0, 3), np.float16),
        "strided": np.eye(4, 3)[:, ::2],
    }
    with begun(folder) as records:
        records.save("a", {}, {name: array.astype(np.float32) for name, array in arrays.items()})
        record = records.load("a")
    assert record is not None
    for name, array in arrays.items():
        assert record.arrays[name].shape == array.shape
        np.testing.assert_array_equal(record.arrays[name], array)
