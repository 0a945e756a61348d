"""What entropy coding saves on published networks, what it costs until the first result, and how fast it decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from figures import CHECKPOINTS, Figure, Setting

import pyquant
from pyquant import _core
from pyquant.codecs.packing import pack_codes
from pyquant.file import dumps, read_model

SHAPE = (1, 3, 224, 224)
TURNS = 21  # of a fixed-length file and of a coded one
DECODINGS = 15
CODES = 4_000_000  # of each alphabet that is decoded
CENTROIDS = (2, 8, 16, 32, 64, 256, 512, 2048, 4096)
LEAST_SAVED = 1.0  # %
MOST_TIMES = 1.3  # until the first result
LEAST_SPEED = 200  # MB/s


def measure_entropy(setting: Setting) -> list[Figure]:
    """Compare each import with the same file without entropy coding, on one thread; then decode codes by themselves."""
    figures = []
    for checkpoint in CHECKPOINTS:
        coded = setting.imported(checkpoint)
        fixed = setting.folder / f"{checkpoint}_fixed.pqmodel"
        fixed.write_bytes(dumps(read_model(coded), fixed_length=True))
        sizes = {"fixed length": fixed.stat().st_size, "entropy-coded": coded.stat().st_size}
        saved = 100 * (1 - sizes["entropy-coded"] / sizes["fixed length"])
        figures += [Figure(name=f"{checkpoint} {kind}", value=size, unit="bytes") for kind, size in sizes.items()]
        figures.append(
            Figure(
                name=f"{checkpoint} saved",
                value=saved,
                unit="%",
                target=f"≥ {LEAST_SAVED:g}",
                met=saved >= LEAST_SAVED,
            )
        )
        figures += _first_results(checkpoint, fixed, coded)
    return figures + [_speed(centroids) for centroids in CENTROIDS]


def _first_results(checkpoint: str, fixed: Path, coded: Path) -> list[Figure]:
    """Load and run both files in turns."""
    x = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    loads: dict[Path, list[float]] = {fixed: [], coded: []}
    firsts: dict[Path, list[float]] = {fixed: [], coded: []}
    outputs = {}
    for _ in range(TURNS):
        for path in (fixed, coded):
            start = perf_counter()
            model = pyquant.load(path, threads=1)
            loads[path].append(1000 * (perf_counter() - start))
            outputs[path] = model(x)
            firsts[path].append(1000 * (perf_counter() - start))
    same = np.asarray(outputs[fixed]).tobytes() == np.asarray(outputs[coded]).tobytes()
    times = float(np.median(firsts[coded]) / np.median(firsts[fixed]))
    return [
        Figure(name=f"{checkpoint} same outputs", value=same, unit="of 1", target="bit for bit", met=same),
        *(
            _timed(f"{checkpoint} {kind}, {what}", measured[path])
            for what, measured in (("load", loads), ("file to first result", firsts))
            for kind, path in (("fixed length", fixed), ("entropy-coded", coded))
        ),
        Figure(
            name=f"{checkpoint} file to first result, times",
            value=times,
            unit="x the fixed-length file",
            target=f"≤ {MOST_TIMES:g}",
            met=times <= MOST_TIMES,
        ),
    ]


def _timed(name: str, ms: list[float]) -> Figure:
    low, median, high = np.percentile(ms, (10, 50, 90))
    return Figure(name=name, value=float(median), unit="ms", low=float(low), high=float(high))


def _speed(centroids: int) -> Figure:
    """Decode codes whose frequencies differ as much as those of learnt codebooks, to packed codes."""
    rng = np.random.default_rng(0)
    shares = rng.gamma(3.0, 1.0, centroids)
    bits = (centroids - 1).bit_length()
    packed = pack_codes(rng.choice(centroids, size=CODES, p=shares / shares.sum()), bits)
    coded = _core.encode_codes(packed, bits, 1, CODES)
    speeds = [packed.size / 1e6 / _seconds(lambda: _core.decode_codes(coded, bits, 1, CODES)) for _ in range(DECODINGS)]
    low, median, high = np.percentile(speeds, (10, 50, 90))
    return Figure(
        name=f"decoding, {centroids} centroids",
        value=float(median),
        unit="MB/s of packed codes, processor time",
        low=float(low),
        high=float(high),
        target=f"≥ {LEAST_SPEED}",
        met=bool(median >= LEAST_SPEED),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor time that some work takes on its one thread, whatever else the machine does."""
    start = process_time()
    work()
    return process_time() - start
