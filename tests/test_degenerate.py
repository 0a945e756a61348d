"""Networks with degenerate layers, from beginning to end: every method codes them, or says which tensor it cannot."""

from pathlib import Path

import numpy as np
import pytest

import pyquant
from pyquant.choose import Recipe, parse_rule
from pyquant.errors import InputError
from pyquant.file import read_model

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

from torch import nn  # noqa: E402

from pyquant import job  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402

WIDTH = 16
METHODS_AND_CODEBOOKS = [
    (name, codebooks) for name, method in METHODS.items() for codebooks in (1, 2) if codebooks <= method.max_codebooks
]


class Awkward(nn.Module):
    """One input channel, dead channels, weights all 0 or all the same, groups, dilation, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()

        def normed(*arguments: int, **options: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(*arguments, bias=False, **options), nn.BatchNorm2d(WIDTH))

        self.one_channel = normed(1, WIDTH, 3, padding=1)
        self.zeros = normed(WIDTH, WIDTH, 3, padding=1)
        self.constant = normed(WIDTH, WIDTH, 3, padding=1)
        self.depthwise = normed(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.grouped = normed(WIDTH, WIDTH, 3, padding=1, groups=4)
        self.dilated = normed(WIDTH, WIDTH, 3, padding=2, dilation=2)
        self.tied = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.tied_again = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.tied_again.weight = self.tied.weight
        self.few_blocks = nn.Linear(WIDTH, 3)
        self.fc = nn.Linear(WIDTH, 40)
        with torch.no_grad():
            self.zeros[0].weight.zero_()
            self.constant[0].weight.fill_(0.1)
            self.one_channel[1].bias[:5] = -1e3  # after the ReLU these channels are 0 on every picture
            self.dilated[0].weight[3] = 0  # and this one never varies

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.one_channel(x))
        x = x + self.zeros(x) + self.constant(x)
        x = torch.relu(self.depthwise(x)) + self.grouped(x)
        x = x + torch.relu(self.dilated(x))
        x = self.tied_again(torch.relu(self.tied(x))).mean((2, 3))
        return {"few": self.few_blocks(x), "scores": self.fc(x)}


def awkward() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Awkward().eval()


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((20, 1, 10, 9), dtype=np.float32)


def recipe(codebooks: int) -> Recipe:
    """Code every layer, the first one too; one of them in fewer blocks than there are centroids."""
    more = f";codebooks:{codebooks}"
    rules = [
        f"*=block:1,3,3;centroids:4{more}",
        f"fc=block:4,1,1;centroids:8{more}",
        "few_blocks=block:16,1,1;centroids:2",
    ]
    return Recipe(rules=tuple(map(parse_rule, rules)))


@pytest.mark.parametrize("calibrated", [True, False], ids=["on inputs", "on weights alone"])
@pytest.mark.parametrize(("method", "codebooks"), METHODS_AND_CODEBOOKS)
def test_all_degenerate_layers_are_coded(
    method: str, codebooks: int, calibrated: bool, inputs: np.ndarray, tmp_path: Path
) -> None:
    module, out = awkward(), tmp_path / "x.pqmodel"
    report = pyquant.compress(
        module,
        inputs if calibrated else None,
        out=out,
        recipe=recipe(codebooks),
        method=method,
        input_shape=inputs.shape[1:],
        threads=1,
    )
    rows = {layer.name: layer for layer in report.layers}
    assert {name for name, row in rows.items() if row.status == "dense"} <= {"few_blocks"}
    assert all(row.relative_output_error is None or np.isfinite(row.relative_output_error) for row in rows.values())
    assert rows["tied_again"].bytes < rows["tied"].bytes
    network = read_model(out).network
    weights = {node.name: network.weight(weight) for node, weight in network.graph.weighted()}
    assert not weights["zeros.0"].any()
    if not calibrated:  # else it may make up for errors of the layers before
        np.testing.assert_allclose(weights["constant.0"], 0.1, rtol=2e-2)
    assert sum(name.startswith("tied") and name.endswith(".codes") for name in network.tensors) == 1
    assert all(np.isfinite(output).all() for output in pyquant.load(out, threads=1)(inputs).values())


@pytest.mark.parametrize("method", sorted({method for method, _ in METHODS_AND_CODEBOOKS}))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_before_the_work(
    method: str, bad: float, inputs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = awkward()
    module.grouped[0].weight.data[3, 1, 2, 0] = bad
    monkeypatch.setattr(job, "learn", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(InputError, match=r"'grouped\.0\.weight'"):
        pyquant.compress(module, inputs, out=tmp_path / "x.pqmodel", recipe=recipe(1), method=method, threads=1)
    assert not list(tmp_path.iterdir())


def test_a_size_target_copes_with_weights_without_structure(inputs: np.ndarray, tmp_path: Path) -> None:
    report = pyquant.compress(awkward(), inputs, out=tmp_path / "x.pqmodel", target_ratio=2.0, method="abgd", threads=1)
    rows = {layer.name: layer for layer in report.layers}
    assert rows["zeros.0"].status == rows["constant.0"].status == "compressed"
    assert report.ratio >= 2
