"""The engine PyTorch in eager mode, on the decoded dense network with batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyquant.engines import Arrays
from pyquant.engines.dense import read_dense
from pyquant.torch_network import TorchNetwork


class TorchEngine:
    """A network run layer by layer with PyTorch's functions."""

    isa = ""

    def __init__(self, module: TorchNetwork) -> None:
        self._module = module.eval()

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for one float32 array per input."""
        result = self._module(*(torch.from_numpy(x) for x in inputs))
        return [value.numpy() for value in (result.values() if isinstance(result, dict) else [result])]


def load(path: str, shapes: Sequence[tuple[int, ...]], threads: int, precision: str) -> TorchEngine:
    """Load what `dense.write_dense` wrote, in PyTorch's default memory format."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    return TorchEngine(TorchNetwork(read_dense(path)))
