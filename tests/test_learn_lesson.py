"""What fine-tuning teaches, and how its steps are shared out: pictures, targets, stages and trials."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pyquant.graph import Network

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")

import tiny_networks  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.learn import lesson as lessons  # noqa: E402
from pyquant.learn import targets as lesson_targets  # noqa: E402
from pyquant.learn.calibration import Calibration, from_arrays  # noqa: E402
from pyquant.learn.lesson import Lesson  # noqa: E402
from pyquant.learn.recipes import ABGD, OURS, PQF  # noqa: E402
from pyquant.learn.schedule import affordable_steps, stage_ends  # noqa: E402
from pyquant.learn.targets import MixedPictures, Pictures, Targets  # noqa: E402
from pyquant.torch_network import TorchNetwork  # noqa: E402

SIDE = 12
LESSON = {"device": torch.device("cpu"), "seed": 0}


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((64, 3, SIDE, SIDE), dtype=np.float32)


@pytest.fixture
def calibration(inputs: np.ndarray) -> Calibration:
    return from_arrays(inputs, samples=64, seed=0)


@pytest.fixture
def dense() -> Network:
    return capture(tiny_networks.residual().eval(), (3, SIDE, SIDE))


def test_targets_are_those_of_the_pictures(inputs: np.ndarray, dense: Network) -> None:
    pictures = Pictures(from_arrays(inputs, samples=64, seed=0), torch.device("cpu"))
    network = TorchNetwork(dense)
    targets = Targets(network, pictures, np.arange(2, 64), batch=4)
    rows = np.array([5, 3, 60])
    for mirrored in (False, True, False, True):  # the second time from memory
        expected = torch.from_numpy(inputs[rows])
        expected = expected.flip(3) if mirrored else expected
        assert torch.equal(pictures.read(rows, mirrored), expected)
        torch.testing.assert_close(targets.read(rows, mirrored)[0], network(expected))


def test_pictures_beyond_the_budget_are_read_again(
    inputs: np.ndarray, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson_targets, "KEPT_BYTES", 3 * inputs[0].nbytes)
    read: list[int] = []

    def counted(rows: slice) -> np.ndarray:
        read.append(rows.start)
        return calibration.read(rows)

    pictures = Pictures(replace(calibration, read=counted), torch.device("cpu"))
    rows = np.array([7, 2, 9, 2, 30, 31])
    for _ in range(2):
        assert torch.equal(pictures.read(rows, mirrored=False), torch.from_numpy(inputs[rows]))
    assert sorted(read) == [2, 7, 9, 30, 30, 31, 31]


def test_mixtures_are_of_two_pictures_and_always_the_same(inputs: np.ndarray, calibration: Calibration) -> None:
    among = np.arange(8, 64)
    mixed = MixedPictures(calibration, torch.device("cpu"), among, seed=0)
    plain = torch.from_numpy(inputs)
    for mirrored in (False, True):
        first = mixed.read(among, mirrored)
        assert torch.equal(mixed.read(among[::-1].copy(), mirrored), first.flip(0))
        share = torch.from_numpy(mixed._shares[int(mirrored), among])[:, None, None, None]
        partners = mixed._partners[int(mirrored), among]
        assert sorted(partners) == list(among)  # none that is held back
        expected = share * plain[among] + (1 - share) * plain[partners]
        torch.testing.assert_close(first, expected.flip(3) if mirrored else expected)
    assert not np.array_equal(mixed._partners[0], mixed._partners[1])


def test_each_pass_takes_every_picture_once(
    dense: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "BATCH", 14)
    lesson = Lesson(dense, calibration, **LESSON)
    assert lesson.new_batches == 8  # a pass as they are, and one mirrored
    trained_on = sorted(np.random.default_rng(0).permutation(64)[8:])
    for number in range(0, 16, 4):
        batches = [lesson._rows(number + index) for index in range(4)]
        assert sorted(np.concatenate([rows for rows, _ in batches])) == trained_on
        mirrored = {mirrored for _, mirrored in batches}
        assert number > 4 or mirrored == {number == 4}


def test_large_pictures_come_in_smaller_batches(
    dense: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = dense.graph.infer_shapes([(1, 3, SIDE, SIDE)])
    values = sum(math.prod(shapes[name]) for node in dense.graph.nodes for name in node.outputs)
    for limit, expected in ((64 * values, 56), (64 * values - 1, 32), (1, 16)):
        monkeypatch.setattr(lessons, "BATCH_VALUES", limit)
        rows, _ = Lesson(dense, calibration, **LESSON)._rows(0)
        assert len(rows) == expected


def test_steps_and_trials_together_are_those_that_can_be_afforded() -> None:
    for stages in (OURS.stages, ABGD.stages, OURS.stages + PQF.stages):
        for budget in (1, 5, 60, 100, 1000, 12345):
            steps = affordable_steps(stages, budget)
            ends = stage_ends(stages, steps)
            assert ends[-1] == steps >= 1
            lengths = np.diff([0, *ends])
            spent = sum(stage.steps_with_trials(int(n)) for stage, n in zip(stages, lengths, strict=True))
            assert 0.8 * budget <= spent <= budget
