"""Fine-tuning of what networks share: weights, norms, and arithmetic that has no weights."""

from pathlib import Path

import numpy as np
import pytest

import pyquant
from pyquant.choose import Recipe, parse_rule

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

from torch import nn  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.learn.distillation import distillation_loss  # noqa: E402
from pyquant.learn.trainable import Trainable  # noqa: E402

SIDE = 12


class Several(nn.Module):
    """Tied weights, a grouped convolution, a norm used twice, one without a weight, and a map beside the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.second.weight = self.first.weight
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.twice = nn.BatchNorm2d(16)
        self.plain = nn.BatchNorm2d(16, affine=False)
        self.fc = nn.Linear(16, 40)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.twice(torch.relu(self.stem(x))))
        x = torch.relu(self.plain(self.second(torch.relu(self.first(x)))))
        y = self.twice(self.grouped(x)) * 2.0
        return {"map": y, "scores": self.fc(y.mean((2, 3)))}


def several() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Several()
        for name in ("twice", "plain"):
            nn.init.uniform_(module.get_submodule(name).running_mean, -0.1, 0.1)
            nn.init.uniform_(module.get_submodule(name).running_var, 0.5, 1.5)
    return module.eval()


def test_several_outputs_tied_weights_groups_and_shared_norms(rng: np.random.Generator, tmp_path: Path) -> None:
    inputs = rng.standard_normal((64, 3, SIDE, SIDE), dtype=np.float32)
    recipe = Recipe(rules=(parse_rule("*=block:1,3,3;centroids:16"), parse_rule("fc=dense"), parse_rule("stem=dense")))
    out = tmp_path / "x.pqmodel"
    losses = []
    for steps in (0, 100):
        report = pyquant.compress(several(), inputs, out=out, recipe=recipe, finetune_steps=steps, threads=1)
        assert report.self_check["max_relative_error"] < 1e-4
        x = torch.from_numpy(inputs)
        with torch.no_grad():
            outputs, targets = pyquant.to_torch(out)(x), several()(x)
        losses.append(float(distillation_loss(list(outputs.values()), list(targets.values()))))
    assert losses[1] < 0.9 * losses[0]


def test_norms_without_a_weight_keep_their_scale_and_arithmetic_its_numbers() -> None:
    network = capture(several(), (3, SIDE, SIDE))
    trained = set(Trainable(network).trained())
    for node in network.graph.nodes:
        own = {role for role in node.tensors if f"{node.name}/{role}" in trained}
        assert not own, node.name
    scales = {key for key in trained if key.endswith("scale")}
    assert scales == {"twice/shared scale"}
