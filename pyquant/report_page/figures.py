"""The figures of a report, drawn by matplotlib as SVG: each layer's cost, and what sizes cost in accuracy or error."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from pyquant.console import bytes_text
from pyquant.report import LayerRow

# Of Okabe and Ito's palette, whose colours people with any colour vision tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
INK, GRID = "#24303A", "#D9DEE3"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: the page is small, and letters are sharp at any size
    "svg.hashsalt": "pyquant",  # the same figure has the same bytes
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
LONGEST_LABEL = 24  # characters of a layer's name below the figure
MOST_LABELS = 80  # layers that are named; of more, some are
APART = 0.12  # of the figure's width, between two sizes that both have their label
BAR_INCHES, LEAST_INCHES, MOST_INCHES = 0.19, 8.0, 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A file on the curve of sizes."""

    bytes: int
    value: float
    spread: float = 0.0  # standard error, drawn above and below


def layers_figure(layers: Sequence[LayerRow]) -> bytes:
    """Return bits per weight, output error and share of the file of each layer, side by side in the network's order."""
    total = sum(layer.bytes for layer in layers) or 1
    coded = [layer.bits_per_weight for layer in layers if layer.status == "compressed"]
    # Dense layers have 16 or 32 bits, many times the others': their bars are cut, and say so.
    top = 1.25 * max(coded) if coded else 1.05 * max(layer.bits_per_weight for layer in layers)
    errors = [layer.relative_output_error for layer in layers]
    panels: list[tuple[str, list[float]]] = [
        ("bits per weight", [min(layer.bits_per_weight, top) for layer in layers]),
        ("share of the weights' bytes, %", [100 * layer.bytes / total for layer in layers]),
    ]
    if any(error is not None for error in errors):
        panels.insert(1, ("output error, %", [100 * (error or 0.0) for error in errors]))
    with rc_context(STYLE):
        width = min(max(LEAST_INCHES, 1.2 + BAR_INCHES * len(layers)), MOST_INCHES)
        figure = Figure(figsize=(width, 1.5 * len(panels) + 1.4), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axis, (title, values) in zip(axes, panels, strict=True):
            bars = axis.bar(range(len(layers)), values, width=0.76, color=BLUE)
            for bar, layer in zip(bars, layers, strict=True):
                if layer.status == "dense":
                    bar.set(facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.8)
            # Above the first panel is room for the number of bits of bars that are cut.
            axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold", pad=14 if axis is axes[0] else 6)
            axis.grid(visible=False, axis="x")
            axis.yaxis.set_major_locator(MaxNLocator(4))
            axis.set_xlim(-0.7, len(layers) - 0.3)
        axes[0].set_ylim(0, top)
        for index, layer in enumerate(layers):
            if layer.bits_per_weight > top:
                text = f"{layer.bits_per_weight:.0f}"
                axes[0].annotate(text, (index, top), ha="center", va="bottom", fontsize=7.5, annotation_clip=False)
        step = ceil(len(layers) / MOST_LABELS)
        axes[-1].set_xticks(range(0, len(layers), step))
        names = _short_names([layer.name for layer in layers])
        labels = axes[-1].set_xticklabels(names[::step], rotation=90, fontsize=7.5)
        for label in labels:
            label.set_parse_math(False)  # a name may hold a $
        return _svg(figure)


def accuracy_figure(points: Sequence[Point], dense: float) -> bytes:
    """Return top-1 in per cent over the size of the file, beside that of the dense network."""

    def draw(axis: Any) -> None:
        axis.axhline(dense, color=ORANGE, linestyle="--", linewidth=1.3)
        axis.annotate(
            f"dense network, {dense:.1f} %", (0.01, dense), xycoords=("axes fraction", "data"), xytext=(0, 4),
            textcoords="offset points", color=ORANGE,
        )  # fmt: skip
        ordered = sorted(points, key=lambda point: point.bytes)
        axis.errorbar(
            [point.bytes for point in ordered], [point.value for point in ordered],
            yerr=[point.spread for point in ordered], color=BLUE, marker="o", markersize=5, linewidth=1.6, capsize=3,
        )  # fmt: skip
        axis.set_ylabel("top-1, %")
        axis.margins(y=0.15)

    return _curve(draw, [point.bytes for point in points])


def error_figure(measured: Sequence[Point], predicted: Sequence[Point]) -> bytes:
    """Return the relative squared error of the outputs over the size of the file, as measured and as predicted."""

    def draw(axis: Any) -> None:
        for points, name, color, marker, line in (
            (measured, "measured", BLUE, "o", "-"),
            (predicted, "predicted", GREEN, "s", ":"),
        ):
            if ordered := sorted(points, key=lambda point: point.bytes):
                axis.plot(
                    [point.bytes for point in ordered], [100 * point.value for point in ordered],
                    label=name, color=color, marker=marker, linestyle=line, markersize=5, linewidth=1.6,
                )  # fmt: skip
        axis.set_ylabel("error of the outputs, %")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)

    return _curve(draw, [point.bytes for point in (*measured, *predicted)])


def _curve(draw: Callable[[Any], None], sizes: Sequence[int]) -> bytes:
    with rc_context(STYLE):
        figure = Figure(figsize=(LEAST_INCHES, 3.4), layout="constrained")
        axis = figure.subplots()
        axis.set_xscale("log")
        draw(axis)
        axis.set_xlabel("size of the file")
        ticks: list[int] = []
        apart = (max(sizes) / min(sizes)) ** APART
        for size in sorted(sizes):
            if not ticks or size >= apart * ticks[-1]:
                ticks.append(size)
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: bytes_text(size)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _short_names(names: Sequence[str]) -> list[str]:
    """Return names for labels: without what all begin with, nor the middle of long ones, nor what SVG cannot hold."""
    names = ["".join(letter if letter.isprintable() else "\ufffd" for letter in name) for name in names]
    if max(map(len, names), default=0) > LONGEST_LABEL:
        paths = [name.split(".") for name in names]
        same = [len(set(parts)) == 1 for parts in zip(*(path[:-1] for path in paths), strict=False)]
        shared = same.index(False) if False in same else len(same)
        names = [".".join(path[shared:]) for path in paths]
    return [_shortened(name) for name in names]


def _shortened(name: str) -> str:
    if len(name) <= LONGEST_LABEL:
        return name
    kept = LONGEST_LABEL - 1
    return f"{name[: kept // 3]}…{name[-(kept - kept // 3) :]}"
