"""Published checkpoints: both layouts, every fault of one, and our description of ResNets."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import FLOAT32_SUMS, random_f32, relative_error

from pyquant.classes import ClassName
from pyquant.errors import ConfigError, FormatError, InputError, SelfCheckError
from pyquant.file import read_model
from pyquant.graph import Graph, Network
from pyquant.interop import import_checkpoint, importer
from pyquant.interop.abgd import is_abgd, read_abgd
from pyquant.interop.checkpoint import network_from_checkpoint
from pyquant.interop.pqf import is_pqf, read_pqf
from pyquant.interop.resnet import RESNETS, ResNetConfig, resnet_config, resnet_graph
from pyquant.preprocessing import Preprocessing

torch = pytest.importorskip("torch", reason="published checkpoints are PyTorch files")

CLASSES = 6
TINY = ResNetConfig(bottleneck=True, blocks=(1, 1), stem=8, channels=(8, 16))
SMALL_INPUT = Preprocessing(resize=None, crop=(32, 32))

Entries = dict[str, Any]


def tiny_graph() -> Graph:
    return resnet_graph(TINY, CLASSES)


def coded_layers(rng: np.random.Generator) -> dict[str, tuple[Any, Any]]:
    """Return codes [O, J] and codebook [K, d] for all layers of the tiny ResNet but the first."""
    result = {}
    for node, weight in tiny_graph().weighted():
        if node.name != "conv1":
            patch = prod(weight.shape[2:])
            dim = 2 * patch if patch > 1 else 4
            codes = rng.integers(5, size=(weight.shape[0], prod(weight.shape[1:]) // dim), dtype=np.uint8)
            result[node.name] = codes, random_f32(rng, 5, dim).astype(np.float16)
    return result


def dense_tensors(rng: np.random.Generator) -> dict[str, Any]:
    """Return the first convolution, the batch norms and the last bias of the tiny ResNet, by state dict entry."""
    result = {"conv1.weight": random_f32(rng, 8, 3, 7, 7).astype(np.float16)}
    for node, weight in tiny_graph().weighted():
        if node.state.norm:
            result[f"{node.state.norm}.weight"] = random_f32(rng, weight.shape[0]).astype(np.float16)
            result[f"{node.state.norm}.bias"] = random_f32(rng, weight.shape[0]).astype(np.float16)
    return result | {"fc.bias": random_f32(rng, CLASSES)}


def abgd_entries(seed: int = 0) -> Entries:
    rng = np.random.default_rng(seed)
    entries: Entries = {}
    for name, (codes, codebook) in coded_layers(rng).items():
        entries[name] = {
            "centroids": codebook,
            "assignments": np.ascontiguousarray(codes.T).reshape(-1),
            "n_blocks": codes.shape[1],
            "is_conv": name != "fc",
            "k": 3 if name.endswith("conv2") else 1,
        }
    for key, value in dense_tensors(rng).items():
        layer, _, role = key.rpartition(".")
        entries.setdefault("fc_bias" if layer == "fc" else layer, {})[role] = value
    return entries


def pqf_entries(seed: int = 0) -> Entries:
    rng = np.random.default_rng(seed)
    entries: Entries = {}
    for name, (codes, codebook) in coded_layers(rng).items():
        entries |= {f"{name}.codes_matrix": codes, f"{name}.codebook": codebook}
    return entries | dense_tensors(rng)


def tiny_network(layout: str) -> Network:
    checkpoint = read_abgd(abgd_entries()) if layout == "abgd" else read_pqf(pqf_entries())
    return network_from_checkpoint(checkpoint, tiny_graph())


def save(entries: Any, path: Path) -> Path:
    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(entry) for key, entry in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    torch.save(tensors(entries), path)
    return path


@pytest.fixture
def tiny_arch(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture small enough for tests, which torchvision does not have."""
    monkeypatch.setitem(RESNETS, "tiny", TINY)
    monkeypatch.setattr(importer, "_torchvision_module", lambda network, arch: None)
    return "tiny"


# Architectures.


@pytest.mark.parametrize("arch", RESNETS)
def test_resnet_has_torchvision_s_names_and_shapes(arch: str) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        expected = {
            key: tuple(value.shape) for key, value in models.get_model(arch, num_classes=7).state_dict().items()
        }
    ours = {}
    for node, weight in resnet_graph(resnet_config(arch), 7).weighted():
        ours[node.state.weight] = weight.shape
        if node.state.bias:
            ours[node.state.bias] = weight.shape[:1]
        if node.state.norm:
            for entry in ("weight", "bias", "running_mean", "running_var"):
                ours[f"{node.state.norm}.{entry}"] = weight.shape[:1]
            ours[f"{node.state.norm}.num_batches_tracked"] = ()
    assert ours == expected


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d"])
def test_resnet_computes_what_torchvision_computes(arch: str, rng: np.random.Generator) -> None:
    models = pytest.importorskip("torchvision").models
    from pyquant.torch_network import TorchNetwork

    torch.manual_seed(0)
    module = models.get_model(arch, num_classes=7).eval()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    graph = resnet_graph(resnet_config(arch), 7)
    tensors = {}
    for node, weight in graph.weighted():
        tensors[weight.tensor("weight")] = state[node.state.weight]
        if norm := node.state.norm:  # as built: mean 0, variance 1
            tensors[node.tensor("scale")] = state[f"{norm}.weight"] / np.float32(np.sqrt(1 + node.state.eps))
            tensors[node.tensor("bias")] = state[f"{norm}.bias"]
        else:
            tensors[node.tensor("bias")] = state[node.state.bias]
    x = torch.from_numpy(random_f32(rng, 1, 3, 64, 64))
    with torch.no_grad():
        got, expected = TorchNetwork(Network(graph=graph, tensors=tensors))(x), module(x)
    assert relative_error(got.numpy(), expected.numpy()) < FLOAT32_SUMS


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown architecture 'vgg16'; known: resnet18, .*wide_resnet101_2"):
        resnet_config("vgg16")


# Layouts.


def test_layouts_are_told_apart() -> None:
    assert is_abgd(abgd_entries())
    assert not is_abgd(pqf_entries())
    assert is_pqf(pqf_entries())
    assert not is_pqf(abgd_entries())


@pytest.mark.parametrize("layout", ["abgd", "pqf"])
def test_weights_are_what_the_codes_say(layout: str) -> None:
    network, rng = tiny_network(layout), np.random.default_rng(0)
    coded = coded_layers(rng)
    dense = dense_tensors(rng)
    for node, weight in network.graph.weighted():
        if node.name not in coded:
            assert network.tensors[weight.tensor("weight")].dtype == np.float16
            np.testing.assert_array_equal(network.tensors[weight.tensor("weight")], dense[f"{node.name}.weight"])
            continue
        codes, codebook = coded[node.name]
        unrolled = network.weight(weight).reshape(weight.shape[0], -1)
        for o, row in enumerate(codes):
            np.testing.assert_array_equal(unrolled[o], np.concatenate([codebook[code] for code in row]))
        np.testing.assert_array_equal(network.codes(weight)[0], codes)
        assert network.tensors[weight.tensor("codebook")].dtype == np.float16


def test_batch_norms_have_mean_0_and_variance_1() -> None:
    network, entries = tiny_network("abgd"), abgd_entries()
    scale = entries["layer1.0.bn2"]["weight"].astype(np.float64) / np.sqrt(1 + 1e-5)
    np.testing.assert_array_equal(network.tensors["layer1.0.conv2.scale"], scale.astype(np.float32))
    np.testing.assert_array_equal(network.tensors["layer1.0.conv2.bias"], entries["layer1.0.bn2"]["bias"])


def abgd_with(layer: str, **changes: Any) -> Entries:
    entries = abgd_entries()
    entries[layer] = {**entries[layer], **changes}
    return entries


def without(entries: Entries, *keys: str) -> Entries:
    return {key: value for key, value in entries.items() if key not in keys}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (without(abgd_entries(), "layer1.0.conv1", "bn1"), "missing: bn1.weight, bn1.bias, layer1.0.conv1.weight"),
        ({**abgd_entries(), "extra": {"bias": np.ones(3)}}, "unknown: extra.bias"),
        (abgd_with("bn1", weight=np.ones(9, np.float32)), r"'bn1.weight': expected shape \[8\], got \[9\]"),
        (abgd_with("bn1", bias=np.full(8, np.nan, np.float32)), "'bn1.bias': holds NaN"),
        (abgd_with("bn1", weight=np.ones(8, np.int32)), "'bn1.weight': expected floating-point numbers, got int32"),
        (abgd_with("layer1.0.conv2", k=1), "'layer1.0.conv2': expected a kernel of 3x3, got 1x1"),
        (abgd_with("layer1.0.conv2", n_blocks=7), "32 assignments cannot be those of 7 blocks"),
        (abgd_with("layer1.0.conv2", n_blocks=8), "expected codes of 8 outputs with 72 weights, got 4 outputs"),
        (abgd_with("layer1.0.conv2", centroids=np.ones((4, 18), np.float16)), "expected codes from 0 to 3, got 0 to 4"),
        (abgd_with("layer1.0.conv2", centroids=np.ones((5, 18))), "expected a codebook of float16 or float32"),
        (abgd_with("layer1.0.conv2", centroids=np.full((5, 18), np.inf, np.float16)), "codebook holds NaN or infinite"),
        (abgd_with("layer1.0.conv2", centroids=np.ones(5, np.float16)), r"expected centroids of shape \[K, d\]"),
        (abgd_with("layer1.0.conv2", more=1), "expected assignments, centroids, is_conv, k, n_blocks, got "),
        ({**abgd_entries(), "step": 7}, "'step': expected a dict, got int"),
        (without(pqf_entries(), "layer1.0.conv1.codebook"), "missing: layer1.0.conv1.codebook"),
        (without(pqf_entries(), "layer1.0.conv1.codes_matrix"), "missing: layer1.0.conv1.codes_matrix"),
        ({**pqf_entries(), "layer1.0.conv1.codes_matrix": np.ones((8, 2))}, r"expected integers \[O, J\], got float64"),
        ({**pqf_entries(), "fc.codes_matrix": np.full((CLASSES, 16), -1, np.int16)}, "from 0 to 4, got -1 to -1"),
        ({**pqf_entries(), "epoch": 3}, "'epoch': expected a tensor"),
    ],
)
def test_faulty_entries_are_listed(entries: Entries, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        network_from_checkpoint(read_abgd(entries) if is_abgd(entries) else read_pqf(entries), tiny_graph())


def test_all_faults_are_reported_at_once() -> None:
    entries = without(abgd_with("layer1.0.conv2", k=1), "bn1")
    entries["extra"] = {"bias": np.ones(3)}
    with pytest.raises(FormatError, match=r"missing: bn1\.weight.*unknown: extra\.bias.*expected a kernel"):
        network_from_checkpoint(read_abgd(entries), tiny_graph())


# The whole import.


@pytest.mark.parametrize(("layout", "entries"), [("abgd", abgd_entries), ("pqf", pqf_entries)])
def test_import_writes_a_checked_file(
    layout: str, entries: Callable[[], Entries], tiny_arch: str, tmp_path: Path
) -> None:
    names = [ClassName(folder=f"f{i}", name=f"name {i}") for i in range(CLASSES)]
    out = tmp_path / "x.pqmodel"
    report = import_checkpoint(
        save(entries(), tmp_path / "x.pth"), arch=tiny_arch, out=out, classes=names, preprocessing=SMALL_INPUT
    )
    model = read_model(out)
    assert model.provenance["layout"] == layout
    assert model.provenance["arch"] == tiny_arch
    assert model.classes == tuple(names)
    assert model.network.graph.inputs[0].default == (3, 32, 32)
    expected = tiny_network(layout)
    assert model.network.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(model.network.tensors[name], value)
    assert report.bytes == out.stat().st_size
    assert report.max_relative_error < 1e-4
    dense = [row for row in report.layers if row.status == "dense"]
    assert [(row.name, row.reason) for row in dense] == [("conv1", "dense in the checkpoint")]
    assert all(row.relative_output_error is None for row in report.layers)


def test_same_checkpoint_gives_the_same_file(tiny_arch: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint = save(abgd_entries(), tmp_path / f"{name}.pth")
        import_checkpoint(checkpoint, arch=tiny_arch, out=tmp_path / name, preprocessing=SMALL_INPUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PyTorch checkpoint"),
        (b"no checkpoint at all", "not a PyTorch checkpoint"),
        (pickle.dumps({"x": _Evil()}, protocol=2), "not a PyTorch checkpoint"),
        ([1, 2], "expected a dict of entries, got list"),
        ({"conv1.weight": np.ones(3)}, "in neither known layout: .* found: conv1.weight"),
        (without(abgd_entries(), "fc"), "classes cannot be counted: there is no weight of the last layer 'fc'"),
        (abgd_entries(), "cannot be imported as resnet18: missing: layer1.1.conv1.weight"),
    ],
    ids=["empty", "text", "code", "list", "neither", "no-classifier", "other-architecture"],
)
def test_unusable_checkpoint_is_refused(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "x.pth"
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        save(content, checkpoint)
    with pytest.raises(FormatError, match=message):
        import_checkpoint(checkpoint, arch="resnet18", out=tmp_path / "x.pqmodel")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    assert "executed" not in capsys.readouterr().out


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_checkpoint(tmp_path / "x.pth", arch="resnet18", out=tmp_path / "x.pqmodel")


def test_checkpoint_is_not_overwritten(tiny_arch: str, tmp_path: Path) -> None:
    checkpoint = save(abgd_entries(), tmp_path / "x.pth")
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        import_checkpoint(checkpoint, arch=tiny_arch, out=checkpoint)
    assert checkpoint.read_bytes() == before


def test_wrong_number_of_classes_is_refused(tiny_arch: str, tmp_path: Path) -> None:
    checkpoint = save(abgd_entries(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="1 classes are named, but the network has 6 outputs"):
        import_checkpoint(
            checkpoint, arch=tiny_arch, out=tmp_path / "x.pqmodel", classes=[ClassName(folder="a", name="b")]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_file_that_fails_its_check_is_not_left(tiny_arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> float:
        raise SelfCheckError("not the same")

    checkpoint = save(abgd_entries(), tmp_path / "x.pth")
    (tmp_path / "old.pqmodel").write_bytes(b"what was here before")
    monkeypatch.setattr(importer, "_self_check", fail)
    for name in ("new.pqmodel", "old.pqmodel"):
        with pytest.raises(SelfCheckError):
            import_checkpoint(checkpoint, arch=tiny_arch, out=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pqmodel", "x.pth"]
    assert (tmp_path / "old.pqmodel").read_bytes() == b"what was here before"


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("abgd_resnet18_small_blocks", "resnet18"),
        ("abgd_resnet50_large_blocks", "resnet50"),
        ("pqf_resnet18", "resnet18"),
    ],
)
def test_published_checkpoint_is_read(name: str, arch: str, real_data: Path) -> None:
    checkpoint = importer._read_entries(importer._load(real_data / "checkpoints" / f"{name}.pth"))
    assert name.startswith(checkpoint.layout)
    assert checkpoint.num_classes("fc") == 1000
    network = network_from_checkpoint(checkpoint, resnet_graph(resnet_config(arch), 1000))
    dense = [node.name for node, weight in network.graph.weighted() if weight.codec_name == "dense"]
    assert dense == ["conv1"]
