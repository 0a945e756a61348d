"""Measuring engines in turns, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import layer_networks
import numpy as np
import pytest
from click.testing import CliRunner
from hand_made import model_file, tiny_network
from small_models import layer

from pyquant import bench as bench_module
from pyquant import engines
from pyquant.bench import bench
from pyquant.cli import commands
from pyquant.engines.dense import read_dense, write_dense
from pyquant.engines.process import EngineProcess
from pyquant.errors import ConfigError, EngineError, InputError, MissingDependencyError
from pyquant.export.folded import folded
from pyquant.file import read_model, write_model

PEERS = ("torch", "onnxruntime", "openvino")


@pytest.fixture
def tiny(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A .pqmodel of a network made by hand."""
    write_model(tmp_path / "tiny.pqmodel", model_file(tiny_network(rng)))
    return tmp_path / "tiny.pqmodel"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of a few runs: enough to see that they work."""
    monkeypatch.setattr(bench_module, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(bench_module, "TURNS", (2, 2))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that a test starts."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def recording(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", recording)
    return processes


@pytest.mark.usefixtures("quick")
def test_result_has_the_promised_keys(tiny: Path) -> None:
    result = bench(tiny, batch=2, input_shape=(3, 9, 7), threads=1, tune=0)
    assert list(result) == ["machine", "threads", "batch", "isa", "rows", "ratios"]
    assert (result["threads"], result["batch"], result["ratios"]) == (1, 2, {})
    (row,) = result["rows"]
    assert list(row) == [
        "engine", "precision", "file_bytes", "median_ms", "p10_ms", "p90_ms", "load_ms", "peak_rss_bytes",
    ]  # fmt: skip
    assert (row["engine"], row["precision"], row["file_bytes"]) == ("pyquant", "exact", tiny.stat().st_size)
    assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert row["load_ms"] > 0


@pytest.mark.usefixtures("quick")
def test_kernels_are_tuned_before_in_a_process_of_its_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setenv("PYQUANT_CACHE", str(tmp_path / "cache"))
    bench(tiny, threads=1, tune=0.01)
    assert len(started) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.usefixtures("quick")
def test_peer_runs_the_decoded_network(peer: str, tiny: Path, started: list[subprocess.Popen[bytes]]) -> None:
    for library in engines.ENGINES[peer].libraries:
        pytest.importorskip(library)
    result = bench(tiny, against=(peer,), threads=1, tune=0)
    own, other = result["rows"]
    assert other["engine"] == peer
    assert other["precision"] == "fp32"
    assert result["ratios"] == {peer: own["median_ms"] / other["median_ms"]}
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("peer", ["openvino-bf16", "onnxruntime-int8", "openvino-int8"])
@pytest.mark.usefixtures("quick")
def test_peer_in_lower_precision_runs_on_pictures(peer: str, tiny_model: Path, pictures: Path) -> None:
    for library in engines.ENGINES[peer].libraries:
        pytest.importorskip(library)
    result = bench(tiny_model, batch=2, against=(peer,), threads=1, tune=0, calibration=pictures)
    assert [row["engine"] for row in result["rows"]] == ["pyquant", peer]
    assert result["rows"][1]["precision"] == peer.rpartition("-")[2]


@pytest.mark.usefixtures("quick")
def test_fast_runs_a_calibrated_copy_of_a_file_without_ranges(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(tiny_model)
    plain = tmp_path / "plain.pqmodel"
    write_model(plain, replace(model, network=model.network.with_activation_ranges(None)))
    before = plain.read_bytes()
    loaded: list[tuple[bool, str]] = []
    load = bench_module._load

    def record(engine: EngineProcess, files: Any, folder: Path, threads: int, own: dict[str, Any]) -> dict[str, Any]:
        loaded.append((read_model(files["pqmodel"]).network.activation_ranges is not None, own["precision"]))
        return load(engine, files, folder, threads, {**own, "precision": "exact"})  # whatever the core can do

    monkeypatch.setattr(bench_module, "_load", record)
    monkeypatch.setattr(bench_module, "check_options", lambda threads, precision, memory_budget: None)
    for path, precision, calibration in (
        (plain, "fast", pictures),
        (plain, "fast", None),
        (plain, "exact", pictures),
        (tiny_model, "fast", None),
    ):
        bench(path, threads=1, tune=0, precision=precision, calibration=calibration)
    assert loaded == [(True, "fast"), (False, "fast"), (False, "exact"), (True, "fast")]
    assert plain.read_bytes() == before


def test_calibration_that_does_not_fit(
    tiny: Path, tiny_model: Path, pictures: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match="onnxruntime-int8: needs calibration"):
        bench(tiny_model, against=("onnxruntime-int8",))
    with pytest.raises(InputError, match="does not say how pictures become inputs"):
        bench(tiny, calibration=pictures)
    with pytest.raises(InputError, match=r"become inputs of \[3, 32, 32\], not \[3, 40, 40\]"):
        bench(tiny_model, input_shape=(3, 40, 40), calibration=pictures)
    with pytest.raises(InputError, match="12 pictures are too few for a batch of 13"):
        bench(tiny_model, batch=13, calibration=pictures)
    assert not started


def test_unknown_engine_is_refused(tiny: Path) -> None:
    with pytest.raises(
        ConfigError, match="unknown engine 'tflite'; known: torch, onnxruntime, openvino, openvino-bf16"
    ):
        bench(tiny, against=("tflite",))


def test_missing_engine_is_an_error_before_anything_starts(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"torch, onnx, openvino not installed: .*\[bench,train\]"):
        bench(tiny, against=("torch", "openvino"))
    assert not started


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch": 0}, ConfigError),
        ({"threads": 0}, ConfigError),
        ({"precision": "fastest"}, ConfigError),
        ({"tune": -1.0}, ConfigError),
        ({"tune": float("nan")}, ConfigError),
        ({"input_shape": (4, 8, 8)}, InputError),
    ],
)
def test_unusable_option_is_refused(
    options: dict[str, Any], error: type[Exception], tiny: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    with pytest.raises(error):
        bench(tiny, **options)
    assert not started


@pytest.mark.usefixtures("quick")
def test_engine_that_runs_another_network_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    pytest.importorskip("onnxruntime")
    write_files = bench_module.write_files
    other = tiny_network(np.random.default_rng(1))
    monkeypatch.setattr(bench_module, "write_files", lambda network, *rest: write_files(other, *rest))
    with pytest.raises(EngineError, match="onnxruntime: its outputs differ"):
        bench(tiny, against=("onnxruntime",), threads=1, tune=0)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def load(process: EngineProcess, path: Path) -> dict[str, Any]:
    inputs = path.with_suffix(".npz")
    np.savez(inputs, np.zeros((1, 3, 8, 8), np.float32))
    options = {"precision": "exact", "memory_budget": 0}
    return process.ask("load", engine="pyquant", path=str(path), inputs=str(inputs), threads=1, options=options)


def test_error_of_a_worker_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"x" * 4096)
    with EngineProcess("pyquant", 1, tmp_path / "log") as process, pytest.raises(EngineError, match="FormatError"):
        load(process, tmp_path / "bad")


def test_death_of_a_worker_is_reported(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with EngineProcess("pyquant", 1, tmp_path / "log") as process:
        started[0].kill()
        started[0].wait()
        with pytest.raises(EngineError, match="pyquant: its process ended: exit code -9"):
            process.ask("peak_memory")


def state_of(pid: int) -> str:
    """Return the letter by which Linux describes what a process does: T is stopped, Z and X are dead."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_alive(pid: int) -> bool:
    try:
        return state_of(pid) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_worker_stands_still_between_requests(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with EngineProcess("pyquant", 1, tmp_path / "log") as process:
        process.ask("peak_memory")
        deadline = monotonic() + 5  # the signal takes effect when the worker is next scheduled
        while (state := state_of(started[0].pid)) != "T" and monotonic() < deadline:
            sleep(0.001)
        assert state == "T"
        process.ask("peak_memory")


PARENT = """
import os, sys
from pathlib import Path
from pyquant.engines.process import EngineProcess
process = EngineProcess("pyquant", 1, Path(sys.argv[1]))
process.ask("peak_memory")
print(process._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process may outlive its parent")
def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    pid = int(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    deadline = monotonic() + 5
    while (alive := is_alive(pid)) and monotonic() < deadline:
        sleep(0.01)
    assert not alive


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_the_worker_s_own(tiny: Path, tmp_path: Path) -> None:
    ballast = np.ones(64_000_000, np.float32)  # 256 MB of this process, which a child must not count
    with EngineProcess("pyquant", 1, tmp_path / "log") as process:
        load(process, tiny)
        assert 0 < process.ask("peak_memory")["bytes"] < ballast.nbytes


def test_torch_is_not_needed(tiny: Path) -> None:
    code = "import sys, pyquant.bench, pyquant.engines.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dense_file_keeps_the_network(tmp_path: Path, rng: np.random.Generator) -> None:
    network = folded(tiny_network(rng))
    write_dense(network, tmp_path / "x")
    read = read_dense(tmp_path / "x")
    assert read.graph == network.graph
    assert read.tensors.keys() == network.tensors.keys()
    for name, value in network.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], value)


def test_profile_of_a_network_with_several_inputs(tmp_path: Path) -> None:
    shape = (1, 3, 8, 8)
    write_model(tmp_path / "sum.pqmodel", layer_networks.model_file([layer("add", "sum", "x", "x1")], {}, shape, shape))
    assert [step["name"] for step in profile(str(tmp_path / "sum.pqmodel"), "--batch", "2")] == ["sum"]
    with pytest.raises(InputError, match="2 inputs, which one shape cannot describe"):
        bench_module.input_shapes(read_model(tmp_path / "sum.pqmodel").network.graph, 1, (3, 9, 9))


def profile(*arguments: str) -> list[dict[str, Any]]:
    """Return what the command prints of each step."""
    done = CliRunner().invoke(commands, ["profile", *arguments, "--json"], catch_exceptions=False)
    steps: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
    return steps


def test_profile(tiny_model: Path) -> None:
    steps = profile(str(tiny_model), "--batch", "2", "--input-shape", "3,40,40")
    keys = {"name", "op", "kernel", "candidates", "ms", "share", "gmacs", "of_peak"}
    assert all(set(step) == keys for step in steps)
    assert sum(step["share"] for step in steps) == pytest.approx(1)
    assert all(ms is None for step in steps for ms in step["candidates"].values())


def test_profile_of_tuned_kernels(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYQUANT_CACHE", str(tmp_path))
    choices = [step["candidates"] for step in profile(str(tiny_model), "--tune", "0.01") if len(step["candidates"]) > 1]
    assert choices
    assert all(ms > 0 for candidates in choices for ms in candidates.values())


def test_profile_as_tables(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYQUANT_CACHE", str(tmp_path))
    shown = CliRunner().invoke(commands, ["profile", str(tiny_model), "--tune", "0.01"]).stdout
    assert "GMAC/s" in shown
    assert "winograd4" in shown
    assert shown.count("block.conv1") == 2
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.usefixtures("quick")
def test_cache_that_cannot_be_written_leaves_kernels_untuned(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("PYQUANT_CACHE", str(tmp_path / "cache"))
    warnings: list[str] = []
    monkeypatch.setattr(bench_module.console, "warn", warnings.append)
    bench(tiny, threads=1, tune=0.01)
    assert len(started) == 1
    (warning,) = warnings
    assert "not tuned" in warning
