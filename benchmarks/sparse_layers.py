"""Layers of ResNet-50 most of whose weights are zero: the sparse paths beside the direct ones, one thread.

    python benchmarks/sparse_layers.py [--threads 1]

Weights are random, and so is which of them are kept: anywhere for fp32, in runs of four input channels for 8 bits.
Paths take turns; times are medians of the layer's own step. Prints a table in Markdown.
"""

from __future__ import annotations

import click
import numpy as np
from layers import Layer, read_layers
from roofline import Times, ours, time_layers

from pyquant import console
from pyquant.codecs import SparseConfig
from pyquant.runtime import Model

SHARES = (0.5, 0.3, 0.2, 0.1)  # of weights that are kept
RUNS = {"exact": 1, "fast": 4}
PATHS = {"exact": ("direct", "sparse"), "fast": ("direct8", "sparse8")}


def measured(layer: Layer, share: float, threads: int) -> list[float]:
    """Return the ms of the paths, in the order of PATHS."""
    x = np.random.default_rng(0).standard_normal(layer.input_shape(), dtype=np.float32)
    runs = {}
    for precision, run in RUNS.items():
        file = layer.model(SparseConfig(kept=share, run=run))
        for path in PATHS[precision]:
            runs[path] = ours(Model(file, precision=precision, kernel=path, threads=threads), (x,))
    times: dict[str, Times] = time_layers(runs)
    return [times[path]["layer"] for path in runs]


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(threads: int) -> None:
    """Measure, and print the table."""
    console.enable()
    click.echo("| layer | kept | direct, ms | sparse | times | direct8, ms | sparse8 | times |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for layer in read_layers("resnet50"):
        if layer.op != "conv2d" or layer.is_stem or layer.stride > 1 or layer.count == 1:
            continue
        for share in SHARES:
            direct, sparse, direct8, sparse8 = measured(layer, share, threads)
            click.echo(
                f"| {layer} | {share:g} | {direct:.2f} | {sparse:.2f} | {direct / sparse:.2f} | {direct8:.2f} | "
                f"{sparse8:.2f} | {direct8 / sparse8:.2f} |"
            )


if __name__ == "__main__":
    main()
