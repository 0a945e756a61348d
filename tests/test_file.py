"""What is written into a `.pqmodel` is what is read from it, and files appear whole or not at all."""

import errno
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import IMAGES, conv2d, fill, golden_model, layer, linear

from pyquant.codecs import CodecConfig, DenseConfig, ProductConfig, ScalarConfig, SparseConfig
from pyquant.container import PREFIX_BYTES, unpack
from pyquant.errors import FormatError, InputError
from pyquant.file import ClassName, ModelFile, check_writable, dumps, loads, read_model, read_storage, write_model
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import unmeasured_ranges


@st.composite
def codecs(draw: st.DrawFn, inputs: int) -> CodecConfig:
    kind = draw(st.sampled_from(["dense", "product", "scalar", "sparse", "runs", "patterns"]))
    bits = draw(st.integers(2, 8))
    if kind == "scalar":
        return ScalarConfig(bits=bits)
    if kind == "sparse" or (kind == "runs" and inputs % 4 == 0):
        kept = draw(st.floats(0.01, 0.99))
        return SparseConfig(kept=kept, bits=bits, run=4 if kind == "runs" else 1)
    if kind == "patterns" and inputs > 1:
        return SparseConfig(kept=draw(st.integers(1, inputs - 1)) / inputs, bits=bits, of=inputs)
    if kind == "dense":
        return DenseConfig()
    return ProductConfig(
        block=(draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        centroids=draw(st.integers(2, 40) | st.sampled_from([255, 256, 257, 4096])),
        codebooks=draw(st.integers(1, 3)),
        codebook_dtype=draw(st.sampled_from(["float", "int8"])),
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A chain of convolutions and pointwise layers with names of all kinds, then perhaps a linear layer."""
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(str.isprintable),
                          min_size=5, max_size=5, unique=True))  # fmt: skip
    source, channels = names[0], draw(st.integers(1, 5))
    inputs = (GraphInput(name=source, shape=(None, channels, None, 4), default=(channels, 5, 4)),)
    nodes: list[Node] = []
    for name in names[1 : 1 + draw(st.integers(1, 3))]:
        if draw(st.booleans()):
            out = draw(st.integers(1, 6))
            kernel = draw(st.sampled_from([1, 3]))
            nodes.append(conv2d(name, source, (out, channels, kernel, kernel), draw(codecs(channels))))
            channels = out
        else:
            nodes.append(layer(draw(st.sampled_from(["relu", "silu", "sigmoid"])), name, source))
        source = name
    if draw(st.booleans()):
        nodes.append(layer("flatten", "flat", source))
        nodes.append(linear("last", "flat", (draw(st.integers(1, 6)), channels * 20), draw(codecs(4))))
        source = "last"
    network = fill(Graph(inputs=inputs, nodes=tuple(nodes), outputs=(source,)))
    return network.with_activation_ranges(unmeasured_ranges(network.graph)) if draw(st.booleans()) else network


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda word: word.isprintable() and not any(letter.isspace() for letter in word)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
preprocessings = st.builds(
    Preprocessing,
    resize=st.none() | st.integers(32, 512),
    crop=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    mean=st.tuples(*[st.floats(-1, 1, width=32)] * 3),
    std=st.tuples(*[st.floats(0.125, 4, width=32)] * 3),
)


@settings(max_examples=60, deadline=None)
@given(
    network=networks(),
    preprocessing=st.none() | preprocessings,
    names=st.lists(st.tuples(words, words), max_size=4, unique_by=lambda pair: pair[0]),
    provenance=st.dictionaries(words.filter(lambda key: key not in ("dense", "errors")), json_values, max_size=3),
)
def test_round_trip(
    network: Network, preprocessing: Preprocessing | None, names: list[tuple[str, str]], provenance: dict[str, object]
) -> None:
    output = network.graph.infer_shapes()[network.graph.outputs[0]]
    fits = len(output) != 2 or output[1] == len(names)
    classes = tuple(ClassName(folder=folder, name=name) for folder, name in names) if fits else ()
    model = ModelFile(network=network, preprocessing=preprocessing, classes=classes, provenance=provenance)
    data = dumps(model)
    read = loads(memoryview(data), "round trip")
    assert read.network.graph == network.graph
    assert (read.preprocessing, read.classes, read.provenance) == (preprocessing, classes, provenance)
    assert read.network.tensors.keys() == network.tensors.keys()
    for name, array in network.tensors.items():
        np.testing.assert_array_equal(read.network.tensors[name], array, strict=True)
        assert read.network.tensors[name].flags.aligned
        assert not read.network.tensors[name].flags.writeable
    assert dumps(read) == data


def test_order_of_dictionaries_does_not_matter() -> None:
    model = golden_model()
    backwards = replace(
        model,
        network=replace(model.network, tensors=dict(reversed(model.network.tensors.items()))),
        provenance=dict(reversed(model.provenance.items())),
    )
    assert dumps(backwards) == dumps(model)


def test_layout_of_the_bytes() -> None:
    data = dumps(golden_model(), fixed_length=True)
    header_bytes = int.from_bytes(data[:8], "little")
    assert (8 + header_bytes) % 64 == 0
    assert data[PREFIX_BYTES : PREFIX_BYTES + 19] == b'","format_version":'
    metadata, tensors = unpack(data)
    assert list(metadata) == ["format_version", "features", "preprocessing", "classes", "provenance", "graph"]
    # The widest dtype first, so that each tensor is aligned to its own.
    assert list(tensors) == sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    assert 8 + header_bytes + sum(array.nbytes for array in tensors.values()) == len(data)


def big_network(layers: int, channels: int) -> Network:
    """As many layers and names as a ResNet has, and tensors of its kinds."""
    nodes = [conv2d("conv1", "x", (channels, 3, 3, 3), DenseConfig())]
    for index in range(1, layers):
        name, source = f"layer{1 + index * 4 // layers}.{index % 6}.conv{index}", nodes[-1].name
        nodes.append(layer("relu", f"{name}.relu", source))
        shape = (channels, channels, 3, 3)
        nodes.append(conv2d(name, nodes[-1].name, shape, ProductConfig(block=(1, 3, 3), centroids=200)))
    nodes.append(layer("add", "sum", nodes[-1].name, "conv1"))
    return fill(Graph(inputs=(IMAGES,), nodes=tuple(nodes), outputs=("sum",)))


def test_header_of_a_resnet18_is_small() -> None:
    data = dumps(ModelFile(network=big_network(20, 8)))
    assert int.from_bytes(data[:8], "little") < 15_000


def test_reading_is_quick(tmp_path: Path) -> None:
    path = tmp_path / "big.pqmodel"
    write_model(path, ModelFile(network=big_network(53, 320)))  # 5 MB, and 8-bit codes that all need the check
    assert path.stat().st_size > 5_000_000
    times = []
    for _ in range(3):
        start = time.process_time()
        read_model(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.3  # measured: 0.02 s; the room is for slow machines


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "golden.pqmodel"
    size = write_model(path, golden_model())
    assert size == path.stat().st_size
    assert path.read_bytes() == dumps(golden_model())
    assert read_model(str(path)).classes == golden_model().classes
    assert os.listdir(tmp_path) == ["golden.pqmodel"]


def test_mode_of_the_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_model(tmp_path / "a.pqmodel", golden_model())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pqmodel").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_full_disk_leaves_everything_as_it_was(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pqmodel"
    path.write_bytes(b"what was there")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError, match=r"a\.pqmodel: cannot be written: No space left on device"):
        write_model(path, golden_model())
    monkeypatch.undo()
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["a.pqmodel"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on file sizes need a process of their own, made by fork")
def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    import resource
    import signal

    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            write_model(tmp_path / "a.pqmodel", golden_model())
        except InputError as error:
            code = 0 if "File too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(tmp_path) == []


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "a.pqmodel", golden_model())
    assert os.listdir(tmp_path) == []


def test_model_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    golden = golden_model()
    with pytest.raises(FormatError, match="missing tensors"):
        write_model(tmp_path / "a.pqmodel", replace(golden, network=replace(golden.network, tensors={})))
    assert os.listdir(tmp_path) == []


def test_places_where_no_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, message in [
        (tmp_path / "missing" / "a.pqmodel", "there is no folder"),
        (tmp_path / "file" / "a.pqmodel", "there is no folder"),
        (tmp_path, "is a folder"),
        (Path(os.devnull), "is not an ordinary file"),
        (tmp_path / ("n" * 300), "File name too long"),
        (Path("nul\0"), "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message):
            check_writable(path)
        with pytest.raises(InputError, match=message):
            write_model(path, golden_model())
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path / "a.pqmodel")


def test_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    source.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(source)
    for path in (source, tmp_path / "." / "weights.safetensors", tmp_path / "link"):
        with pytest.raises(InputError, match="is an input of this work"):
            check_writable(path, inputs=[tmp_path / "other", source])
    check_writable(tmp_path / "a.pqmodel", inputs=[source])
    assert source.read_bytes() == b"weights"


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.pqmodel")
    write_model(tmp_path / "link", golden_model())
    assert (tmp_path / "link").is_symlink()
    assert read_storage(tmp_path / "real.pqmodel").features == ("product", "rans")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, error, message in [
        ("missing", InputError, "missing: no such file"),
        ("loop", InputError, "loop: no such file"),
        ("pipe", InputError, "pipe: is not a file"),
        ("", InputError, "is not a file"),
        ("empty", FormatError, "empty: the file is empty"),
        ("nul\0", InputError, "nul"),
    ]:
        with pytest.raises(error, match=message):
            read_model(tmp_path / name)


def test_large_file_of_another_kind_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # a hole: it takes no room on the disk
    with pytest.raises(FormatError, match=r"large: not a \.pqmodel file"):
        read_model(path)
