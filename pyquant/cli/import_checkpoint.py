"""`pyquant import`: a published compressed checkpoint becomes a .pqmodel file."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant.cli import options
from pyquant.cli.show import show_report
from pyquant.errors import ConfigError


@click.command("import", short_help="Import a published compressed checkpoint.")
@click.argument("checkpoint", type=options.PATH)
@click.option(
    "--arch", required=True, metavar="NAME", help="The ResNet that the checkpoint is of, by torchvision's name."
)
@options.out
@options.classes
@options.input_shape
@options.preprocessing
@options.as_json
def command(
    checkpoint: Path,
    arch: str,
    out: Path,
    classes: Path | None,
    input_shape: tuple[int, int, int],
    resize: int | str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    as_json: bool,
) -> None:
    """Import a compressed ResNet in the layout of the ABGD or the PQF authors; which one, its content tells.

    The codes and codebooks are taken over as they are. The number of classes comes from the checkpoint.
    """
    if input_shape[0] != 3:
        given = ",".join(map(str, input_shape))
        raise ConfigError(
            f"--input-shape: a published ResNet takes pictures of 3 channels, such as 3,224,224; got {given}"
        )
    from pyquant.interop import import_checkpoint
    from pyquant.pictures import read_classes

    report = import_checkpoint(
        checkpoint,
        arch=arch,
        out=out,
        classes=None if classes is None else read_classes(classes),
        preprocessing=options.preprocessing_for(input_shape, resize, mean, std),
    )
    show_report(report.to_json(), as_json)
