"""A compressed network as a PyTorch module whose centroids, grid codes, scales, biases and the like can be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyquant.codecs import ProductConfig, ScalarConfig, SparseConfig, scalar, sparse
from pyquant.codecs.packing import unpack_codes
from pyquant.codecs.product import as_conv_shape, codebook_tensors, rounded_codebook
from pyquant.declared import PackedCodes
from pyquant.entropy import weight_bytes
from pyquant.graph import Network, Node, Weight
from pyquant.learn.latent import Latent
from pyquant.learn.lookup import Lookup
from pyquant.torch_network import TorchNetwork

SPARED, MOST_SPARED = 0.002, 0.1  # shares of the bits of a rate that stay unused where codes are too long by a little
SMALLEST_UNIT = 1e-2  # of a tensor that begins at 0, as biases may


class Trainable(TorchNetwork):
    """A network whose compressed weights are put together from their centroids each time they are used.

    While `training`, centroids are fp32; in eval mode they are rounded to the dtype of the file, so that what is judged
    is what will be written. Codes stay, save those of grids, which training may move (`pyquant.learn.latent`) while
    their steps stay: the layer has a scale. Masks stay too. A scale or bias is trained where the original module has a
    place for it: one that is arithmetic of the module's own code is not. Layers that share a batch norm or a bias go on
    sharing it.
    """

    def __init__(self, network: Network, only: Weight | None = None) -> None:
        """Prepare to train all that can be trained, or the codebooks of one weight."""
        super().__init__(network)
        self.network = network
        self.lookups = nn.ModuleDict()  # a list for each compressed weight, one for each of its codebooks
        self.grids = nn.ModuleDict()  # one for each weight on grids
        self._on_grids: dict[str, Weight] = {}  # by the name of the codes
        self._scaled: dict[str, bool] = {}  # whether the weight of a layer holds the layer's scale
        self._keys: dict[str, str] = {}  # of the parameters trained, by the name of the tensor in the network
        self._integers: dict[str, Weight] = {}  # those with int8 codebooks, by the name of the codebook
        for node in network.graph.nodes:
            if node.weight is not None:
                self._add_weight(node.weight)
            self._add_epilogue(node)
        self._trained = set(self._keys.values())
        if only is not None:
            self._trained = {self._keys[only.tensor("codebook")]}
        for key in set(self._keys.values()) - self._trained:
            self.tensors[key].requires_grad_(False)

    def run_node(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Return what one layer makes of these inputs; its scale multiplies its weight or its outputs, the fewer."""
        if node.weight is not None:
            pixels = inputs[0].numel() // inputs[0].shape[1] // prod(node.attributes.get("stride", (1,)))
            self._scaled[node.name] = pixels > prod(node.weight.shape[1:])
        return super().run_node(node, inputs)

    def weight(self, node: Node) -> Tensor:
        """Return the weight of a convolution or linear layer as it stands now, with the layer's scale or without."""
        weight = self._unscaled(node)
        if (scale := self._own(node, "scale")) is None or not self._scaled[node.name]:
            return weight
        return weight * scale.view(-1, *(1,) * (weight.dim() - 1)).to(weight.dtype)

    def own(self, node: Node, role: str) -> Tensor | None:
        """Return a layer's `bias` as it stands now, or its `scale` where no weight holds it; None where it has none.

        In mixed precision it is rounded, since it would turn activations into fp32.
        """
        if role == "scale" and self._scaled.get(node.name, False):
            return None
        value = self._own(node, role)
        return None if value is None else value.to(_dtype(value))

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, each once."""
        return {key: self.tensors[key] for key in self._keys.values() if key in self._trained}

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Divide the gradient of each centroid by the number of blocks that use it: from their sum to their mean."""
        for name, lookups in self.lookups.items():
            gradient = self.tensors[name.removesuffix("codes") + "codebook"].grad
            assert isinstance(lookups, nn.ModuleList)
            if gradient is not None:
                for part, lookup in zip(gradient, lookups, strict=True):
                    assert isinstance(lookup, Lookup)
                    part /= lookup.counts().clamp_min(1)[:, None]

    def units(self) -> dict[str, float]:
        """Return the root mean square of each parameter that is trained: what its changes are measured in."""
        return {
            key: max(float(value.detach().square().mean().sqrt()), SMALLEST_UNIT if _is_epilogue(value) else 1e-8)
            for key, value in self.trained().items()
        }

    def values(self) -> dict[str, Tensor]:
        """Return copies of all that training changes, by name."""
        return {key: value.detach().clone() for key, value in self.trained().items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up what `values` returned."""
        for key, parameter in self.trained().items():
            parameter.copy_(values[key])

    def result(self) -> Network:
        """Return the network with what was trained, in the dtypes of the file."""
        tensors = dict(self.network.tensors)
        for name, key in self._keys.items():
            value = self.tensors[key].detach().cpu().numpy()
            if name in self._on_grids:
                tensors[name] = self._codes(self._on_grids[name], torch.from_numpy(value))
            elif (weight := self._integers.get(name)) is not None:
                assert isinstance(weight.codec, ProductConfig)
                kept = codebook_tensors(value, weight.codec)
                tensors |= {weight.tensor(role): tensor for role, tensor in kept.items()}
            else:
                tensors[name] = value.astype(tensors[name].dtype).reshape(tensors[name].shape)
        return replace(self.network, tensors=tensors)

    def _own(self, node: Node, role: str) -> Tensor | None:
        key = self._keys.get(node.tensor(role))
        return super().own(node, role) if key is None else self.tensors[key]

    def _unscaled(self, node: Node) -> Tensor:
        assert node.weight is not None
        weight, config = node.weight, node.weight.codec
        if isinstance(config, (ScalarConfig, SparseConfig)):
            key = self._keys[weight.tensor("codes")]
            numbers: Tensor = self.grids[key](self.tensors[key])
            return numbers.reshape(weight.shape).to(_dtype(numbers))
        if not isinstance(config, ProductConfig):
            return self._stored(weight.tensor("weight"))
        codebooks = self._stored(weight.tensor("codebook"))
        lookups = self.lookups[_key(weight.tensor("codes"))]
        assert isinstance(lookups, nn.ModuleList)
        parts = [lookup(book, _dtype(book)) for lookup, book in zip(lookups, codebooks, strict=True)]
        return weight_from_blocks(sum(parts[1:], parts[0]), weight)

    def _add_weight(self, weight: Weight) -> None:
        config = weight.codec
        if isinstance(config, (ScalarConfig, SparseConfig)):
            self._add_grids(weight, config)
            return
        role = "codebook" if isinstance(config, ProductConfig) else "weight"
        if weight.tensor(role) in self._keys:  # tied: another layer has brought it
            return
        if isinstance(config, ProductConfig):
            self._put(weight.tensor("weight"), None)
            codes = self.network.codes(weight).astype(np.int64).reshape(config.codebooks, -1)
            lookups = nn.ModuleList(Lookup(row, config.centroids) for row in torch.from_numpy(codes))
            self.lookups[_key(weight.tensor("codes"))] = lookups
        if isinstance(config, ProductConfig):
            stored = self.network.codebook(weight)
            if config.codebook_dtype == "int8":
                self._integers[weight.tensor("codebook")] = weight
        else:
            stored = self.network.weight(weight)
        self._train(weight.tensor(role), _key(weight.tensor(role)), torch.from_numpy(np.array(stored)))

    def _add_grids(self, weight: Weight, config: ScalarConfig | SparseConfig) -> None:
        name = weight.tensor("codes")
        if name in self._keys:  # tied: another layer has brought it
            return
        self._put(weight.tensor("weight"), None)
        numbers = torch.from_numpy(np.array(self.network.weight(weight))).reshape(weight.shape[0], -1)
        step, zero = (self.network.tensors[weight.tensor(role)] for role in ("step", "zero"))
        if isinstance(config, SparseConfig):
            kept = config.kept_mask(self.network.tensors_of(weight), weight.shape)
            no_codes = torch.zeros_like(numbers)  # they count at a rate, and there is none
            self.grids[_key(name)] = Latent(config.grids, no_codes, step, zero, kept)
        else:
            codes = unpack_codes(self.network.tensors[name], config.bits, numbers.numel())
            self.grids[_key(name)] = Latent(config, torch.from_numpy(codes.astype(np.float32)), step, zero)
        self._on_grids[name] = weight
        self._train(name, _key(name), numbers)

    def _codes(self, weight: Weight, numbers: Tensor) -> NDArray[np.uint8]:
        """Return the packed codes of a weight on grids; at a rate, of no more bytes than it allows, or before."""
        config, name = weight.codec, weight.tensor("codes")
        before = self.network.tensors_of(weight)
        grids = self.grids[_key(name)]
        assert isinstance(grids, Latent)
        if isinstance(config, SparseConfig):
            codes = grids.codes(numbers).numpy().astype(np.uint8)
            kept = config.kept_mask(before, weight.shape)
            return sparse.tensors_of(kept, codes, before["step"], before["zero"], config, weight.shape)["codes"]
        assert isinstance(config, ScalarConfig)
        packed = PackedCodes(models=1, count=prod(weight.shape), bits=config.bits)
        most = max(config.coded_bytes(weight.shape), weight_bytes(before, packed))
        for spared in np.arange(0.0, MOST_SPARED, SPARED):
            codes = grids.codes(numbers, spared=float(spared)).numpy().astype(np.uint8)
            tensors = scalar.tensors_of(codes, before["step"], before["zero"], config)
            if not config.rate or weight_bytes(tensors, packed) <= most:
                return tensors["codes"]
        return before["codes"]

    def _add_epilogue(self, node: Node) -> None:
        state = node.state
        for role in ("scale", "bias"):
            # A norm without a weight of its own can hold any mean, but not any scale.
            has_place = (
                state.norm_affine or role == "bias" if state.norm else role == "bias" and state.has_bias_of_its_own
            )
            value = self.network.own(node, role)
            if value is None or not has_place:
                continue
            key = _key(f"{state.norm or state.bias}.shared {role}")
            if key in self.tensors and not np.array_equal(self.tensors[key].detach().numpy(), value):
                key = _key(node.tensor(role))
            self._train(node.tensor(role), key, torch.from_numpy(np.array(value, np.float32)))

    def _train(self, name: str, key: str, value: Tensor) -> None:
        if name in self._keys:
            return
        if key not in self._keys.values():
            self.tensors[key] = nn.Parameter(value)
        self._keys[name] = key

    def _stored(self, name: str) -> Tensor:
        """Return a parameter, in eval mode with the values that the file can hold."""
        value: Tensor = self.tensors[self._keys[name]]
        if self.training:
            return value
        if (weight := self._integers.get(name)) is not None:
            assert isinstance(weight.codec, ProductConfig)
            rounded = rounded_codebook(value.detach().cpu().numpy(), weight.codec)
            return torch.from_numpy(rounded).to(value.device)
        return value.half().float() if self.network.tensors[name].dtype == np.float16 else value


def weight_from_blocks(blocks: Tensor, weight: Weight) -> Tensor:
    """Put blocks `[O * J, d]` together as `codecs.product.weight_from_blocks` does, with gradients."""
    config = weight.codec
    assert isinstance(config, ProductConfig)
    outputs, channels, rows, columns = as_conv_shape(weight.shape)
    (c, bh, bw), (gc, gh, gw) = config.block, config.grid(weight.shape)
    whole = blocks.view(outputs, gc, gh, gw, c, bh, bw).permute(0, 1, 4, 2, 5, 3, 6)
    return whole.reshape(outputs, gc * c, gh * bh, gw * bw)[:, :channels, :rows, :columns].reshape(weight.shape)


def _dtype(value: Tensor) -> torch.dtype:
    """Return the dtype to compute in: that of mixed precision, where it is on."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _is_epilogue(value: Tensor) -> bool:
    return value.dim() == 1


def _key(tensor_name: str) -> str:
    return tensor_name.replace(".", "/")  # PyTorch allows no dot in the name of a parameter
