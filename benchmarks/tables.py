"""The comparison as Markdown: sizes, promises and ingredients, with spread; differences picture by picture."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from math import sqrt

import numpy as np
from cells import CODEC_METHODS, COMPARED, OURS, UNIFORM_BITS, Cell, Comparison, Result, Results, Row
from ingredients import INGREDIENTS, PRUNERS, ROUNDERS
from numpy.typing import NDArray

DIVERGENCES = "Top-1 in %, the divergence from the dense network's shares of classes in nats, and bytes."


def as_markdown(comparison: Comparison, results: Results) -> str:
    """Return the tables of what has been measured so far."""
    lines = [_circumstances(results), ""]
    lines += ["Top-1 in %, ± the standard error; differences in points, ± that of the same pictures' differences.", ""]
    for row in comparison.rows:
        lines += [f"### {row.subject}, {size_text(row.size)}", "", *_row_table(row, results), ""]
    lines += [f"### {comparison.curve}, without training", "", *_curve_table(comparison, results), ""]
    lines += [f"### {comparison.curve}, on grids", "", *_grid_table(comparison, results), ""]
    lines += [f"### {comparison.curve}, codecs", "", *_codec_table(comparison, results), ""]
    lines += [f"### {comparison.curve}, rounded", "", *_reduced_table(ROUNDERS, comparison.rounding(), results), ""]
    lines += [f"### {comparison.curve}, pruned", "", *_reduced_table(PRUNERS, comparison.pruning(), results), ""]
    for subject, size in comparison.ingredients:
        lines += [f"### Ingredients: {subject}, {size_text(size)}", "", *_ingredient_table(subject, size, results), ""]
    return "\n".join(lines)


def difference(a: Result, b: Result) -> tuple[float, float]:
    """Return how much higher the top-1 of `a` is than that of `b`, in points, and its standard error."""
    gain = 100.0 * (answers(a).astype(np.float64) - answers(b))
    return float(gain.mean()), float(gain.std()) / sqrt(len(gain))


def answers(result: Result) -> NDArray[np.bool_]:
    """Return which pictures were right."""
    packed = np.frombuffer(base64.b64decode(result["right"]), np.uint8)
    return np.unpackbits(packed, count=result["n"]).astype(bool)


def size_text(size: str) -> str:
    """Return a size for people."""
    kind, _, value = size.partition(":")
    if kind == "as":
        return f"as many bytes as with {size_text(value)}"
    return {
        "bytes": lambda: f"{int(value):,} bytes",
        "ratio": lambda: f"{value} times smaller",
        "rate": lambda: f"{value}, coded",
    }.get(kind, lambda: value)()


def _row_table(row: Row, results: Results) -> list[str]:
    dense = results.get(row.dense().key)
    lines = [
        "| method | training | bytes | top-1 | from dense | minutes | promised | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if dense is not None:
        lines.append(f"| dense | | {dense['bytes']:,} | {_top1(dense)} | | | | |")
    best = {method: row.best_untrained(method, results) for method in COMPARED}
    untrained = {method: None if pair is None else pair[1] for method, pair in best.items()}
    trained = {method: results.get(row.trained(method).key) for method in COMPARED}
    for method in COMPARED:
        for cell in row.untrained(method):
            if (result := results.get(cell.key)) is not None:
                most = row.goal.most_below if row.goal and method == OURS else None
                lines.append(_line(f"{method}, {size_text(cell.size)}", "no", result, dense, most))
    as_published = {
        method: [results[cell.key] for cell in row.trained_presets(method) if cell.key in results]
        for method in COMPARED
    }
    for method in COMPARED:
        for result in filter(None, [trained[method], *as_published[method]]):
            most = row.goal.most_below_trained if row.goal and method == OURS else None
            lines.append(_line(f"{method}, {size_text(result['variant'])}", _training(result), result, dense, most))
    least = row.goal.least_above_others_trained if row.goal else None
    for name, ours, others, promised in (
        ("without training", untrained[OURS], [untrained[method] for method in COMPARED if method != OURS], None),
        ("with training", trained[OURS], [trained[method] for method in COMPARED if method != OURS], least),
        ("with training, as published", trained[OURS], list(chain(*as_published.values())), least),
    ):
        if ours is not None and (found := list(filter(None, others))):
            lines.append(_margin_line(name, ours, max(found, key=lambda result: result["top1"]), dense, promised))
    return lines


def _line(name: str, training: str, result: Result, dense: Result | None, most_below: float | None) -> str:
    below = "" if dense is None else _signed(*difference(result, dense))
    promised, met = "", ""
    if most_below is not None and dense is not None:
        promised = f"at most {most_below:g} below"
        met = _yes(dense["top1"] - result["top1"] <= most_below)
    minutes = f"{result['minutes']:.1f}"
    return f"| {name} | {training} | {result['bytes']:,} | {_top1(result)} | {below} | {minutes} | {promised} | {met} |"


def _margin_line(name: str, ours: Result, other: Result, dense: Result | None, least: float | None) -> str:
    margin = _signed(*difference(ours, other))
    promised, met = "", ""
    if least is not None and dense is not None:
        promised = f"at least {least:g} above"
        enough = ours["top1"] >= other["top1"] + least
        if other["top1"] + least > dense["top1"]:
            promised = "at most half as far from dense"
            enough = dense["top1"] - ours["top1"] <= (dense["top1"] - other["top1"]) / 2
        met = _yes(enough)
    return f"| ours above the better of the others, {name} | | | {margin} | | | {promised} | {met} |"


def _curve_table(comparison: Comparison, results: Results) -> list[str]:
    lines = [f"| times smaller | {' | '.join(COMPARED)} |", "|---|" + "---|" * len(COMPARED)]
    for ratio in comparison.ratios:
        cells = [Cell(subject=comparison.curve, method=method, size=f"ratio:{ratio:g}") for method in COMPARED]
        lines.append(f"| {ratio:g} | {' | '.join(_with_bytes(results.get(cell.key)) for cell in cells)} |")
    lines += ["", "| uniform, a scale for each output channel | times smaller | top-1 (bytes) |", "|---|---|---|"]
    for bits in UNIFORM_BITS:
        if (result := results.get(Cell(subject=comparison.curve, method=f"int{bits}").key)) is not None:
            lines.append(f"| int{bits} | {result['ratio']:.1f} | {_with_bytes(result)} |")
    return lines


def _grid_table(comparison: Comparison, results: Results) -> list[str]:
    lines = ["| bits of a weight | bytes | top-1 | from dense | minutes |", "|---|---|---|---|---|"]
    dense = results.get(Cell(subject=comparison.curve, method="dense").key)
    for size in comparison.grids:
        result = results.get(Cell(subject=comparison.curve, method="obq", size=size).key)
        if result is not None and dense is not None:
            below = _signed(*difference(result, dense))
            lines.append(
                f"| {size_text(size)} | {result['bytes']:,} | {_top1(result)} | {below} | {result['minutes']:.1f} |"
            )
    return lines


def _codec_table(comparison: Comparison, results: Results) -> list[str]:
    return [
        DIVERGENCES,
        "",
        *_by_codec(comparison, results, _with_divergence),
        "",
        "In 8-bit integers: points above fp32, and for how many pictures both have the same best class.",
        "",
        *_by_codec(comparison, results, _in_integers),
    ]


def _by_codec(comparison: Comparison, results: Results, text: Callable[[Result | None], str]) -> list[str]:
    names = list(CODEC_METHODS)
    lines = [f"| times smaller | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for name, cells in comparison.codec_rows():
        found = [results.get(cell.key) for cell in cells.values()]
        lines.append(f"| {name} | {' | '.join(map(text, found))} |")
    return lines


def _reduced_table(names: Collection[str], rows: Mapping[str, Sequence[Cell]], results: Results) -> list[str]:
    lines = [DIVERGENCES, "", f"| codec | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for size, cells in rows.items():
        found = [results.get(cell.key) for cell in cells]
        lines.append(f"| {size_text(size)} | {' | '.join(map(_with_divergence, found))} |")
    return lines


def _ingredient_table(subject: str, size: str, results: Results) -> list[str]:
    lines = ["| | ingredient | bytes | top-1 | gain | over row | minutes |", "|---|---|---|---|---|---|---|"]
    cells = {
        name: Cell(subject=subject, method=ingredient.name(name), size=ingredient.size(size))
        for name, ingredient in INGREDIENTS.items()
    }
    found = {name: results[cell.key] for name, cell in cells.items() if cell.key in results}
    for number, (name, ingredient) in enumerate(INGREDIENTS.items(), start=1):
        if (result := found.get(name)) is None:
            continue
        gain, over = "", ""
        if (base := found.get(ingredient.over)) is not None:
            gain, over = _signed(*difference(result, base)), str(list(INGREDIENTS).index(ingredient.over) + 1)
        row = [str(number), name, f"{result['bytes']:,}", _top1(result), gain, over, f"{result['minutes']:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _circumstances(results: Results) -> str:
    """Return what all results have in common, and every value where they differ."""

    def all_of(what: Callable[[Result], object]) -> str:
        return ", ".join(sorted({str(what(result)) for result in results.values()}))

    return (
        f"{all_of(lambda r: r['machine'])}; {all_of(lambda r: r['isa'])}; "
        f"{all_of(lambda r: r['settings']['threads'])} threads; "
        f"{all_of(lambda r: r['settings']['samples'])} calibration pictures; commit {all_of(lambda r: r['commit'])}"
    )


def _training(result: Result) -> str:
    how = result["finetune"]
    return f"{how['steps']:,} steps" if how else "none: no minutes were left"


def _top1(result: Result) -> str:
    share = result["top1"] / 100
    return f"{result['top1']:.2f} ± {100 * sqrt(share * (1 - share) / result['n']):.2f}"


def _with_bytes(result: Result | None) -> str:
    return "" if result is None else f"{result['top1']:.2f} ({result['bytes']:,})"


def _with_divergence(result: Result | None) -> str:
    return "" if result is None else f"{result['top1']:.2f}, {result['divergence']:.4f} ({result['bytes']:,})"


def _in_integers(result: Result | None) -> str:
    if result is None or "fast" not in result:
        return ""
    return f"{_signed(*difference(result['fast'], result))}, {result['fast']['agreement']:.1f} %"


def _signed(value: float, error: float) -> str:
    return f"{value:+.2f} ± {error:.2f}"


def _yes(met: bool) -> str:
    return "yes" if met else "NO"
