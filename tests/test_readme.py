"""The README's examples run as they stand, and what it says of the file format is enough to read one."""

import hashlib
import json
import math
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import REPOSITORY
from slow_entropy import read_codes

from pyquant.cli import commands
from pyquant.file import read_model
from pyquant.layers import CODECS, OPS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "pyquant"]


def test_first_block_is_python() -> None:
    assert README.index("```python") == README.index("```")


def test_python_examples_run(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks in order, in a folder with the module, pictures and files that they name."""
    pytest.importorskip("torch", reason="the examples compress a network")
    pytest.importorskip("torchvision", reason="they capture one of its detectors")
    (tmp_path / "my_project.py").write_text(
        "from detectors import tiny_detector\nfrom tiny_networks import residual\n\n"
        "network, detector = residual(), tiny_detector()\n"
    )
    (tmp_path / "pictures").symlink_to(pictures)
    for name in ("cat.jpg", "street.jpg"):
        (tmp_path / name).write_bytes((pictures / "cat" / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_project", raising=False)
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"README.md, Python block {number + 1}", "exec"), {"__name__": "readme"})
    assert "probability" in capsys.readouterr().out
    assert (tmp_path / "network.pqmodel").exists()


@pytest.mark.parametrize("arguments", shell_commands(), ids=" ".join)
def test_shell_examples_have_the_options_they_use(arguments: list[str]) -> None:
    name, *rest = arguments
    command = commands.get_command(click.Context(commands), name)
    assert command is not None, f"no command '{name}'"
    command.make_context(name, rest)


def test_every_command_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)[^|]*\|", README, re.MULTILINE)
    assert set(commands.list_commands(click.Context(commands))) <= set(rows)


def test_every_operation_and_codec_is_described() -> None:
    """Names, attributes and tensors of the declaration, in the rows of their tables."""
    rows = re.findall(r"^\| (`.+) \|$", README, re.MULTILINE)
    for specs in (OPS, CODECS):
        for name, spec in specs.items():
            described = "".join(row for row in rows if f"`{name}`" in row.partition("|")[0])
            assert described, f"no row for '{name}'"
            assert [word for word in spec.attributes if f"`{word}`" not in described] == [], name
    for name, spec in CODECS.items():
        described = "".join(row for row in rows if row.startswith(f"`{name}`"))
        assert [role for role in spec.tensors if f"`{role}`" not in described] == [], name


def test_description_of_the_format_is_enough_to_decode_a_weight(tiny_model: Path) -> None:
    """A reader written from the README alone finds what ours finds."""
    data = tiny_model.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    digest = metadata["digest"].encode()
    assert hashlib.sha256(data.replace(digest, b"0" * 64, 1)).hexdigest().encode() == digest

    def tensor(name: str) -> np.ndarray:
        entry = header[name]
        begin, end = entry["data_offsets"]
        dtype = {"F32": "<f4", "F16": "<f2", "U8": "u1"}[entry["dtype"]]
        return np.frombuffer(data[start + begin : start + end], dtype).reshape(entry["shape"])

    def numbers(name: str, *shape: int) -> np.ndarray:
        if name in header:
            return tensor(name)
        width, *streams = tensor(f"{name}.rans").tolist()
        planes = read_codes(bytes(streams), 8, width, math.prod(shape))
        whole = [int.from_bytes(number, "little") for number in zip(*planes, strict=True)]
        bits = np.array([number >> 1 | number % 2 << 8 * width - 1 for number in whole], f"<u{width}")
        return bits.view(f"<f{width}").reshape(shape)

    def integers(name: str, bits: int, count: int) -> list[int]:
        if name in header:
            stream = np.unpackbits(tensor(name), bitorder="little")[: count * bits].reshape(count, bits)
            return [sum(int(bit) << i for i, bit in enumerate(code)) for code in stream]
        width, *streams = tensor(f"{name}.rans").tolist()
        assert width == 0
        return read_codes(bytes(streams), bits, 1, count)[0]

    network = read_model(tiny_model).network
    node = next(node for node in json.loads(metadata["graph"])["nodes"] if node["name"] == "block.conv1")
    weight = node["weight"]
    o, c, kh, kw = weight["shape"]
    bc, bh, bw = weight["block"]
    bits = math.ceil(math.log2(weight["centroids"]))
    grid = [(j, y, x) for j in range(-(-c // bc)) for y in range(-(-kh // bh)) for x in range(-(-kw // bw))]
    codes = integers("block.conv1.codes", bits, o * len(grid))
    codebook = numbers("block.conv1.codebook", 1, weight["centroids"], bc * bh * bw).astype(np.float32)
    decoded = np.zeros((o, c, kh, kw), np.float32)
    for output in range(o):
        for position, (j, y, x) in enumerate(grid):
            code = codes[output * len(grid) + position]
            place = decoded[output, j * bc : (j + 1) * bc, y * bh : (y + 1) * bh, x * bw : (x + 1) * bw]
            block = codebook[0, code].reshape(bc, bh, bw)
            place[:] = block[tuple(slice(size) for size in place.shape)]
    ours = network.graph.node("block.conv1").weight
    assert ours is not None
    np.testing.assert_array_equal(decoded, network.weight(ours))
