"""Grams and moments equal their definitions, computed block by block and value by value."""

import numpy as np
import pytest

from pyquant import reference
from pyquant.codecs.product import as_conv_shape, weight_from_blocks
from pyquant.graph import Graph, GraphInput, Network, Node, Weight

torch = pytest.importorskip("torch", reason="learning needs PyTorch")

from pyquant.learn import moments  # noqa: E402
from pyquant.learn.moments import block_presence, channel_moments, combine_moments, input_moments  # noqa: E402


def layer(shape: tuple[int, ...], **attributes: object) -> Node:
    op = "conv2d" if len(shape) == 4 else "linear"
    return Node(
        op=op, name="layer", inputs=("x",), outputs=("y",), attributes=attributes, weight=Weight(name="w", shape=shape)
    )


def apply(node: Node, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return W x by the reference."""
    declared = GraphInput(name="x", shape=(None,) * x.ndim, default=x.shape[1:])
    network = Network(graph=Graph(inputs=(declared,), nodes=(node,), outputs=("y",)), tensors={"w.weight": weight})
    return reference.run(network, x)["y"]


CASES = [
    (layer((6, 4, 3, 3), padding=(1, 1, 1, 1)), (1, 3, 3), (5, 4, 7, 6)),
    (layer((6, 5, 3, 3), padding=(0, 1, 2, 1), stride=(2, 1)), (2, 3, 3), (2, 5, 7, 6)),
    (layer((6, 4, 5, 3), dilation=(1, 2)), (3, 2, 2), (2, 4, 9, 9)),
    (layer((6, 2, 3, 3), groups=3), (2, 3, 3), (2, 6, 5, 5)),
    (layer((6, 8, 1, 1), stride=(2, 2), padding=(1, 0, 0, 0)), (4, 1, 1), (3, 8, 5, 5)),
    (layer((6, 8, 3, 3), padding=(1, 1, 1, 1)), (4, 1, 1), (3, 8, 5, 5)),
    (layer((6, 10)), (4, 1, 1), (7, 10)),
]


@pytest.mark.parametrize(("node", "block", "x_shape"), CASES)
def test_gram_equals_that_of_each_blocks_inputs(
    node: Node, block: tuple[int, int, int], x_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    assert node.weight is not None
    _, *inner = as_conv_shape(node.weight.shape)
    groups = node.attributes.get("groups", 1)
    x = rng.standard_normal(x_shape, dtype=np.float32)
    d = block[0] * block[1] * block[2]
    positions = int(np.prod([-(-size // step) for size, step in zip(inner, block, strict=True)]))
    expected, centred = np.zeros((2, d, d))
    for j in range(positions):
        # A layer whose output i is the input that meets weight i of block j.
        blocks = np.zeros((d, positions, d), np.float32)
        blocks[:, j] = np.eye(d)
        pick = weight_from_blocks(blocks, (d, *node.weight.shape[1:]), block)
        probe = Node(
            op=node.op, name="probe", inputs=("x",), outputs=("y",), attributes=node.attributes,
            weight=Weight(name="w", shape=(groups * d, *pick.shape[1:])),
        )  # fmt: skip
        v = apply(probe, np.concatenate([pick] * groups), x).reshape(x_shape[0], groups, d, -1)
        expected += np.einsum("ngip,ngjp->ij", v, v)
        v = v - v.mean(axis=(0, 3), keepdims=True)
        centred += np.einsum("ngip,ngjp->ij", v, v)
    result = input_moments(node, block, torch.from_numpy(x))
    np.testing.assert_allclose(result.gram(centred=False), expected, rtol=1e-4, atol=1e-4 * expected.max())
    np.testing.assert_allclose(result.gram(centred=True), centred, rtol=1e-4, atol=1e-4 * expected.max())


def test_input_moments_of_batches_add_up(rng: np.random.Generator) -> None:
    node, block, shape = CASES[0]
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    whole = input_moments(node, block, x)
    halves = input_moments(node, block, x[:2]).plus(input_moments(node, block, x[2:]))
    np.testing.assert_allclose(halves.gram(centred=True), whole.gram(centred=True), rtol=1e-5)


@pytest.mark.parametrize(("node", "block", "x_shape"), CASES)
def test_apply_weight_is_the_layer_without_its_epilogue(
    node: Node, block: tuple[int, int, int], x_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    assert node.weight is not None
    weight = rng.standard_normal(node.weight.shape, dtype=np.float32)
    x = rng.standard_normal(x_shape, dtype=np.float32)
    result = moments.apply_weight(node, torch.from_numpy(weight), torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(), apply(node, weight, x), rtol=1e-4, atol=1e-4)


def test_presence_counts_the_blocks_that_have_a_weight() -> None:
    np.testing.assert_array_equal(block_presence((8, 5), (2, 1, 1)), [3, 2])
    np.testing.assert_array_equal(block_presence((8, 2, 3, 3), (1, 2, 3)), [4, 4, 4, 2, 2, 2])


def test_moments_of_batches_combine_to_those_of_all(rng: np.random.Generator) -> None:
    values = (1e3 + rng.standard_normal((10, 3, 4, 5))).astype(np.float32)
    parts = [channel_moments(torch.from_numpy(part)) for part in (values[:3], values[3:4], values[4:])]
    combined = combine_moments(parts)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(combined.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(combined.variance, exact.var(axis=(0, 2, 3), ddof=1), rtol=1e-9)


def test_a_single_value_has_no_variance() -> None:
    assert channel_moments(torch.ones(1, 2)).variance.tolist() == [0, 0]
