"""The demonstration, with few pictures and little training."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demonstration trains with PyTorch")
pytest.importorskip("sklearn", reason="the demonstration's pictures come with scikit-learn")

import pyquant.bench
from pyquant.demo import DemoSize, run_demo, show_demo


def test_demo_goes_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyquant.bench, "SECONDS_PER_ENGINE", 0.5)
    size = DemoSize(channels=16, epochs=4, batch=16, pictures=400, peers=("torch", "onnxruntime-int8"))
    result = run_demo(tmp_path / "demo", size)
    assert result.dense["n"] == result.compressed["n"] == 80
    assert result.dense["top1"] > 60  # it has learnt: guessing gives 10 %
    assert result.compressed["top1"] > 50
    assert result.report.ratio > 5
    assert len(pyquant.load(result.file).file.classes) == 10

    show_demo(result)
    out = capsys.readouterr().out
    assert str(result.file) in out
    assert "pyquant, compressed" in out
    assert "torch, dense" in out
    assert max(map(len, out.splitlines()[:8])) <= 80
