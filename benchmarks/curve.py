"""The curve of top-1 against bytes as a picture: SVG, written by hand, for no library is needed for a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from cells import COMPARED, UNIFORM_BITS, Cell, Comparison, Results

WIDTH, HEIGHT = 720, 440  # pixels
LEFT, RIGHT, TOP, BOTTOM = 60, 130, 20, 50  # margins
COLOURS = ("#1b6ca8", "#c4522a", "#3b8a3e", "#7a4fa3", "#8a6d1f")
GRID = "#dddddd"


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a number lies between two ends, in pixels; on a logarithmic axis if asked for."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def draw(comparison: Comparison, results: Results) -> str:
    """Return the picture of what has been measured so far."""
    dense = results.get(Cell(subject=comparison.curve, method="dense").key)
    lines = {
        method: [Cell(subject=comparison.curve, method=method, size=f"ratio:{ratio:g}") for ratio in comparison.ratios]
        for method in COMPARED
    }
    lines["uniform"] = [Cell(subject=comparison.curve, method=f"int{bits}") for bits in UNIFORM_BITS]
    points = {
        name: sorted((results[cell.key]["bytes"], results[cell.key]["top1"]) for cell in cells if cell.key in results)
        for name, cells in lines.items()
    }
    everything = [point for line in points.values() for point in line]
    if not everything:
        return _svg([_text(WIDTH / 2, HEIGHT / 2, "nothing measured yet", "middle")])
    sizes = [size for size, _ in everything]
    x = Scale(min(sizes) / 1.15, max(sizes) * 1.15, LEFT, WIDTH - RIGHT, logarithmic=True)
    best = max([top1 for _, top1 in everything] + ([dense["top1"]] if dense else []))
    step = 5 if best <= 50 else 10
    y = Scale(0, step * (int(best / step) + 1), HEIGHT - BOTTOM, TOP)
    parts = []
    for value in range(0, int(y.high) + 1, step):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{GRID}"/>'
        )
        parts.append(_text(LEFT - 8, y(value) + 4, str(value), "end"))
    for value in _ticks(x.low, x.high):
        parts.append(
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}"/>'
        )
        parts.append(_text(x(value), HEIGHT - BOTTOM + 18, f"{value / 1e6:g} MB", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "file, header included", "middle"))
    parts.append(_text(LEFT - 8, TOP - 6, "top-1, %", "end"))
    if dense:
        at = y(dense["top1"])
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#555" stroke-dasharray="5 4"/>'
        )
        parts.append(_text(WIDTH - RIGHT + 8, at + 4, "dense", "start"))
    legend = TOP + 40
    for colour, (name, line) in zip(COLOURS, points.items(), strict=False):
        if not line:
            continue
        path = " ".join(f"{x(size):.1f},{y(top1):.1f}" for size, top1 in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(top1):.1f}" r="3.5" fill="{colour}"/>' for size, top1 in line]
        parts.append(f'<circle cx="{WIDTH - RIGHT + 14}" cy="{legend - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 24, legend, name, "start"))
        legend += 20
    return _svg(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers of bytes on a logarithmic axis."""
    return [digit * 10.0**power for power in range(3, 10) for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
