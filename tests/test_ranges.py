"""Activation ranges: measured on inputs of a network, the same for the same inputs, and written into files."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hand_made import model_file, tiny_network
from small_models import IMAGES, layer

from pyquant import calibrate
from pyquant.cli import commands
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile, dumps, read_model, read_storage, write_model
from pyquant.graph import Graph, GraphInput, Network
from pyquant.histogram import Histogram
from pyquant.learn.calibration import from_arrays
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import measure_ranges, some_batches, unmeasured_ranges, with_ranges
from pyquant.reference import all_values


def images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal((count, 3, 8, 8), dtype=np.float32)


def chain(*nodes: str, fixed_batch: int | None = None) -> Network:
    """Return a network of layers without weights, one after the other."""
    layers = [layer(op, f"layer{i}", f"layer{i - 1}" if i else "x") for i, op in enumerate(nodes)]
    inputs = (replace(IMAGES, shape=(fixed_batch, 3, None, None)),)
    return Network(graph=Graph(inputs=inputs, nodes=tuple(layers), outputs=(layers[-1].name,)), tensors={})


def test_every_value_has_the_range_of_its_numbers(rng: np.random.Generator) -> None:
    network = tiny_network(rng)
    inputs = images(rng, 5)
    ranges = measure_ranges(network, [[inputs]])
    assert ranges.dtype == np.float32
    values = all_values(network, inputs)
    assert list(values) == list(network.graph.values())
    for name, got in zip(values, ranges, strict=True):
        histogram = Histogram()
        for turn in range(5):
            histogram.add(values[name][turn : turn + 1], turn)
        # The oracle adds up in another order.
        np.testing.assert_allclose(got, histogram.best_range(), rtol=0.05, atol=1e-3 * np.ptp(got), err_msg=name)
    assert ranges[network.graph.values().index("b"), 0] == 0  # behind a ReLU


def test_same_inputs_give_the_same_bits(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyquant import histogram

    monkeypatch.setattr(histogram, "COUNTED", 50)
    network = tiny_network(rng)
    inputs = images(rng, 7)
    expected = measure_ranges(network, [[inputs]], threads=1)
    for threads, cuts in ((2, [3]), (5, [1, 2, 6])):
        parts = [[part] for part in np.split(inputs, cuts)]
        np.testing.assert_array_equal(measure_ranges(network, parts, threads=threads), expected)


def test_inputs_of_several_sizes(rng: np.random.Generator) -> None:
    wide = 3 * rng.standard_normal((1, 3, 9, 13), dtype=np.float32)
    ranges = measure_ranges(chain("relu", "sigmoid"), [[images(rng, 2)], [wide]])
    assert ranges[0, 0] < -4 < 4 < ranges[0, 1]
    assert ranges[1, 0] == ranges[2, 0] == 0
    assert ranges[2, 1] == pytest.approx(1, abs=0.02)


def test_network_with_several_inputs(rng: np.random.Generator) -> None:
    inputs = (IMAGES, GraphInput(name="y", shape=(None, 3, None, None), default=(3, 8, 8)))
    network = Network(graph=Graph(inputs=inputs, nodes=(layer("add", "sum", "x", "y"),), outputs=("sum",)), tensors={})
    x, y = np.ones((2, 3, 8, 8), np.float32), np.full((2, 3, 8, 8), -3, np.float32)
    np.testing.assert_allclose(measure_ranges(network, [[x, y]]), [[0, 1], [-3, 0], [-2, 0]])
    with pytest.raises(InputError, match=r"the arrays of a batch have \[2, 1\] inputs; expected equal numbers"):
        measure_ranges(network, [[x, y[:1]]])
    with pytest.raises(InputError, match="takes 2 inputs, got 1"):
        measure_ranges(network, [[x]])


def test_network_that_fixes_its_batch(rng: np.random.Generator) -> None:
    network = chain("relu", fixed_batch=2)
    assert measure_ranges(network, [[images(rng, 4)]]).shape == (2, 2)
    with pytest.raises(InputError, match=r"expected shape \[2, 3, any, any\], got \[1, 3, 8, 8\]"):
        measure_ranges(network, [[images(rng, 3)]])


@pytest.mark.parametrize(
    ("network", "number", "message"),
    [
        (chain("relu", "mul"), 1e30, r"layer 'layer1' \(mul\): its output holds numbers that are not finite"),
        (chain("relu"), np.nan, "input 'x' holds numbers that are not finite"),
    ],
    ids=["layer", "input"],
)
def test_numbers_that_are_not_finite_are_refused(network: Network, number: float, message: str) -> None:
    if network.graph.nodes[-1].op == "mul":
        square = replace(network.graph.nodes[-1], inputs=("layer0", "layer0"))
        network = replace(network, graph=replace(network.graph, nodes=(network.graph.nodes[0], square)))
    inputs = np.zeros((2, 3, 8, 8), np.float32)
    inputs[1, 2, 7, 7] = number
    with pytest.raises(InputError, match=message):
        measure_ranges(network, [[inputs]])


def test_no_inputs_and_no_threads() -> None:
    with pytest.raises(InputError, match="ranges need inputs"):
        measure_ranges(chain("relu"), [])
    with pytest.raises(ConfigError, match="threads"):
        measure_ranges(chain("relu"), [], threads=0)


def test_inputs_are_taken_evenly() -> None:
    numbers = np.arange(100, dtype=np.float32).reshape(100, 1, 1, 1)
    seen: list[tuple[int, int]] = []
    batches = list(
        some_batches(from_arrays(numbers, samples=100, seed=0), 30, lambda _, done, total: seen.append((done, total)))
    )
    assert [len(batch) for (batch,) in batches] == [16, 14]
    np.testing.assert_array_equal(np.concatenate([batch for (batch,) in batches]).reshape(-1), np.arange(0, 90, 3))
    assert seen == [(0, 30), (16, 30), (30, 30)]


def test_file_with_ranges_is_as_large_as_predicted(rng: np.random.Generator) -> None:
    file = model_file(tiny_network(rng))
    room = replace(file, network=file.network.with_activation_ranges(unmeasured_ranges(file.network.graph)))
    measured = with_ranges(file, [[images(rng, 3)]])
    assert len(dumps(measured)) == len(dumps(room)) > len(dumps(file))
    assert measured.network.tensors.keys() - file.network.tensors.keys() == {"activation_ranges"}


@pytest.fixture
def file(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A .pqmodel without ranges, of a network made by hand that takes pictures."""
    path = tmp_path / "x.pqmodel"
    write_model(path, replace(model_file(tiny_network(rng)), preprocessing=Preprocessing(resize=32, crop=(32, 32))))
    return path


def test_calibrate_a_file(file: Path, pictures: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    done = calibrate(file, pictures, out=tmp_path / "y.pqmodel", samples=5, threads=2)
    assert file.read_bytes() == before
    assert done.to_json() == {
        "file": str(tmp_path / "y.pqmodel"),
        "pictures": 5,
        "values": 7,
        "bytes": (tmp_path / "y.pqmodel").stat().st_size,
        "bytes_before": len(before),
    }
    old, new = read_model(file), read_model(tmp_path / "y.pqmodel")
    assert old.network.activation_ranges is None
    assert new.network.activation_ranges is not None
    assert dumps(replace(new, network=new.network.with_activation_ranges(None))) == before


def test_calibrating_again_replaces_the_ranges(file: Path, pictures: Path, tmp_path: Path) -> None:
    calibrate(file, pictures, out=tmp_path / "all.pqmodel", threads=1)
    calibrate(file, pictures, out=file, samples=1)
    assert file.read_bytes() != (tmp_path / "all.pqmodel").read_bytes()
    calibrate(file, pictures, out=file, threads=2)
    assert file.read_bytes() == (tmp_path / "all.pqmodel").read_bytes()


def command(*arguments: str | Path) -> str:
    """Run the command line; return what it printed on standard output."""
    done = CliRunner().invoke(commands, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_commands(file: Path, pictures: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "y.pqmodel", file.stat().st_size
    assert json.loads(command("inspect", file, "--json"))["activation_ranges"] is False
    assert "activation ranges: none" in command("inspect", file)
    text = command("calibrate", file, pictures, "--out", out)
    size = out.stat().st_size
    assert text == f"{out}: ranges of 7 values, measured on 12 pictures; {size:,} bytes, {before:,} before\n"
    assert json.loads(command("inspect", out, "--json"))["activation_ranges"] is True
    assert "activation ranges: yes" in command("inspect", out)
    done = json.loads(command("calibrate", out, pictures, "--out", out, "--samples", "5", "--threads", "1", "--json"))
    assert done == {"file": str(out), "pictures": 5, "values": 7, "bytes": size, "bytes_before": size}


def test_compressed_files_have_the_ranges_that_calibrating_gives(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """The same pictures, drawn by the same seed in the same order."""
    calibrate(tiny_model, pictures, out=tmp_path / "y.pqmodel")
    assert (tmp_path / "y.pqmodel").read_bytes() == tiny_model.read_bytes()


def test_calibrating_a_file_made_for_a_size_leaves_its_size(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "x.pqmodel", read_model(tiny_model)
    write_model(out, replace(model, provenance={**model.provenance, "target_bytes": 100_000}))
    done = calibrate(out, pictures, out=out, samples=5)
    assert done.bytes == done.bytes_before > tiny_model.stat().st_size
    assert "rans" in read_storage(tiny_model).features
    assert "rans" not in read_storage(out).features


def test_what_cannot_be_calibrated(file: Path, pictures: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    before = file.read_bytes()
    write_model(tmp_path / "plain.pqmodel", model_file(tiny_network(rng)))
    square = replace(read_model(file), network=chain("flatten"))
    square = replace(square, network=replace(square.network, graph=fixed_to_8_pixels(square.network.graph)))
    write_model(tmp_path / "small.pqmodel", square)
    data = tmp_path / "data.zip"
    data.write_bytes(b"PK")
    for arguments, message in (
        ((tmp_path / "gone", pictures, file), "gone: no such file"),
        ((file, tmp_path / "gone", file), "gone: no such folder or zip file"),
        ((file, pictures, tmp_path), "is a folder"),
        ((file, pictures, tmp_path / "no" / "y"), "there is no folder"),
        ((file, data, data), "is an input of this work"),
        ((tmp_path / "plain.pqmodel", pictures, file), "does not say how pictures become inputs"),
        ((tmp_path / "small.pqmodel", pictures, file), r"expected shape \[any, 3, 8, 8\], got \[1, 3, 32, 32\]"),
    ):
        path, source, out = arguments
        with pytest.raises(InputError, match=message):
            calibrate(path, source, out=out)
    with pytest.raises(ConfigError, match="threads"):
        calibrate(file, pictures, out=file, threads=0)
    with pytest.raises(InputError, match="at least 1 picture"):
        calibrate(file, pictures, out=file, samples=0)
    assert file.read_bytes() == before


def fixed_to_8_pixels(graph: Graph) -> Graph:
    return replace(graph, inputs=(replace(graph.inputs[0], shape=(None, 3, 8, 8)),))


def test_full_disk_leaves_the_file_as_it_was(file: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        calibrate(file, pictures, out=file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_ranges_are_not_needed_to_run(file: Path, pictures: Path, rng: np.random.Generator) -> None:
    from pyquant import load

    inputs = images(rng, 2)
    expected = load(file)(inputs)
    calibrate(file, pictures, out=file)
    np.testing.assert_array_equal(load(file)(inputs), expected)
    assert isinstance(read_model(file), ModelFile)
