"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyquant.runtime import PRECISIONS

if TYPE_CHECKING:
    from pyquant.preprocessing import Preprocessing

Command = TypeVar("Command", bound=Callable[..., Any])
Number = TypeVar("Number", int, float)

PATH = click.Path(path_type=Path)
BYTE_UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "KiB": 1 << 10, "MiB": 1 << 20}
OPERATION_UNITS = {"": 1.0, "%": 0.01, "M": 1e6, "G": 1e9, "T": 1e12}


def three_sizes(text: str) -> tuple[int, int, int]:
    """Read three whole numbers of at least 1, for example 3,224,224."""
    sizes = _numbers(text, int)
    if len(sizes) != 3 or min(sizes) < 1:
        raise click.BadParameter(f"expected three whole numbers such as 3,224,224, got '{text}'")
    return sizes[0], sizes[1], sizes[2]


def three_numbers(text: str) -> tuple[float, float, float]:
    """Read three numbers, one for each of red, green and blue, for example 0.5,0.5,0.5."""
    numbers = _numbers(text, float)
    if len(numbers) != 3:
        raise click.BadParameter(f"expected three numbers such as 0.5,0.5,0.5, got '{text}'")
    return numbers[0], numbers[1], numbers[2]


def short_side(text: str) -> int | str:
    """Read a number of pixels, or "none"."""
    if text != "none" and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise click.BadParameter(f"expected a number of pixels, or none, got '{text}'")
    return "none" if text == "none" else int(text)


def byte_size(text: str) -> int:
    """Read a size such as 1.5MiB, 963kB or 1516000, in bytes, rounded down."""
    size = _with_unit(text, BYTE_UNITS)
    if size is None or size < 1:
        units = ", ".join(filter(None, BYTE_UNITS))
        raise click.BadParameter(f"expected a number and a unit among {units}, such as 1.5MiB, got '{text}'")
    return int(size)


def operations(text: str) -> float:
    """Read a number of bit operations such as 20G, or a share such as 5%, which is returned as a number below 1."""
    number = _with_unit(text, OPERATION_UNITS)
    if number is None or number <= 0 or (number >= 1) == text.endswith("%"):
        raise click.BadParameter(
            f"expected a number of bit operations such as 20G, or a share such as 5%, got '{text}'"
        )
    return number


def _with_unit(text: str, units: Mapping[str, float]) -> float | None:
    """Return the number that a text gives in one of these units; None where it gives none."""
    number = text.rstrip("".join(units))
    unit = text[len(number) :]
    digits = number.strip().replace(".", "", 1)
    if unit not in units or not (digits.isascii() and digits.isdecimal()):
        return None
    return float(number) * units[unit]


def _numbers(text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, alone, on standard output.")

threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="T",
    help="Threads to use [default: the processors this process may use].",
)

PRECISION_HELP = {"exact": "float32 throughout", "fast": "activations in 8 bits, by the ranges in the file"}

precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="exact",
    show_default=True,
    help="; ".join(f"{name}: {PRECISION_HELP[name]}" for name in PRECISIONS) + ".",
)

memory_budget = click.option(
    "--memory-budget",
    type=byte_size,
    callback=lambda context, parameter, size: size or 0,
    metavar="SIZE",
    help="Memory for weights kept decoded where each run would decode them again, such as 16MiB [default: none].",
)

out = click.option("--out", type=PATH, required=True, metavar="FILE", help="The file to write.")

classes = click.option(
    "--classes", type=PATH, metavar="TXT", help="The classes, a line each, in order: folder name, blank, name to show."
)


def tune(seconds: float) -> Callable[[Command], Command]:
    """Add the option --tune, with this default."""
    return click.option(
        "--tune",
        type=click.FloatRange(min=0),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help="Measure the kernels of each layer for so long first, run the fastest, and remember them; 0: do not.",
    )


def run_of_file(command: Command) -> Command:
    """Add the argument FILE and the options that say how it is run: inputs, threads, precision, memory; and --json."""
    for parameter in (
        as_json,
        memory_budget,
        precision,
        threads,
        click.option(
            "--input-shape", type=three_sizes, metavar="C,H,W", help="The shape of one input [default: the file's]."
        ),
        click.option(
            "--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Pictures per run."
        ),
        click.argument("file", type=PATH),
    ):
        command = parameter(command)
    return command


input_shape = click.option(
    "--input-shape",
    type=three_sizes,
    default="3,224,224",
    show_default=True,
    metavar="C,H,W",
    help="The shape of one input; a detector has sizes of its own.",
)


def preprocessing(command: Command) -> Command:
    """Add the options that say how a picture becomes an input: --resize, --mean and --std."""
    for option in (
        click.option("--std", type=three_numbers, metavar="R,G,B", help="Of pixels 0..1 [default: ImageNet's]."),
        click.option("--mean", type=three_numbers, metavar="R,G,B", help="Of pixels 0..1 [default: ImageNet's]."),
        click.option(
            "--resize",
            type=short_side,
            metavar="R|none",
            help="Short side of a picture before the centre crop [default: 256 for 224, else the input's height].",
        ),
    ):
        command = option(command)
    return command


def preprocessing_for(
    input_shape: tuple[int, int, int],
    resize: int | str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> Preprocessing | None:
    """Return what the options say; None for a network that takes no RGB pictures and where no option was given."""
    from pyquant.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

    if input_shape[0] != 3 and resize is None and mean is None and std is None:
        return None
    return Preprocessing.default_for(input_shape, resize=resize, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
