"""The network executed by PyTorch against the reference operations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyquant import layers, reference
from pyquant.codecs import ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.errors import ConfigError, InputError
from pyquant.graph import Graph, GraphInput, Network, Node, Weight

torch = pytest.importorskip("torch", reason="PyTorch is what runs these networks")

from pyquant import torch_network  # noqa: E402 - needs torch
from pyquant.torch_network import TorchNetwork, to_torch  # noqa: E402


def every_operation() -> Network:
    """Return a network that has each operation at least once, on an input of [N, 3, 8, 9] or larger."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    nodes: list[Node] = []

    def add(op: str, *inputs: str, weight: tuple[int, ...] = (), own: tuple[str, ...] = (), **attributes: Any) -> str:
        name = f"{op}_{len(nodes)}"
        channels = weight[0] if weight else 6
        if weight:
            tensors[f"{name}.weight"] = rng.standard_normal(weight).astype(np.float32) * np.float32(0.3)
        for role in own:
            tensors[f"{name}.{role}"] = rng.standard_normal(channels).astype(np.float32)
        nodes.append(
            Node(
                op=op,
                name=name,
                inputs=inputs,
                outputs=(f"{name}.out",),
                attributes=attributes,
                weight=Weight(name=name, shape=weight) if weight else None,
                tensors=own,
            )
        )
        return f"{name}.out"

    x = add("conv2d", "image", weight=(6, 3, 3, 2), own=("scale", "bias"), padding=(1, 1, 0, 1), stride=(1, 1))
    y = add("conv2d", x, weight=(6, 2, 3, 3), own=("bias",), padding=(2, 2, 2, 2), dilation=(2, 2), groups=3)
    y = add("affine", y, own=("scale", "bias"))
    for op in ("relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "relu"):
        y = add(op, y)
    y = add("mul", add("add", x, y), y)
    y = add("avg_pool2d", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=True, count_include_pad=False)
    y = add("upsample", y, mode="bilinear", factor=(2.0, 2.0))
    y = add("upsample", y, mode="nearest", size=(8, 9))
    shuffled = add("pixel_shuffle", y, factor=(3, 2))
    y = add("mul", y, add("upsample_like", shuffled, y, mode="nearest"))
    y = add("max_pool2d", y, kernel=(2, 2), stride=(2, 2), padding=(1, 1), ceil_mode=True)
    y = add("concat", y, y, axis=1)
    pooled = add("adaptive_avg_pool2d", y, output_size=(2, 3))
    flat = add("flatten", pooled)
    scores = add("linear", flat, weight=(5, 72), own=("bias",))
    graph = Graph(
        inputs=(GraphInput(name="image", shape=(None, 3, None, None), default=(3, 8, 9)),),
        nodes=tuple(nodes),
        outputs=(scores, pooled),
    )
    return Network(graph=graph, tensors=tensors)


@pytest.fixture(scope="module")
def network() -> Network:
    return every_operation()


@pytest.fixture
def image() -> Any:
    return torch.randn(2, 3, 10, 11, generator=torch.Generator().manual_seed(0))


def test_every_operation_is_there(network: Network) -> None:
    assert set(torch_network.OPS) == set(layers.OPS)
    # See test_detection_operations.py and test_anchor_detections.py.
    of_detectors = {"proposals", "roi_align", "detections", "anchor_detections", "select_masks"}
    assert {node.op for node in network.graph.nodes} == set(layers.OPS) - of_detectors


def test_computes_what_the_reference_does(network: Network, image: Any) -> None:
    got = TorchNetwork(network)(image)
    expected = reference.run(network, image.numpy())
    assert list(got) == list(network.graph.outputs)
    for name, array in expected.items():
        # 20 layers of fp32 sums of at most 72 products.
        np.testing.assert_allclose(got[name].numpy(), array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


def test_layer_by_layer_is_the_same(network: Network, image: Any) -> None:
    executable = TorchNetwork(network)
    values = {"image": image}
    for node in network.graph.nodes:
        values[node.output] = executable.run_node(node, [values[name] for name in node.inputs])
    for name, tensor in executable(image).items():
        assert torch.equal(values[name], tensor)


def test_product_weights_are_decoded(image: Any) -> None:
    rng = np.random.default_rng(0)
    config = ProductConfig(block=(1, 3, 3), centroids=4)
    tensors = {
        "conv.codes": pack_codes(rng.integers(4, size=(1, 5, 3)), config.code_bits),
        "conv.codebook": rng.standard_normal((1, 4, 9)).astype(np.float16),
    }
    weight = Weight(name="conv", shape=(5, 3, 3, 3), codec=config)
    node = Node(op="conv2d", name="conv", inputs=("image",), outputs=("conv",), weight=weight)
    declared = GraphInput(name="image", shape=(None, 3, None, None), default=(3, 8, 8))
    network = Network(graph=Graph(inputs=(declared,), nodes=(node,), outputs=("conv",)), tensors=tensors)
    expected = reference.run(network, image.numpy())["conv"]
    np.testing.assert_allclose(TorchNetwork(network)(image).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_weights_and_epilogues_can_be_replaced(network: Network, image: Any) -> None:
    executable = TorchNetwork(network)
    node = network.graph.nodes[0]
    before = network.weight(node.weight) if node.weight else None
    executable.set_weight(node.name, torch.zeros(6, 3, 3, 2))
    executable.set_epilogue(node.name, None, torch.arange(6.0))
    out = executable.run_node(node, [image])
    assert torch.equal(out, torch.arange(6.0).view(6, 1, 1).expand_as(out))
    assert node.weight is not None
    np.testing.assert_array_equal(network.weight(node.weight), before)


def test_wrong_weights_are_refused(network: Network) -> None:
    executable = TorchNetwork(network)
    with pytest.raises(ConfigError, match="no weight is called 'nowhere'"):
        executable.set_weight("nowhere", torch.zeros(1))
    with pytest.raises(ConfigError, match=r"weight 'conv2d_0': expected shape \[6, 3, 3, 2\], got \[1\]"):
        executable.set_weight("conv2d_0", torch.zeros(1))


def test_wrong_inputs_are_refused(network: Network) -> None:
    executable = TorchNetwork(network)
    with pytest.raises(InputError, match=r"input 'image': expected shape \[any, 3, any, any\], got \[1, 4, 8, 9\]"):
        executable(torch.zeros(1, 4, 8, 9))
    with pytest.raises(InputError, match="expected 1 input tensors, got 2"):
        executable(torch.zeros(1, 3, 8, 9), torch.zeros(1, 3, 8, 9))


def test_network_is_not_changed_through_the_module(network: Network) -> None:
    copies = {name: array.copy() for name, array in network.tensors.items()}
    with torch.no_grad():
        for parameter in TorchNetwork(network).parameters():
            parameter.zero_()
    for name, array in copies.items():
        np.testing.assert_array_equal(network.tensors[name], array)


def test_file_becomes_a_module(network: Network, image: Any, tmp_path: Path) -> None:
    from pyquant.file import ModelFile, write_model

    graph = replace(network.graph, outputs=network.graph.outputs[:1])
    single = Network(graph=graph, tensors=network.tensors)
    write_model(tmp_path / "m.pqmodel", ModelFile(network=single, preprocessing=None, classes=(), provenance={}))
    module = to_torch(tmp_path / "m.pqmodel")
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(module(image), TorchNetwork(single)(image))
