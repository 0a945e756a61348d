"""The self-check passes what agrees, and refuses weights, statistics and outputs that do not."""

from pathlib import Path

import numpy as np
import pytest

from pyquant.errors import SelfCheckError

torch = pytest.importorskip("torch", reason="the self-check compares with PyTorch")

import tiny_networks  # noqa: E402

from pyquant import selfcheck  # noqa: E402
from pyquant.export import state_dict  # noqa: E402
from pyquant.file import read_model  # noqa: E402
from pyquant.selfcheck import check_against_decoded, check_against_module  # noqa: E402


@pytest.fixture
def batch(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 3, 32, 32), dtype=np.float32)


def restored(path: Path) -> torch.nn.Module:
    module = tiny_networks.residual()
    state = state_dict(read_model(path).network)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return module


def test_a_file_agrees_with_its_decoded_network_and_its_module(tiny_model: Path, batch: np.ndarray) -> None:
    assert check_against_decoded(tiny_model, batch) < 1e-5
    assert check_against_module(tiny_model, restored(tiny_model), batch) < 1e-5


@pytest.mark.parametrize("entry", ["block.conv1.weight", "block.bn1.running_var", "bn.running_mean", "fc.bias"])
def test_a_module_that_differs_is_refused(entry: str, tiny_model: Path, batch: np.ndarray) -> None:
    module = restored(tiny_model)
    module.state_dict()[entry].mul_(1.2).add_(0.1)
    with pytest.raises(SelfCheckError, match=r"tiny\.pqmodel: differs from the PyTorch module .* at most 0\.001 of it"):
        check_against_module(tiny_model, module, batch)


def test_other_shapes_are_refused(tiny_model: Path, batch: np.ndarray) -> None:
    with pytest.raises(SelfCheckError, match=r"outputs have shapes \[\(2, 3\)\], those of .* \[\(2, 7\)\]"):
        check_against_module(tiny_model, tiny_networks.residual(num_classes=7), batch)


@pytest.mark.parametrize(
    ("got", "expected", "passes"),
    [(0.0, 0.0, True), (1e-9, 0.0, False), (np.nan, 1.0, False), (1.0, np.nan, False), (np.nan, np.nan, False)],
)
def test_zeros_and_nans(got: float, expected: float, passes: bool) -> None:
    outputs = [[np.full((2, 2), value, np.float32)] for value in (got, expected)]
    if passes:
        assert selfcheck._compare(*outputs, 1e-4, "x", "y") == 0
    else:
        with pytest.raises(SelfCheckError):
            selfcheck._compare(*outputs, 1e-4, "x", "y")
