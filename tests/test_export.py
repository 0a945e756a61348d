"""The decoded network as a state dict, as safetensors and as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import F32, FLOAT32_SUMS, model_file, random_f32, relative_error, tiny_network

from pyquant import reference
from pyquant.errors import ConfigError, InputError
from pyquant.export import export, export_onnx, export_safetensors, state_dict
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node, StateNames, Weight
from pyquant.layers import OPS


def run_onnx(path: Path, inputs: list[F32]) -> list[F32]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime checks what was exported")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}))


# State dict.


def test_state_dict_loads_strictly_and_keeps_the_function(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")

    class Stem(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(8, eps=1e-2)

    class Module(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = Stem()
            self.last = torch.nn.Conv2d(8, 5, 1, stride=2)
            self.fc = torch.nn.Linear(5, 4, bias=False)

        def forward(self, x: Any) -> Any:
            x = self.last(self.stem.norm(self.stem.conv(x)).relu())
            return self.fc(x.mean((2, 3)))

    network = tiny_network(rng)
    module = Module().eval()
    state = {key: torch.from_numpy(np.array(value)) for key, value in state_dict(network).items()}
    module.load_state_dict(state, strict=True)
    x = random_f32(rng, 2, 3, 9, 7)
    with torch.no_grad():
        got = module(torch.from_numpy(x)).numpy()
    assert relative_error(got, reference.run(network, x)["y"]) < FLOAT32_SUMS


def shared_layers() -> Any:
    """Return a module with a norm before any convolution, one convolution used twice, and a weight with two names."""
    from torch import nn

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm2d(3)
            self.grow = nn.Conv2d(3, 8, 1)
            self.twice = nn.Conv2d(8, 8, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)])
            self.tied = nn.Conv2d(8, 8, 3, padding=1)
            self.tied.weight = self.twice.weight
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Any) -> Any:
            x = self.grow(self.first(x))
            for norm in self.norms:
                x = norm(self.twice(x)).relu()
            return self.pool(self.tied(x)).flatten(1)

    return Shared()


def transposed() -> Any:
    from torch import nn

    last = nn.ConvTranspose2d(5, 2, 2, stride=2, bias=False)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, (2, 3), stride=(2, 3)), nn.ReLU(), last)


def residual() -> Any:
    import tiny_networks

    return tiny_networks.residual()


@pytest.mark.parametrize("build", [residual, shared_layers, transposed])
def test_captured_network_goes_back_into_its_module(build: Callable[[], Any]) -> None:
    torch = pytest.importorskip("torch")
    from pyquant.capture import capture

    torch.manual_seed(0)
    module, other = build(), build()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    module.eval()
    state = state_dict(capture(module, (3, 16, 16)))
    other.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        got, expected = other.eval()(x), module(x)
    assert relative_error(got.numpy(), expected.numpy()) < FLOAT32_SUMS


def norm_nodes(*states: StateNames, shared: str = "") -> Network:
    """Return convolutions in a chain, one per state, each `[2, 2, 1, 1]` with scale 0.5, 1.5, .. and bias 1, 2, .."""
    nodes, tensors = [], {}
    for i, state in enumerate(states):
        weight = Weight(name=shared or f"conv{i}", shape=(2, 2, 1, 1))
        nodes.append(
            Node(
                op="conv2d",
                name=f"conv{i}",
                inputs=(f"v{i}",),
                outputs=(f"v{i + 1}",),
                weight=weight,
                tensors=("scale", "bias"),
                state=state,
            )
        )
        tensors[weight.tensor("weight")] = np.ones((2, 2, 1, 1), np.float32)
        tensors[f"conv{i}.scale"] = np.full(2, 0.5 + i, np.float32)
        tensors[f"conv{i}.bias"] = np.full(2, 1.0 + i, np.float32)
    declared = GraphInput(name="v0", shape=(None, 2, None, None), default=(2, 4, 4))
    graph = Graph(inputs=(declared,), nodes=tuple(nodes), outputs=(f"v{len(nodes)}",))
    return Network(graph=graph, tensors=tensors)


def test_norm_without_affine_holds_scale_and_bias_in_its_statistics() -> None:
    torch = pytest.importorskip("torch")
    network = norm_nodes(StateNames(weight="conv.weight", norm="norm", norm_affine=False, eps=1e-3))
    state = {key: torch.from_numpy(np.array(value)) for key, value in state_dict(network).items()}
    module = torch.nn.ModuleDict(
        {"conv": torch.nn.Conv2d(2, 2, 1, bias=False), "norm": torch.nn.BatchNorm2d(2, eps=1e-3, affine=False)}
    ).eval()
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        got = module["norm"](module["conv"](torch.ones(1, 2, 1, 1))).flatten()
    np.testing.assert_allclose(got, [2.0 * 0.5 + 1.0] * 2, rtol=1e-6)


def test_affine_layer_is_a_batch_norm_of_its_own() -> None:
    node = Node(
        op="affine",
        name="norm",
        inputs=("x",),
        outputs=("y",),
        tensors=("scale", "bias"),
        state=StateNames(norm="norm", eps=3.0),
    )
    graph = Graph(inputs=(GraphInput(name="x", shape=(None, 2), default=(2,)),), nodes=(node,), outputs=("y",))
    tensors = {"norm.scale": np.array([1.5, -2.0], np.float32), "norm.bias": np.array([0.0, 1.0], np.float32)}
    state = state_dict(Network(graph=graph, tensors=tensors))
    np.testing.assert_array_equal(state["norm.weight"], [3.0, -4.0])  # sqrt(1 + 3) = 2
    np.testing.assert_array_equal(state["norm.bias"], [0.0, 1.0])
    assert state["norm.num_batches_tracked"].dtype == np.int64
    assert state["norm.num_batches_tracked"].shape == ()


def test_arithmetic_without_a_module_has_no_entries() -> None:
    node = Node(op="affine", name="mul", inputs=("x",), outputs=("y",), tensors=("scale", "bias"))
    graph = Graph(inputs=(GraphInput(name="x", shape=(None, 2), default=(2,)),), nodes=(node,), outputs=("y",))
    tensors = {"mul.scale": np.full(2, 3.0, np.float32), "mul.bias": np.zeros(2, np.float32)}
    assert state_dict(Network(graph=graph, tensors=tensors)) == {}


def test_one_norm_with_two_statistics_cannot_be_expressed() -> None:
    network = norm_nodes(StateNames(norm="norm"), StateNames(norm="norm"))
    with pytest.raises(InputError, match=r"'conv0' and 'conv1' need different values of 'norm\.weight'"):
        state_dict(network)


def test_shared_weight_appears_under_each_of_its_names() -> None:
    network = norm_nodes(
        StateNames(weight="a.weight", norm="n0"), StateNames(weight="b.weight", norm="n1"), shared="conv0"
    )
    state = state_dict(network)
    np.testing.assert_array_equal(state["a.weight"], state["b.weight"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (StateNames(weight="c.weight"), "has a scale, but no batch norm"),
        (StateNames(weight="c.weight", norm="n", norm_affine=False), "its scale cannot be -1"),
    ],
)
def test_tensor_without_a_place_is_refused(state: StateNames, message: str) -> None:
    network = norm_nodes(state)
    tensors = {**network.tensors, "conv0.scale": np.full(2, -1.0, np.float32)}
    with pytest.raises(InputError, match=message):
        state_dict(replace(network, tensors=tensors))


def test_bias_without_a_place_is_refused() -> None:
    network = norm_nodes(StateNames(weight="c.weight"))
    node = replace(network.graph.nodes[0], tensors=("bias",))
    with pytest.raises(InputError, match="has a bias, but the module had none"):
        state_dict(replace(network, graph=replace(network.graph, nodes=(node,))))


def test_safetensors_holds_the_state_dict(rng: np.random.Generator, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    network = tiny_network(rng)
    export_safetensors(model_file(network), tmp_path / "x.safetensors")
    loaded, expected = load_file(tmp_path / "x.safetensors"), state_dict(network)
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(loaded[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


# ONNX.


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation with attributes, on inputs of these shapes, batch included."""

    op: str
    shapes: tuple[tuple[int, ...], ...] = ((2, 4, 7, 9),)
    attributes: tuple[tuple[str, Any], ...] = ()
    weight: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join(f'{key}={value}' for key, value in self.attributes)}"


def case(op: str, *shapes: tuple[int, ...], weight: tuple[int, ...] = (), tensors: str = "", **attributes: Any) -> Case:
    return Case(
        op=op,
        shapes=shapes or ((2, 4, 7, 9),),
        attributes=tuple(attributes.items()),
        weight=weight,
        tensors=tuple(tensors.split()),
    )


CASES = [
    case("conv2d", weight=(6, 4, 3, 3), tensors="scale bias", padding=(1, 0, 2, 1), stride=(2, 1)),
    case("conv2d", weight=(6, 2, 3, 2), groups=2, dilation=(2, 1)),
    case("conv2d", weight=(4, 1, 1, 1), tensors="bias", groups=4),
    case("linear", (3, 10), weight=(4, 10), tensors="scale bias"),
    case("linear", (3, 10), weight=(4, 10)),
    case("affine", tensors="scale bias"),
    case("affine", (2, 5), tensors="scale bias"),
    *(case(op) for op in ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid")),
    case("add", (2, 4, 7, 9), (2, 4, 7, 9)),
    case("mul", (2, 4, 7, 9), (2, 4, 1, 1)),
    case("concat", (2, 4, 7, 9), (2, 3, 7, 9), axis=1),
    case("concat", (2, 4, 7, 9), (2, 4, 7, 3), axis=3),
    case("max_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    case("max_pool2d", kernel=(3, 2), stride=(2, 2), dilation=(2, 1), ceil_mode=True),
    *(
        case("avg_pool2d", kernel=(3, 2), stride=(2, 3), padding=(1, 1), count_include_pad=counted, ceil_mode=ceil)
        for counted in (False, True)
        for ceil in (False, True)
    ),
    case("avg_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 0), divisor=5),
    case("avg_pool2d", kernel=(2, 3), stride=(3, 2), padding=(1, 1), divisor=4, ceil_mode=True),
    *(case("adaptive_avg_pool2d", output_size=size) for size in ((1, 1), (7, 9), (3, 4), (10, 3))),
    case("flatten"),
    case("flatten", start_axis=2),
    case("upsample", mode="nearest", factor=(2.0, 2.0)),
    case("upsample", mode="nearest", size=(11, 5)),
    case("upsample", mode="bilinear", factor=(2.0, 3.0)),
    case("upsample", mode="bilinear", factor=(1.7, 0.5)),
    case("upsample", mode="bilinear", size=(13, 4)),
    case("upsample", mode="bilinear", size=(13, 4), align_corners=True),
    case("upsample_like", (2, 4, 7, 9), (2, 1, 11, 5), mode="nearest"),
    case("upsample_like", (2, 4, 7, 9), (2, 1, 3, 19), mode="bilinear"),
    *(case("pixel_shuffle", (2, 12, 3, 5), factor=factor) for factor in ((2, 2), (3, 2), (1, 4))),
]


def single_layer(case: Case, rng: np.random.Generator, *, free: bool) -> Network:
    """Return the network of one layer; `free` leaves height and width open."""
    names = tuple(f"x{i}" for i in range(len(case.shapes)))
    weight = Weight(name="layer", shape=case.weight) if case.weight else None
    node = Node(
        op=case.op,
        name="layer",
        inputs=names,
        outputs=("y",),
        attributes=dict(case.attributes),
        weight=weight,
        tensors=case.tensors,
    )
    channels = case.weight[0] if case.weight else case.shapes[0][1]
    tensors = {f"layer.{role}": random_f32(rng, channels) for role in case.tensors}
    if weight is not None:
        tensors["layer.weight"] = random_f32(rng, *case.weight)
    inputs = tuple(
        GraphInput(name=name, shape=(None, shape[1], *(None if free else s for s in shape[2:])), default=shape[1:])
        for name, shape in zip(names, case.shapes, strict=True)
    )
    graph = Graph(inputs=inputs, nodes=(node,), outputs=("y",))
    graph.check_edges()
    return Network(graph=graph, tensors=tensors)


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPS) - {
        "proposals",
        "roi_align",
        "detections",
        "anchor_detections",
        "select_masks",
    }


@pytest.mark.parametrize("free", [True, False], ids=["free", "fixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_onnx_operation_agrees_with_the_reference(
    case: Case, free: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    network = single_layer(case, rng, free=free)
    export_onnx(model_file(network), tmp_path / "layer.onnx")
    inputs = [random_f32(rng, *shape) for shape in case.shapes]
    (got,) = run_onnx(tmp_path / "layer.onnx", inputs)
    expected = reference.run(network, *inputs)["y"]
    assert got.shape == expected.shape
    assert relative_error(got, expected) < FLOAT32_SUMS


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 17, 11)])
def test_onnx_takes_any_free_size(shape: tuple[int, ...], rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    network = tiny_network(rng)
    export_onnx(model_file(network), tmp_path / "x.onnx")
    x = random_f32(rng, *shape)
    (got,) = run_onnx(tmp_path / "x.onnx", [x])
    assert relative_error(got, reference.run(network, x)["y"]) < FLOAT32_SUMS


@pytest.mark.parametrize("size", [5, 8, 12])
def test_onnx_adaptive_pooling_follows_the_input_size(size: int, rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    network = single_layer(case("adaptive_avg_pool2d", output_size=(3, 5)), rng, free=True)
    export_onnx(model_file(network), tmp_path / "x.onnx")
    x = random_f32(rng, 1, 4, size, size + 1)
    (got,) = run_onnx(tmp_path / "x.onnx", [x])
    assert relative_error(got, reference.run(network, x)["y"]) < FLOAT32_SUMS


def test_same_network_gives_the_same_onnx_bytes(rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = model_file(tiny_network(rng))
    export_onnx(model, tmp_path / "a.onnx")
    export_onnx(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("write", [export_onnx, export_safetensors])
def test_failed_export_leaves_nothing(
    write: Callable[[ModelFile, Path], int], rng: np.random.Generator, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match="there is no folder"):
        write(model_file(tiny_network(rng)), tmp_path / "missing" / "x")
    assert not list(tmp_path.iterdir())


def test_suffix_chooses_the_format(rng: np.random.Generator, tmp_path: Path) -> None:
    model = model_file(tiny_network(rng))
    assert export(model, tmp_path / "x.safetensors") == (tmp_path / "x.safetensors").stat().st_size
    with pytest.raises(ConfigError, match=r"\*\.onnx or \*\.safetensors, got 'x\.pt'"):
        export(model, tmp_path / "x.pt")
