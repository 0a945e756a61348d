"""The golden files: format version 1 is these bytes, for ever, with tensors as they are and entropy-coded.

Where the format must change before its first release, write the files anew with
`python tests/test_golden.py`, and say in the commit why.
"""

from pathlib import Path

import numpy as np
import pytest
import safetensors
from small_models import golden_grids, golden_model

from pyquant.file import FORMAT_VERSION, dumps, loads, read_model, read_storage

DATA = Path(__file__).parent / "data"
GOLDEN, CODED, GRIDS = (DATA / f"{name}.pqmodel" for name in ("golden", "golden_coded", "golden_grids"))


def test_golden_files_are_small() -> None:
    assert all(path.stat().st_size < 8192 for path in (GOLDEN, CODED, GRIDS))


def test_writer_still_gives_the_golden_bytes() -> None:
    assert dumps(golden_model(), fixed_length=True) == GOLDEN.read_bytes()
    assert dumps(golden_model()) == CODED.read_bytes()
    assert dumps(golden_grids(), fixed_length=True) == GRIDS.read_bytes()


@pytest.mark.parametrize(
    ("path", "features"), [(GOLDEN, ("product",)), (CODED, ("product", "rans")), (GRIDS, ("scalar", "sparse"))]
)
def test_reader_still_understands_the_golden_files(path: Path, features: tuple[str, ...]) -> None:
    expected, model = golden_grids() if path == GRIDS else golden_model(), read_model(path)
    assert model.format_version == FORMAT_VERSION
    assert read_storage(path).features == features
    assert model.network.graph == expected.network.graph
    assert model.preprocessing == expected.preprocessing
    assert model.classes == expected.classes
    assert model.provenance == expected.provenance
    assert model.network.tensors.keys() == expected.network.tensors.keys()
    for name, array in expected.network.tensors.items():
        np.testing.assert_array_equal(model.network.tensors[name], array, strict=True)


def test_golden_weights_decode_to_known_numbers() -> None:
    network = read_model(GOLDEN).network
    weights = {weight.name: network.weight(weight) for _, weight in network.graph.weighted()}
    # Codes run 0, 7 mod K, 14 mod K, ..; codebooks hold (4 i mod 11 - 5) / 8 at their i-th place, int8 ones 8 times it.
    assert weights["spatial"].shape == (4, 4, 3, 3)
    np.testing.assert_array_equal(weights["spatial"][0, 0].reshape(-1) * 8, [-5, -1, 3, -4, 0, 4, -3, 1, 5])
    np.testing.assert_array_equal(weights["spatial"][0, 1].reshape(-1) * 8, (np.arange(18, 27) * 4) % 11 - 5)
    # Scales of int8 codebooks: 1 - 5/8 and 1 - 1/8.
    np.testing.assert_array_equal(weights["grouped"][1].reshape(-1) * 8, [3 * 3 + 2 * 7, -4 * 3 - 5 * 7])
    assert weights["fc"].shape == (3, 8)


def test_golden_grids_decode_to_known_numbers() -> None:
    network = read_model(GRIDS).network
    weights = {weight.name: network.weight(weight) for _, weight in network.graph.weighted()}
    # Codes run 0, 7 mod 2^B, 14 mod 2^B, ..; output o has steps of (o + 1) / 8 and a zero in the middle of its codes.
    np.testing.assert_array_equal(weights["all"][0, 0].reshape(-1) * 8, [-3, 4, 3, 2, 1, 0, -1, -2, -3])
    # The fourth run, and each fourth one after it: in the first output channels 4 to 7 of the middle column.
    assert (weights["runs"] != 0).any(axis=(0, 2)).tolist() == [[False] * 3] * 4 + [[True] * 3] * 4
    np.testing.assert_array_equal(weights["runs"][0, 4:, 0] * 8, [[0, 4, 0], [0, -7, 0], [0, -2, 0], [0, 3, 0]])
    # Of each 3 inputs one is kept, in turn the first, the last and the one between.
    np.testing.assert_array_equal(weights["fc"] * 8, [[-1, 0, 0, 0, 0, 2], [0, -1, 0, 3, 0, 0], [0, 0, 3, 0, -3, 0]])


def test_any_safetensors_reader_can_list_the_golden_file() -> None:
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        assert file.metadata()["format_version"] == FORMAT_VERSION
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118 - it is no dictionary
            name: array.shape for name, array in golden_model().network.tensors.items()
        }


@pytest.mark.parametrize("path", [GOLDEN, CODED, GRIDS])
def test_reading_and_writing_give_the_same_bytes(path: Path) -> None:
    data = path.read_bytes()
    assert dumps(loads(data, path.name), fixed_length=path != CODED) == data


if __name__ == "__main__":
    GOLDEN.write_bytes(dumps(golden_model(), fixed_length=True))
    CODED.write_bytes(dumps(golden_model()))
    GRIDS.write_bytes(dumps(golden_grids(), fixed_length=True))
