"""`pyquant compress`: a PyTorch network becomes a .pqmodel file."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from pyquant import console
from pyquant.cli import options
from pyquant.cli.show import show_outcome


@click.command("compress")
@click.argument("model")
@click.option("--out", type=options.PATH, metavar="FILE",
              help="The file to write; required unless --dry-run. Of several sizes, {bytes} in the name stands for the "
              "size asked for, {ratio} for the ratio.")  # fmt: skip
@click.option("--weights", type=options.PATH, metavar="W", help="A .safetensors file, or a weights-only .pth.")
@click.option("--num-classes", type=click.IntRange(min=1), metavar="N", help="Classes that MODEL is built with.")
@options.input_shape
@click.option(
    "--calibration",
    type=options.PATH,
    metavar="DATA",
    help="A folder or .zip of pictures, in class folders or flat; no labels needed. Without it, codebooks fit the "
    "weights alone.",
)
@click.option("--preset", metavar="small-blocks|large-blocks|lut|int8|int4|int3|int2|half",
              help="Block sizes for the whole network, grids of so many bits, or half of the weights on grids of 8 "
              "[default: small-blocks; with --method obq int4, with exactobs half].")  # fmt: skip
@click.option("--method", metavar="gram|abgd|pqf|obq|exactobs", default="gram", show_default=True,
              help="gram: least output error, all correlations of a layer's inputs included; abgd: k-means on blocks, "
              "weighted by the inputs that meet them; pqf: reordered channels and annealed k-means, on the "
              "weights alone; obq: grids with error feedback; exactobs: weights dropped so that the others make up "
              "for them. Grids and sparse weights get the last two under the other names too.")  # fmt: skip
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="RULE",
    help="'PATTERN=block:c,kh,kw;centroids:K[;codebooks:M][;codebook:int8]', 'PATTERN=scalar:BITS', to both of which "
    "';rate:R' can be added (R bits a weight on average, entropy-coded), 'PATTERN=sparse:SHARE[;run:4][;bits:B]' or "
    "'PATTERN=sparse:N:M[;bits:B]' (so many weights are kept, the others are zero), or 'PATTERN=dense'; PATTERN is "
    "shell-style, on a layer's dotted name; the last rule that matches counts.",
)
@click.option("--target-size", "target_sizes", type=options.byte_size, multiple=True, metavar="SIZE",
              help="Bytes of the file, header included, such as 963kB or 1.5MiB: never more, at most 1 % less. Codecs "
              "are chosen by measured sensitivities; of preset and rules, the rules count. May be repeated: a file "
              "each, in one run.")  # fmt: skip
@click.option("--target-ratio", "target_ratios", type=click.FloatRange(min=0, min_open=True), multiple=True,
              metavar="R", help="The same, as how many times smaller than the network in fp32.")  # fmt: skip
@click.option("--max-bops", "max_operations", type=options.operations, metavar="N|P%",
              help="The most bit operations for one input, such as 20G, or a share of those of the network in fp32, "
              "such as 5%: multiply-accumulates times the bits of a weight times 32. Codecs are chosen as for a size; "
              "there may be one too.")  # fmt: skip
@click.option("--codec", "codecs", multiple=True, metavar="product|scalar|sparse",
              help="What a target chooses from, for each layer. May be repeated [default: product and scalar, or "
              "the one of another --method than gram].")  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(min=0, max=100), metavar="POINTS",
              help="The smallest file whose top-1 on --labelled falls by no more points than this: sizes are tried, at "
              "most 10, until it is known within 2 %.")  # fmt: skip
@click.option("--labelled", type=options.PATH, metavar="DATA",
              help="Pictures in class folders, to measure a classifier's accuracy before and after; nothing is learnt "
              "from them.")  # fmt: skip
@click.option("--report", "page", type=options.PATH, metavar="FILE",
              help="An HTML page about size, accuracy and every layer, which needs no other file.")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Print each layer's codec, the size and the outputs' predicted error; write nothing.")  # fmt: skip
@options.preprocessing
@options.classes
@click.option("--samples", type=click.IntRange(min=1), default=1024, show_default=True, metavar="N",
              help="Pictures used, drawn by seed from the sorted list.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="The same seed gives the same file.")  # fmt: skip
@options.threads
@click.option("--finetune", "finetune_minutes", type=click.FloatRange(min=0), metavar="MINUTES",
              help="Train all that the file holds to give the network's own outputs on all of DATA; no labels "
              "needed. A timed warm-up turns it into steps.")  # fmt: skip
@click.option("--finetune-steps", type=click.IntRange(min=0), metavar="N",
              help="The same, for N steps: equal steps and threads give the same file.")  # fmt: skip
@click.option("--checkpoint", type=options.PATH, metavar="DIR",
              help="Save in this folder what is done, each layer and each minute of fine-tuning: the same command then "
              "goes on where it was stopped, and gives the same file; with other fine-tuning, it takes up what was "
              "learnt.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where fine-tuning is done.")  # fmt: skip
@options.as_json
def command(
    model: str,
    out: Path | None,
    weights: Path | None,
    num_classes: int | None,
    input_shape: tuple[int, int, int],
    calibration: Path | None,
    preset: str | None,
    method: str,
    rules: tuple[str, ...],
    target_sizes: tuple[int, ...],
    target_ratios: tuple[float, ...],
    max_operations: float | None,
    codecs: tuple[str, ...],
    max_drop: float | None,
    labelled: Path | None,
    page: Path | None,
    dry_run: bool,
    resize: int | str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    classes: Path | None,
    samples: int,
    seed: int,
    threads: int | None,
    finetune_minutes: float | None,
    finetune_steps: int | None,
    checkpoint: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Compress a PyTorch network into a .pqmodel file.

    MODEL is a torchvision name (resnet18, vgg16_bn, ..) or package.module:callable, which returns an nn.Module.
    The file that is written has been loaded, run and compared with the network before the command ends.
    """
    from pyquant.choose import DEFAULT_PRESET, Recipe, parse_rule
    from pyquant.pictures import read_classes

    if out is None and not dry_run:
        raise click.UsageError("give the file to write with --out, or --dry-run")
    recipe = Recipe(preset=preset or DEFAULT_PRESET, rules=tuple(parse_rule(rule) for rule in rules), codecs=codecs)
    names = () if classes is None else read_classes(classes)
    preprocessing = options.preprocessing_for(input_shape, resize, mean, std)

    from pyquant.capture import is_detector
    from pyquant.learn.methods import method_called
    from pyquant.models import build_network, is_torchvision_name
    from pyquant.order import Order
    from pyquant.settings import Settings

    if preset is None:
        recipe = replace(recipe, preset=method_called(method).preset)
    order = Order(
        out=None if dry_run else out,
        sizes=target_sizes,
        ratios=target_ratios,
        max_drop=max_drop,
        labelled=labelled,
        page=page,
        checkpoint=checkpoint,
    )
    order.check_files([path for path in (weights, calibration, classes, labelled) if path is not None])
    settings = Settings(
        recipe=recipe,
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=names,
        samples=samples,
        seed=seed,
        threads=threads,
        max_bit_operations=max_operations,
        finetune_steps=finetune_steps,
        finetune_minutes=finetune_minutes,
        device=device,
    )
    if weights is None and is_torchvision_name(model):
        console.warn(f"{model} is built with random weights; give trained ones with --weights")
    elif weights is None:
        console.note(f"weights: as {model} returns them")
    # The user's code may print; standard output is for the result alone.
    with redirect_stdout(sys.stderr), console.progress() as progress:
        network = build_network(model, weights=weights, num_classes=num_classes)
        if is_detector(network):  # it has both of its own; what was asked for is refused
            if click.get_current_context().get_parameter_source("input_shape") is ParameterSource.DEFAULT:
                settings = replace(settings, input_shape=None)
            if (resize, mean, std) == (None, None, None):
                settings = replace(settings, preprocessing=None)
        outcome = order.carry_out(network, calibration, settings, progress)
    show_outcome(outcome.to_json(), as_json)
