"""The text of a report page: sizes and accuracy before and after, the curve of sizes, each layer, the settings."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pyquant.console import bytes_text
from pyquant.errors import InputError
from pyquant.extras import missing_dependency
from pyquant.outcome import Made, Outcome
from pyquant.report import LayerRow
from pyquant.report_page.style import STYLE
from pyquant.storage import AnyPath, check_writable, write_whole

# Nothing may be loaded or run, whatever a name holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SETTINGS = {  # what a file says of its making, in words
    "method": "Method",
    "objective": "Learnt to keep",
    "samples": "Calibration inputs",
    "preset": "Preset",
    "target_bytes": "Size asked for, bytes",
    "max_bit_operations": "Bit operations asked for, at most",
    "rules": "Rules",
    "finetune": "Fine-tuning",
    "seed": "Seed",
    "pyquant": "Version of pyquant",
}


def check_page(path: AnyPath, *, inputs: Iterable[AnyPath]) -> None:
    """Check that a page can be drawn and written, and overwrites none of `inputs`, before long work.

    Raises:
        InputError: its file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_dependency(error) or error from error
    check_writable(path, inputs=inputs)


def write_page(path: AnyPath, outcome: Outcome) -> None:
    """Write the page about an outcome that has files.

    Raises:
        InputError: it cannot be written.
    """
    write_whole(path, render_page(outcome).encode())


def render_page(outcome: Outcome) -> str:
    """Return the page about an outcome, which must have files, as HTML.

    Raises:
        InputError: there are no files, only plans.
    """
    if not outcome.files:
        raise InputError("a report page is about files; a plan has none")
    names = [os.path.basename(made.report.file) for made in outcome.files]
    title = names[0] if len(names) == 1 else f"{len(names)} sizes of one network"
    first = outcome.files[0]
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft lead">What compressing a network with pyquant has given: its size, its accuracy, '
        "and what each layer costs.</p>",
    ]
    if len(outcome.files) == 1:
        parts += [_tiles(first), _sizes(first)]
    parts += [_curve(outcome), _files(outcome.files), _trials(outcome)]
    parts += [_layers(made, is_open=len(outcome.files) == 1) for made in sorted(outcome.files, key=_size)]
    parts.append(_settings(first, alone=len(outcome.files) == 1))
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - compression report</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _tiles(made: Made) -> str:
    report = made.report
    tiles = [
        _tile(
            "Size of the file",
            bytes_text(report.bytes),
            f"{report.bytes:,} bytes, {report.ratio:.1f} times smaller than {bytes_text(report.dense_bytes)} in fp32",
        )
    ]
    if (accuracy := made.accuracy) is not None:
        tiles += [
            _tile(
                f"Top-{count} accuracy, %",
                f"{before:.1f} <small>to</small> {after:.1f}",
                note,
            )
            for count, before, after, note in (
                (1, accuracy.top1_before, accuracy.top1_after, _change(made)),
                (
                    5,
                    accuracy.top5_before,
                    accuracy.top5_after,
                    f"the class is among the best five; {accuracy.pictures:,} pictures",
                ),
            )
        ]
    if made.output_error is not None:
        predicted = "" if made.predicted_error is None else f"; {100 * made.predicted_error:.2g} % were predicted"
        tiles.append(
            _tile(
                "Error of the outputs",
                f"{100 * made.output_error:.2g} %",
                f"squared, relative to the dense network's outputs, on calibration inputs{predicted}",
            )
        )
    tiles.append(
        _tile(
            "Self-check",
            "passed",
            "the file was loaded, run and compared with PyTorch: "
            f"{_apart(report.max_relative_error)} of the largest output apart",
        )
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _apart(relative_error: float) -> str:
    percent = 100 * relative_error
    return "less than 0.001 %" if percent < 0.001 else f"at most {percent:.1g} %"


def _tile(title: str, value: str, note: str) -> str:
    """Return a tile; `value` is HTML."""
    return (
        f'<section class="tile"><h2>{escape(title)}</h2><div class="value">{value}</div><p>{escape(note)}</p></section>'
    )


def _change(made: Made) -> str:
    accuracy = made.accuracy
    assert accuracy is not None
    direction = "down" if accuracy.drop >= 0 else "up"
    return (
        f"{abs(accuracy.drop):.2f} points {direction}, standard error {accuracy.standard_error:.2f}; "
        f"{accuracy.pictures:,} pictures, the same for both"
    )


def _sizes(made: Made) -> str:
    report = made.report
    share = min(100.0, 100 * report.bytes / report.dense_bytes)
    return (
        '<section class="card"><h2>Before and after</h2><div class="size">'
        f'<span>dense, fp32</span><div class="track before"><div style="width:100%"></div></div>'
        f'<span>this file</span><div class="track"><div style="width:{share:.2f}%"></div></div>'
        f'</div><p class="soft">{bytes_text(report.dense_bytes)} and {bytes_text(report.bytes)}: '
        f"{share:.1f} % of the bytes remain.</p></section>"
    )


def _curve(outcome: Outcome) -> str:
    """Return the curve of sizes: accuracy where it was measured, and error where several sizes were asked for."""
    from pyquant.report_page.figures import Point, accuracy_figure, error_figure

    compared = [(tried.bytes, tried.accuracy) for tried in outcome.trials] or [
        (made.report.bytes, made.accuracy) for made in outcome.files if made.accuracy is not None
    ]
    parts = []
    if len(compared) > 1:
        points = [
            Point(bytes=size, value=accuracy.top1_after, spread=accuracy.standard_error) for size, accuracy in compared
        ]
        dense = compared[0][1].top1_before
        listed = "; ".join(f"{bytes_text(point.bytes)}: {point.value:.1f} %" for point in sorted(points, key=_bytes))
        alt = f"Top-1 over the size of the file, dense network {dense:.1f} %. {listed}"
        parts.append(_figure(accuracy_figure(points, dense), alt, 560))
        parts.append(
            '<p class="soft">Bars show the standard error of the difference from the dense network, on the same '
            "pictures.</p>"
        )
    measured = [Point(bytes=m.report.bytes, value=m.output_error) for m in outcome.files if m.output_error is not None]
    predicted = [
        Point(bytes=m.report.bytes, value=m.predicted_error) for m in outcome.files if m.predicted_error is not None
    ]
    if len(outcome.files) > 1 and (measured or predicted):
        listed = "; ".join(f"{bytes_text(p.bytes)}: {100 * p.value:.2g} %" for p in sorted(measured, key=_bytes))
        alt = f"Squared error of the network's outputs, relative to the outputs, over the size of the file. {listed}"
        parts.append(_figure(error_figure(measured, predicted), alt, 560))
        parts.append(
            '<p class="soft">Squared difference from the dense network\'s outputs, relative to them, on calibration '
            "inputs.</p>"
        )
    return _card("What bytes buy", "".join(parts)) if parts else ""


def _bytes(point: Any) -> int:
    return int(point.bytes)


def _size(made: Made) -> int:
    return made.report.bytes


def _files(files: Sequence[Made]) -> str:
    if len(files) == 1:
        return ""
    with_accuracy = any(made.accuracy for made in files)
    columns = ["file", "bytes>", "times smaller>", "predicted error>", "measured error>"]
    columns += ["top-1>", "points down>"] if with_accuracy else []
    rows = []
    for made in sorted(files, key=_size):
        row = [
            os.path.basename(made.report.file),
            f"{made.report.bytes:,}",
            f"{made.report.ratio:.1f}",
            _percent(made.predicted_error),
            _percent(made.output_error),
        ]
        if made.accuracy is not None:
            row += [
                f"{made.accuracy.top1_after:.2f} %",
                f"{made.accuracy.drop:.2f} ± {made.accuracy.standard_error:.2f}",
            ]
        rows.append(row)
    dense = bytes_text(files[0].report.dense_bytes)
    caption = f"The dense network has {dense} in fp32."
    if (accuracy := files[0].accuracy) is not None:
        caption += f" It is right about {accuracy.top1_before:.2f} % of {accuracy.pictures:,} pictures."
    worst = max(made.report.max_relative_error for made in files)
    check = (
        f"Each file was loaded, run and compared with PyTorch: all passed, {_apart(worst)} of the largest output apart."
    )
    return _card("Files", _table(caption, columns, rows) + f'<p class="soft">{check}</p>')


def _trials(outcome: Outcome) -> str:
    if outcome.max_drop is None:
        return ""
    rows = [
        [
            str(number),
            f"{tried.bytes:,}",
            f"{tried.accuracy.top1_after:.2f} %",
            f"{tried.accuracy.drop:.2f} ± {tried.accuracy.standard_error:.2f}",
            "holds" if tried.holds else "too far",
        ]
        for number, tried in enumerate(outcome.trials, start=1)
    ]
    before = outcome.trials[0].accuracy
    caption = (
        f"The smallest file was sought whose top-1 falls by at most {outcome.max_drop:g} points, from "
        f"{before.top1_before:.2f} % on {before.pictures:,} pictures."
    )
    if outcome.is_smallest:
        caption += " Even the smallest file that is possible holds."
    return _card("Trials", _table(caption, ["trial>", "bytes>", "top-1>", "points down>", "result"], rows))


def _layers(made: Made, *, is_open: bool) -> str:
    from pyquant.report_page.figures import layers_figure

    layers = made.report.layers
    name = os.path.basename(made.report.file)
    total = sum(layer.bytes for layer in layers) or 1
    alt = (
        f"Three bar charts over the {len(layers)} layers of {name}: bits per weight, output error, and share of the "
        "bytes. The table below has the same numbers."
    )
    coded = [layer for layer in layers if layer.status == "compressed"]
    text = f"{len(coded)} of {len(layers)} layers are compressed; dense ones are hatched"
    if any(layer.relative_output_error is not None for layer in layers):
        text += "; a layer's output error is squared and relative to its outputs in the dense network"
    parts = [
        f'<p class="soft">{text}.</p>',
        _figure(layers_figure(layers), alt, min(960, 260 + 15 * len(layers))) if layers else "",
        _left_dense(layers),
        "<h3>Every layer</h3>",
        _layer_table(made, total),
    ]
    heading = f"Layers of {name}"
    if is_open:
        return _card(heading, "".join(parts))
    size = bytes_text(made.report.bytes)
    content = f"<summary>{escape(heading)}, {size}</summary>{''.join(parts)}"
    return f'<section class="card"><details>{content}</details></section>'


def _left_dense(layers: Sequence[LayerRow]) -> str:
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason is not None:
            by_reason.setdefault(layer.reason, []).append(layer.name)
    if not by_reason:
        return "<h3>Left dense</h3><p>No layer: all are compressed.</p>"
    items = "".join(
        f"<li><strong>{escape(', '.join(names))}</strong>: {escape(reason)}</li>" for reason, names in by_reason.items()
    )
    return f"<h3>Left dense, and why</h3><ul>{items}</ul>"


def _layer_table(made: Made, total: int) -> str:
    layers = made.report.layers
    by_codec = {} if made.plan is None else made.plan.errors_by_codec
    most_error = max((layer.relative_output_error or 0.0 for layer in layers), default=0.0) or 1.0
    most_bytes = max((layer.bytes for layer in layers), default=0) or 1
    with_errors = any(layer.relative_output_error is not None for layer in layers)
    rows = []
    for layer in layers:
        coding = "dense"
        if layer.block is not None:
            several = "" if layer.codebooks == 1 else f"{layer.codebooks} x "
            coding = f"{'x'.join(map(str, layer.block))}, {several}{layer.centroids:,} centroids"
        elif layer.levels is not None:
            coding = f"grids of {layer.levels} levels" if layer.kept is None else layer.setting
        if layer.rate is not None:
            coding += f", {layer.rate:.3g} bits a weight at most"
        error = layer.relative_output_error
        cells = [
            f'<th scope="row">{escape(layer.name)}</th>',
            f"<td>{escape(layer.op)}</td>",
            f'<td class="{layer.status}">{escape(coding)}</td>',
            f'<td class="number">{layer.bits_per_weight:.2f}</td>',
        ]
        if with_errors:
            cells.append(_bar(_percent(error), 0.0 if error is None else error / most_error))
        cells.append(_bar(f"{100 * layer.bytes / total:.1f} %", layer.bytes / most_bytes))
        cells.append(f'<td class="number">{layer.bytes:,}</td>')
        if by_codec:
            cells.append(f"<td>{_why(layer, by_codec.get(layer.name, {}))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    titles = ["layer", "operation", "coding", "bits per weight>", *(["output error"] if with_errors else []),
              "share of the bytes", "bytes>", *(["why"] if by_codec else [])]  # fmt: skip
    caption = (
        "In the order in which they run. Coding: the weights of a block (channels x rows x columns), and how many "
        "centroids a block is chosen from, or the sum of several; or the levels of each output's grid. Bytes count "
        "codes, codebooks, grids, scales and biases."
    )
    if by_codec:
        caption += (
            " Why: the error of the network's outputs that was predicted of the codec, and what the others would cause "
            "at best in no more bytes."
        )
    table = _scroll(f'<table class="wide">{_head(titles)}<tbody>{"".join(rows)}</tbody></table>', "Every layer")
    return f'<p class="soft">{caption}</p>{table}'


def _why(layer: LayerRow, errors: Mapping[str, float]) -> str:
    """Return why a layer has its codec, as HTML: the error predicted with it, and with each of the others."""
    if layer.codec not in errors or len(errors) == 1:
        return ""
    others = sorted((name for name in errors if name != layer.codec), key=errors.__getitem__)
    text = "; ".join(f"{name} {_percent(errors[name])}" for name in others)
    return f"<strong>{layer.codec} {_percent(errors[layer.codec])}</strong>; {escape(text)}"


def _bar(text: str, share: float) -> str:
    """Return a cell with a number and a bar below it, `share` of the widest."""
    if not text:
        return "<td></td>"
    return f'<td class="bar">{escape(text)}<span style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span></td>'


def _settings(made: Made, *, alone: bool) -> str:
    """Return how a file was made; where there are several, what they share."""
    rows = []
    for key, label in SETTINGS.items():
        value = made.provenance.get(key)
        if value is None or value == [] or (key == "target_bytes" and not alone):
            continue
        rows.append(f"<dt>{escape(label)}</dt><dd>{escape(_text(value))}</dd>")
    if alone:
        rows.append(f"<dt>Bit operations</dt><dd>{made.report.bit_operations:.3g} for one input</dd>")
    return _card("Settings", f"<dl>{''.join(rows)}</dl>")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _card(title: str, content: str) -> str:
    """Return a part of the page; `content` is HTML."""
    return f'<section class="card"><h2>{escape(title)}</h2>{content}</section>'


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text; a column whose name ends in `>` holds numbers."""
    lines = []
    for row in rows:
        cells = [
            f'<td class="number">{escape(text)}</td>' if column.endswith(">") else f"<td>{escape(text)}</td>"
            for column, text in zip(columns, row, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    table = _scroll(f"<table>{_head(columns)}<tbody>{''.join(lines)}</tbody></table>", caption.partition(".")[0])
    return f'<p class="soft">{escape(caption)}</p>{table}'


def _head(columns: Sequence[str]) -> str:
    cells = []
    for column in columns:
        kind = "number" if column.endswith(">") else "text"
        cells.append(f'<th scope="col" class="{kind}">{escape(column.removesuffix(">"))}</th>')
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _figure(svg: bytes, alt: str, least_width: int) -> str:
    """Return a figure, which a narrow window scrolls rather than shrinks below `least_width` pixels."""
    data = base64.b64encode(svg).decode()
    image = f'<img alt="{escape(alt)}" style="min-width:{least_width}px" src="data:image/svg+xml;base64,{data}">'
    return _scroll(image, alt.partition(".")[0])


def _scroll(content: str, label: str) -> str:
    # Reached by the keyboard, so that it can be scrolled without a mouse.
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'
