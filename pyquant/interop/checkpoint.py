"""What a published checkpoint holds, whatever its layout: coded weights and dense tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.product import MAX_CENTROIDS, MIN_CENTROIDS, as_conv_shape
from pyquant.errors import FormatError
from pyquant.graph import Graph, Network, Node, Weight

# Both published layouts fold the statistics into weight and bias: evaluation means running_mean 0, running_var 1.
FOLDED_VARIANCE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedWeight:
    """A weight as one codebook and the index of a centroid for each block of each output."""

    codes: NDArray[np.integer]  # [O, J], blocks in the order of a row's unrolled weights (C, kh, kw)
    codebook: NDArray[np.floating]  # [K, d]
    kernel: int | None = None  # the convolution's kernel size, where the layout says it


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The entries of a checkpoint, under the names of the module's state dict."""

    layout: str  # "abgd", "pqf"
    coded: Mapping[str, CodedWeight]  # by layer
    dense: Mapping[str, NDArray[np.generic]]  # by state dict entry

    def num_classes(self, layer: str) -> int:
        """Return the number of outputs of the classifier called `layer`; raise FormatError where it is missing."""
        if layer in self.coded:
            return int(self.coded[layer].codes.shape[0])
        if (weight := self.dense.get(f"{layer}.weight")) is not None and weight.ndim == 2:
            return int(weight.shape[0])
        raise FormatError(f"classes cannot be counted: there is no weight of the last layer '{layer}'")


def network_from_checkpoint(checkpoint: Checkpoint, graph: Graph) -> Network:
    """Return `graph` with the checkpoint's weights, codes and codebooks taken over as they are.

    Args:
        graph: the architecture, all weights dense, each name that of the module; see `interop.resnet`.

    Raises:
        FormatError: listing every entry that is missing, unknown, of the wrong shape or unusable.
    """
    filling = _Filling(checkpoint)
    nodes = tuple(filling.fill(node) for node in graph.nodes)
    filling.raise_faults()
    return Network(graph=replace(graph, nodes=nodes), tensors=filling.tensors)


class _Filling:
    """Fills a graph layer by layer, collecting tensors and faults."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tensors: dict[str, NDArray[np.generic]] = {}
        self.missing: list[str] = []
        self.faults: list[str] = []
        self.used: set[str] = set()

    def fill(self, node: Node) -> Node:
        """Return `node` with the codec its weight has in the checkpoint, and keep its tensors."""
        if node.weight is None:
            return node
        outputs = node.weight.shape[0]
        weight = self._fill_weight(node.weight)
        if norm := node.state.norm:
            scale, bias = self._take(f"{norm}.weight", (outputs,)), self._take(f"{norm}.bias", (outputs,))
            if scale is not None and bias is not None:
                root = np.sqrt(FOLDED_VARIANCE + node.state.eps)
                self.tensors[node.tensor("scale")] = (scale.astype(np.float64) / root).astype(np.float32)
                self.tensors[node.tensor("bias")] = bias.astype(np.float32)
        elif node.state.bias and (bias := self._take(node.state.bias, (outputs,))) is not None:
            self.tensors[node.tensor("bias")] = bias.astype(np.float32)
        return replace(node, weight=weight)

    def _fill_weight(self, weight: Weight) -> Weight:
        coded = self.checkpoint.coded.get(weight.name)
        if coded is None:
            dense = self._take(f"{weight.name}.weight", weight.shape)
            if dense is not None:
                kept = dense if dense.dtype in (np.float16, np.float32) else dense.astype(np.float32)
                self.tensors[weight.tensor("weight")] = np.ascontiguousarray(kept)
            return replace(weight, codec=DenseConfig())
        self.used.add(weight.name)
        try:
            config = _config_for(coded, weight.shape)
        except ValueError as error:
            self.faults.append(f"'{weight.name}': {error}")
            return weight
        self.tensors[weight.tensor("codes")] = pack_codes(coded.codes, config.code_bits)
        self.tensors[weight.tensor("codebook")] = np.ascontiguousarray(coded.codebook)[None]
        return replace(weight, codec=config)

    def _take(self, key: str, shape: tuple[int, ...]) -> NDArray[np.generic] | None:
        """Return the dense tensor called `key`, or None with the fault noted."""
        value = self.checkpoint.dense.get(key)
        if value is None:
            self.missing.append(key)
            return None
        self.used.add(key)
        if value.shape != shape:
            self.faults.append(f"'{key}': expected shape {list(shape)}, got {list(value.shape)}")
        elif not np.issubdtype(value.dtype, np.floating):
            self.faults.append(f"'{key}': expected floating-point numbers, got {value.dtype}")
        elif not np.isfinite(value).all():
            self.faults.append(f"'{key}': holds NaN or infinite numbers")
        else:
            return value
        return None

    def raise_faults(self) -> None:
        unknown = [key for key in (*self.checkpoint.coded, *self.checkpoint.dense) if key not in self.used]
        faults = [f"missing: {', '.join(self.missing)}"] if self.missing else []
        faults += [f"unknown: {', '.join(unknown)}"] if unknown else []
        faults += self.faults
        if faults:
            raise FormatError("; ".join(faults))


def _config_for(coded: CodedWeight, shape: tuple[int, ...]) -> ProductConfig:
    """Return the codec of a coded weight of `shape`; raise ValueError saying what does not fit."""
    o, c, kh, kw = as_conv_shape(shape)
    centroids, dim = coded.codebook.shape
    outputs, blocks = coded.codes.shape
    if coded.kernel is not None and (kh, kw) != (coded.kernel, coded.kernel):
        raise ValueError(f"expected a kernel of {kh}x{kw}, got {coded.kernel}x{coded.kernel}")
    if outputs != o or blocks * dim != c * kh * kw:
        raise ValueError(
            f"expected codes of {o} outputs with {c * kh * kw} weights, "
            f"got {outputs} outputs with {blocks} blocks of {dim}"
        )
    if dim % (kh * kw):
        raise ValueError(f"blocks of {dim} weights are not whole {kh}x{kw} patches")
    if not MIN_CENTROIDS <= centroids <= MAX_CENTROIDS:
        raise ValueError(f"expected {MIN_CENTROIDS} to {MAX_CENTROIDS} centroids, got {centroids}")
    if coded.codebook.dtype not in (np.float16, np.float32):
        raise ValueError(f"expected a codebook of float16 or float32, got {coded.codebook.dtype}")
    if not np.isfinite(coded.codebook).all():
        raise ValueError("the codebook holds NaN or infinite numbers")
    low, high = int(coded.codes.min()), int(coded.codes.max())
    if low < 0 or high >= centroids:
        raise ValueError(f"expected codes from 0 to {centroids - 1}, got {low} to {high}")
    return ProductConfig(block=(dim // (kh * kw), kh, kw), centroids=centroids)
