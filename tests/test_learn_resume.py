"""Learning that is stopped and goes on: the same network, bit for bit, wherever it was stopped and on any threads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import SIDE

torch = pytest.importorskip("torch", reason="learning needs PyTorch")

import tiny_networks  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.checkpoint import Record  # noqa: E402
from pyquant.choose import Recipe  # noqa: E402
from pyquant.console import Progress  # noqa: E402
from pyquant.learn.calibration import from_arrays  # noqa: E402
from pyquant.learn.layerwise import Learnt, learn  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402
from pyquant.learn.saved import load_learnt, save_learnt  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402
from pyquant.module_state import norms_of  # noqa: E402

LAYERS = ["layer block.conv1", "layer block.conv2", "layer wide", "layer fc"]
RECORDS = ["importance of outputs", *LAYERS]


class Stopped(Exception):
    """The job was stopped."""


class Memory:
    """Records in memory, which stop the job once `most` of them are there."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.records: dict[str, Record] = {}

    def has(self, name: str) -> bool:
        return name in self.records

    def load(self, name: str) -> Record | None:
        return self.records.get(name)

    def save(self, name: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.records[name] = Record(values=values, arrays={key: array.copy() for key, array in arrays.items()})
        if len(self.records) == self.most:
            raise Stopped

    def is_due(self) -> bool:
        return False

    def part(self, name: str) -> "Memory":
        return self


def learnt(
    records: Memory,
    *,
    threads: int = 1,
    calibrated: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> Learnt:
    network = capture(tiny_networks.residual(), (3, SIDE, SIDE))
    inputs = np.random.default_rng(0).standard_normal((20, 3, SIDE, SIDE), dtype=np.float32)
    with Workers(threads) as workers:
        return learn(
            network,
            Recipe().choose(network.graph),
            seed=0,
            workers=workers,
            method=METHODS["gram"],
            calibration=from_arrays(inputs, samples=20, seed=0) if calibrated else None,
            norms=norms_of(network.graph, tiny_networks.residual().state_dict()),
            progress=progress,
            records=records,
        )


def assert_same(a: Learnt, b: Learnt) -> None:
    assert a.network.graph == b.network.graph
    assert a.errors == b.errors
    assert {name: array.tobytes() for name, array in a.network.tensors.items()} == {
        name: array.tobytes() for name, array in b.network.tensors.items()
    }
    assert a.norms.keys() == b.norms.keys()
    for name, norm in a.norms.items():
        np.testing.assert_array_equal(norm.mean, b.norms[name].mean)
        np.testing.assert_array_equal(norm.variance, b.norms[name].variance)


def test_stopped_after_any_layer() -> None:
    whole = Memory()
    expected = learnt(whole)
    assert list(whole.records) == RECORDS
    for most in range(1, len(RECORDS) + 1):
        records = Memory(most)
        with pytest.raises(Stopped):
            learnt(records, threads=2)
        records.most = 99
        assert_same(learnt(records, threads=1), expected)
        assert list(records.records) == RECORDS


def test_layers_that_were_saved_are_not_learnt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Memory()
    expected = learnt(records)
    for name in ("measure", "code"):
        monkeypatch.setattr(type(METHODS["gram"]), name, lambda *_, **__: pytest.fail("learnt again"))
    assert_same(learnt(records), expected)


@pytest.mark.parametrize("lost", RECORDS)
def test_what_has_lost_its_record_is_learnt_again(lost: str) -> None:
    records = Memory()
    expected = learnt(records)
    del records.records[lost]
    assert_same(learnt(records), expected)


def test_without_calibration() -> None:
    expected = learnt(Memory(), calibrated=False)
    records = Memory(2)
    with pytest.raises(Stopped):
        learnt(records, calibrated=False)
    records.most = 99
    assert_same(learnt(records, calibrated=False), expected)


def test_what_was_learnt_is_loaded_as_it_was() -> None:
    records = Memory()
    assert load_learnt(records, "learnt") is None
    expected = learnt(records)
    save_learnt(records, "learnt", expected, {"steps": 3})
    found = load_learnt(records, "learnt")
    assert found is not None
    assert_same(found[0], expected)
    assert found[1] == {"steps": 3}
    for path, norm in expected.norms.items():
        for name in ("weight", "bias", "input_bias", "eps"):
            np.testing.assert_array_equal(getattr(norm, name), getattr(found[0].norms[path], name))


def test_work_that_was_done_before_does_not_count() -> None:
    records = Memory()
    totals: list[int] = []
    for _ in range(2):
        learnt(records, progress=lambda what, done, total: totals.append(total))
    first, again = totals[len(totals) // 2 - 1], totals[-1]
    assert again < first / 2
