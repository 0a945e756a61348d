"""What is compared: each cell is one network, compressed in one way to one size, with or without training.

A size is written as `preset:NAME`, `bytes:N`, `ratio:R` (how many times smaller than the network in fp32), `as:SIZE`
(the bytes that ours has with that one), `rate:R` (bits of a weight on grids, on average) or `rule:CODEC` (the same for
all layers); `bytes`, `ratio` and `as` are reached by pyquant's own allocation, from the method's own codec, or of
`mixed` from all. Bytes are those of the file, of presets of codebooks those at fixed length, as files made for a size
have them. Cells that several parts share are run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ingredients import INGREDIENTS, PRUNERS, ROUNDERS

from pyquant.codecs import ProductConfig, codec_name
from pyquant.learn.methods import METHODS

Result = Mapping[str, Any]
Results = Mapping[str, Result]  # by the cell's key

OURS = "gram"
MIXED = "mixed"  # ours, with all codecs to choose from
COMPARED = tuple(  # ours and the published ones that were rebuilt, of product codebooks
    name for name, method in METHODS.items() if method.codec is ProductConfig
)
RATIOS = (8, 12, 20, 30, 45)
MIXED_RATIOS = (4, 8, 12, 20, 30, 50)
UNIFORM_BITS = (8, 4)
TRAINED_RATIOS = (12, 30)
# Without a rate: where there is one, codes are found in another way, of which these pieces are none.
ROUNDED = ("rule:scalar:4", "rule:scalar:3", "rule:scalar:2")
SPARSITIES = ("rule:sparse:0.5", "rule:sparse:2:4", "rule:sparse:0.25", "rule:sparse:0.5;run:4")
GRIDS = ("preset:int4", "rate:3.95", "preset:int3", "rate:2.65", "preset:int2", "rate:1.56", "rate:1.02", "rate:0.67")


CODEC_METHODS = {codec_name(METHODS[name].codec): name for name in (OURS, "obq", "exactobs")} | {MIXED: MIXED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing to measure; its key names it in the results."""

    subject: str  # the network
    method: str  # of METHODS, INGREDIENTS, ROUNDERS or PRUNERS, MIXED, `dense`, or `int8` and the like
    size: str = ""  # none where the method decides it; of a trained cell, that of its row
    trained: bool = False

    @property
    def key(self) -> str:
        training = ["trained"] if self.trained else []
        return " / ".join(filter(None, [self.subject, self.method, self.size, *training]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is promised of ours at a size, in points of top-1."""

    most_below: float  # the dense network, without training
    most_below_trained: float
    least_above_others_trained: float  # or at most half as far below the dense network as the better of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A size at which methods are compared, with and without training.

    The published methods get their own presets and our allocation; the better one without training is trained, and so
    are those with presets, the published methods as they are.
    """

    subject: str
    size: str
    presets: tuple[str, ...]
    goal: Goal | None = None

    def untrained(self, method: str) -> list[Cell]:
        """Return the cells without training, of which the best counts."""
        presets = [replace(cell, trained=False) for cell in self.trained_presets(method)]
        return [Cell(subject=self.subject, method=method, size=self.size), *presets]

    def trained(self, method: str) -> Cell:
        """Return the cell with training."""
        return Cell(subject=self.subject, method=method, size=self.size, trained=True)

    def trained_presets(self, method: str) -> list[Cell]:
        """Return the cells of a published method with its own presets, with training."""
        presets = () if method == OURS else self.presets
        return [Cell(subject=self.subject, method=method, size=f"preset:{name}", trained=True) for name in presets]

    def best_untrained(self, method: str, results: Results) -> tuple[Cell, Result] | None:
        """Return the cell with the most right answers of those that are small enough; None if one is not measured."""
        cells = [self.dense(), *self.untrained(method)]
        if not all(cell.key in results for cell in cells):
            return None
        kind, _, value = self.size.partition(":")
        most = int(value) if kind == "bytes" else results[cells[0].key]["bytes"] / float(value)
        found = [(cell, results[cell.key]) for cell in cells[1:]]
        return max((pair for pair in found if pair[1]["bytes"] <= most), key=lambda pair: pair[1]["top1"])

    def dense(self) -> Cell:
        """Return the cell of the dense network."""
        return Cell(subject=self.subject, method="dense")

    def cells(self) -> Iterator[Cell]:
        """Yield all cells, those without training first."""
        yield self.dense()
        for method in COMPARED:
            yield from self.untrained(method)
        for method in COMPARED:
            yield self.trained(method)
            yield from self.trained_presets(method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is to be measured, by part."""

    rows: tuple[Row, ...]
    curve: str  # the subject whose curve is measured
    ratios: tuple[float, ...] = RATIOS
    grids: tuple[str, ...] = GRIDS  # sizes, of the same subject
    mixed: tuple[float, ...] = MIXED_RATIOS  # and those at which codecs are compared ..
    mixed_trained: tuple[float, ...] = TRAINED_RATIOS  # .. with training ..
    mixed_second: tuple[str, float] | None = None  # .. and on another subject
    rounded: tuple[str, ...] = ROUNDED  # sizes at which ways to round are compared ..
    sparsities: tuple[str, ...] = SPARSITIES  # .. and those at which ways to prune are
    ingredients: tuple[tuple[str, str], ...] = field(default=())  # subject and size

    def codecs(self, ratio: float, *, trained: bool = False, subject: str = "") -> dict[str, Cell]:
        """Return the cells of one size, by codec, and MIXED."""
        return {
            codec: Cell(subject=subject or self.curve, method=method, size=f"ratio:{ratio:g}", trained=trained)
            for codec, method in CODEC_METHODS.items()
        }

    def codec_rows(self) -> list[tuple[str, dict[str, Cell]]]:
        """Return the rows of the table of codecs, each with its name."""
        rows = [(f"{ratio:g}", self.codecs(ratio)) for ratio in self.mixed]
        rows += [(f"{ratio:g}, trained", self.codecs(ratio, trained=True)) for ratio in self.mixed_trained]
        if self.mixed_second is not None:
            subject, ratio = self.mixed_second
            rows.append((f"{ratio:g}, {subject}", self.codecs(ratio, subject=subject)))
        return rows

    def rounding(self) -> dict[str, list[Cell]]:
        """Return the cells of each way to round, by size."""
        return {size: self._reduced(ROUNDERS, size) for size in self.rounded}

    def pruning(self) -> dict[str, list[Cell]]:
        """Return the cells of each way to prune, by size."""
        return {size: self._reduced(PRUNERS, size) for size in self.sparsities}

    def _reduced(self, names: Iterable[str], size: str) -> list[Cell]:
        return [Cell(subject=self.curve, method=name, size=size) for name in names]

    def parts(self) -> dict[str, list[Cell]]:
        """Return the cells of each part, in the order in which they are run."""
        curve = [Cell(subject=self.curve, method="dense")]
        curve += [
            Cell(subject=self.curve, method=method, size=f"ratio:{ratio:g}")
            for method in reversed(COMPARED)  # ours takes longest
            for ratio in self.ratios
        ]
        curve += [Cell(subject=self.curve, method=f"int{bits}") for bits in UNIFORM_BITS]
        grids = [curve[0], *(Cell(subject=self.curve, method="obq", size=size) for size in self.grids)]
        rows = self.codec_rows()
        subjects = dict.fromkeys(cell.subject for _, row in rows for cell in row.values())
        codecs = [Cell(subject=subject, method="dense") for subject in subjects]
        codecs += [cell for _, row in rows for cell in row.values()]
        rounding = [curve[0], *(cell for row in self.rounding().values() for cell in row)]
        pruning = [curve[0], *(cell for row in self.pruning().values() for cell in row)]
        ingredients = [
            Cell(subject=subject, method=ingredient.name(name), size=ingredient.size(size))
            for subject, size in self.ingredients
            for name, ingredient in INGREDIENTS.items()
        ]
        tables = {f"table {row.subject} {row.size}": list(row.cells()) for row in self.rows}
        return {
            **tables,
            "curve": curve,
            "grids": grids,
            "codecs": codecs,
            "rounding": rounding,
            "pruning": pruning,
            "ingredients": ingredients,
        }


FULL = Comparison(
    rows=(
        Row(
            subject="resnet18_tiny64",
            size="bytes:1516000",
            presets=("small-blocks",),
            goal=Goal(most_below=2, most_below_trained=1, least_above_others_trained=1),
        ),
        Row(
            subject="resnet18_tiny64",
            size="bytes:963000",
            presets=("large-blocks",),
            goal=Goal(most_below=6, most_below_trained=3, least_above_others_trained=2),
        ),
        # A size that the published small blocks just keep to.
        Row(subject="second_tiny64", size="ratio:18", presets=("small-blocks",)),
    ),
    curve="resnet18_tiny64",
    mixed_second=("second_tiny64", 18),
    ingredients=(("resnet18_tiny64", "preset:small-blocks"), ("resnet18_tiny64", "preset:large-blocks")),
)

SMOKE = Comparison(
    rows=(Row(subject="digits", size="ratio:8", presets=("large-blocks",)),),
    curve="digits",
    ratios=(8,),
    grids=("preset:int4", "rate:1.5"),
    mixed=(8,),
    mixed_trained=(8,),
    rounded=("rule:scalar:3",),
    sparsities=("rule:sparse:0.25",),
    ingredients=(("digits", "preset:large-blocks"),),
)
