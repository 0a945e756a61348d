"""k-means on the blocks of one weight, weighted by the Gram of the layer's inputs; the only user of faiss.

ABGD ("And the Bit Goes Down", Stock et al., ICLR 2020) assigns a block m to the centroid c that minimises
`||A (m - c)||²`, A being the inputs that meet the block. With one Gram `G = AᵀA = L Lᵀ` for all block positions that is
`||Lᵀ (m - c)||²`: plain k-means on whitened blocks `Lᵀ m`, whose centroids are ordinary means. Dimensions as in
`pyquant.codecs.product`: O outputs · J blocks per output row · K centroids · d weights of a block; B = O·J blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce

import faiss
import numpy as np
from numpy.typing import NDArray

from pyquant.codecs.product import ProductConfig, blocks_from_weight, rounded_codebook
from pyquant.learn.workers import Workers

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Codes = NDArray[np.uint16]

MAX_ITERATIONS = 50
SETTLED = 1e-3  # stop when fewer than this fraction of the blocks change their centroid
SEED_ITERATIONS = 10  # of faiss's k-means, on a sample of SEED_POINTS blocks per centroid
ANNEALED_ITERATIONS = 100  # with noise that dies away
SEED_POINTS = 64
MAX_POINTS = 4096  # blocks per centroid that the iterations look at; more would teach nothing (VGG's linear layers)
CHUNK = 32768  # blocks a worker assigns at a time; fixed, so that sums are the same for any number of threads
DAMPING = 3.0  # of the mean of the Gram's diagonal, added to the diagonal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some blocks that have the same weights missing: blocks at the edge of the kernel are padded."""

    rows: Indices  # [n], which blocks
    blocks: Floats  # [n, d]
    present: NDArray[np.bool_]  # [d], false where the block is padded
    whitening: Floats  # [d, d], its rows 0 where the block is padded
    whitened: Floats  # [n, d] = blocks @ whitening


def learn_codebook(
    weight: Floats,
    config: ProductConfig,
    gram: NDArray[np.float64] | None,
    *,
    seed: int,
    workers: Workers,
    annealed: bool = False,
) -> tuple[Codes, Floats]:
    """Return the codes `[1, O, J]` and the codebook `[1, K, d]` of a weight `[O, C, kh, kw]` or `[O, C]`.

    The codebook is rounded to what a file can hold; codes are the nearest centroids after rounding.

    Args:
        gram: `[d, d]` of the inputs that meet a block, at any scale; None: all weights count the same.
        annealed: add noise to the centroids, less and less of it (SR-C; Martinez et al., "LSQ++", ECCV 2018).
    """
    # Distances are squares: weights of any size must neither overflow nor vanish in them.
    unit = np.float32(np.abs(weight).max()) or np.float32(1)
    blocks = blocks_from_weight(weight / unit, config.block)
    outputs, positions, dim = blocks.shape
    flat = blocks.reshape(-1, dim)
    whitening = whitening_factor(np.eye(dim) if gram is None else gram)
    if len(flat) <= config.centroids:
        centroids = np.zeros((config.centroids, dim), np.float32)
        centroids[: len(flat)] = flat * unit
        return np.arange(len(flat), dtype=np.uint16).reshape(1, outputs, positions), rounded_codebook(
            centroids[None], config
        )
    present = blocks_from_weight(np.ones((1, *weight.shape[1:]), np.float32), config.block)[0] > 0  # [J, d]
    chunks = _chunks(flat, present, whitening)
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(flat))[: SEED_POINTS * config.centroids]
    # For the first centroids alone, what is missing takes the mean of its place in the block.
    means = blocks.sum(axis=(0, 1), dtype=np.float64) / (outputs * present.sum(axis=0))
    filled = np.where(present[sample % positions], flat[sample], means.astype(np.float32))
    centroids = seed_centroids(filled @ whitening, config.centroids, seed=seed, workers=workers)
    centroids = np.linalg.solve(whitening.T.astype(np.float64), centroids.T).T.astype(np.float32)
    every = max(1, len(flat) // (MAX_POINTS * config.centroids))
    noise = blocks.reshape(-1, dim).std(axis=0) if annealed else None
    centroids = _iterate(chunks[::every], centroids, rng, workers, noise)
    codebook = rounded_codebook(centroids[None] * unit, config)
    final = workers.map(partial(_nearest, centroids=codebook[0] / unit), chunks)
    codes = np.empty(len(flat), np.uint16)
    for chunk, nearest in zip(chunks, final, strict=True):
        codes[chunk.rows] = nearest
    return codes.reshape(1, outputs, positions), codebook


def whitening_factor(gram: NDArray[np.float64]) -> Floats:
    """Return L `[d, d]`, lower triangular, with `L Lᵀ` the damped Gram scaled to a mean diagonal of 1.

    Damping pulls the Gram towards the identity. One Gram for all blocks is a mean that fits none of them exactly, and
    it knows nothing of errors that add up across blocks; trusted fully, it ruins what it calls cheap. A ResNet-18 for
    64x64 pictures, coded in blocks of 18 without training, had 33.4 % top-1 with a damping of 0.01, 35.6 with 1, 36
    with 3. Damping also makes a singular Gram (an input that is always 0) usable. A Gram of zeros becomes the identity.
    """
    size = len(gram)
    mean = float(np.trace(gram)) / size
    if not mean > 0:
        return np.eye(size, dtype=np.float32)
    symmetric = (gram + gram.T) / (2 * mean)
    return np.linalg.cholesky((symmetric + DAMPING * np.eye(size)) / (1 + DAMPING)).astype(np.float32)


def seed_centroids(points: Floats, centroids: int, *, seed: int, workers: Workers) -> Floats:
    """Return `[K, d]` first centroids: a few iterations of faiss's k-means on points `[B, d]`, B > K."""

    def run(_: None) -> Floats:
        faiss.omp_set_num_threads(1)  # of this worker only
        clustering = faiss.Clustering(points.shape[1], centroids)
        clustering.niter = SEED_ITERATIONS
        clustering.seed = seed % 2**31
        clustering.min_points_per_centroid = 1
        clustering.max_points_per_centroid = SEED_POINTS  # all that are given
        clustering.train(np.ascontiguousarray(points), faiss.IndexFlatL2(points.shape[1]))
        found: Floats = faiss.vector_to_array(clustering.centroids).reshape(centroids, -1)
        return found

    (result,) = workers.map(run, [None])
    return result


def _chunks(flat: Floats, present: NDArray[np.bool_], whitening: Floats) -> list[_Chunk]:
    """Cut the blocks `[B, d]` into chunks; `present` `[J, d]` says which weights of each position are not padding."""
    chunks = []
    position = np.arange(len(flat)) % len(present)
    kinds, kind_of = np.unique(present, axis=0, return_inverse=True)
    for kind, mask in enumerate(kinds):
        rows = np.flatnonzero(kind_of.reshape(-1)[position] == kind)
        # The distance between the weights that are there: the Gram of those weights alone.
        factor = np.zeros_like(whitening)
        seen = np.ix_(mask, mask)
        factor[seen] = np.linalg.cholesky((whitening @ whitening.T)[seen].astype(np.float64))
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            blocks = flat[part]
            chunks.append(_Chunk(rows=part, blocks=blocks, present=mask, whitening=factor, whitened=blocks @ factor))
    return chunks


def _nearest(chunk: _Chunk, centroids: Floats) -> Indices:
    faiss.omp_set_num_threads(1)  # of this worker only
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids @ chunk.whitening)
    _, nearest = index.search(chunk.whitened, 1)
    return np.asarray(nearest[:, 0], np.int64)


def _iterate(
    chunks: list[_Chunk], centroids: Floats, rng: np.random.Generator, workers: Workers, noise: Floats | None
) -> Floats:
    """Return the centroids `[K, d]` after Lloyd's iterations: assign, take means, fill empty clusters.

    Args:
        noise: `[d]`, standard deviations of what iteration i of I adds to each block before means are taken, times
            (1 - i/I)^0.5; None: nothing, and the iterations end when they have settled.
    """
    total = sum(len(chunk.rows) for chunk in chunks)
    before: list[Indices] = []
    iterations = MAX_ITERATIONS if noise is None else ANNEALED_ITERATIONS
    for iteration in range(iterations):
        parts = workers.map(partial(_assign, centroids=centroids), chunks)
        nearest, tally = [part[0] for part in parts], reduce(_Tally.plus, (part[1] for part in parts))
        changed = sum(int((a != b).sum()) for a, b in zip(before, nearest, strict=True)) if before else total
        means = tally.sums / np.maximum(tally.counts, 1)[:, None]
        spread = np.sqrt(np.maximum(tally.squares / np.maximum(tally.counts, 1)[:, None] - means**2, 0))
        # A centroid that has lost its blocks keeps its place until it is given half of a large cluster.
        means = np.where(tally.counts[:, None] > 0, means, centroids)
        if noise is not None:
            # The mean of so many blocks' noise.
            deviation = noise * np.sqrt((1 - (iteration + 1) / iterations) / np.maximum(tally.counts, 1))[:, None]
            means += deviation * rng.standard_normal(means.shape)
        split_largest(means, tally.counts, spread, rng)
        centroids, before = means.astype(np.float32), nearest
        if noise is None and changed <= SETTLED * total:
            break
    return centroids


@dataclass(frozen=True, slots=True)
class _Tally:
    """Of the blocks of each centroid: their number `[K]`, their sum and the sum of their squares `[K, d]`."""

    counts: Indices
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    def plus(self, other: _Tally) -> _Tally:
        return _Tally(self.counts + other.counts, self.sums + other.sums, self.squares + other.squares)


def _assign(chunk: _Chunk, centroids: Floats) -> tuple[Indices, _Tally]:
    nearest = _nearest(chunk, centroids)
    # A missing weight agrees with any centroid: it takes its centroid's value (as in Chi et al., "k-POD", 2016).
    blocks = chunk.blocks if chunk.present.all() else np.where(chunk.present, chunk.blocks, centroids[nearest])
    columns = [column.astype(np.float64) for column in blocks.T]
    tally = _Tally(
        counts=np.bincount(nearest, minlength=len(centroids)).astype(np.int64),
        sums=np.stack([np.bincount(nearest, column, len(centroids)) for column in columns], axis=1),
        squares=np.stack([np.bincount(nearest, column**2, len(centroids)) for column in columns], axis=1),
    )
    return nearest, tally


def split_largest(
    centroids: NDArray[np.float64], counts: Indices, spread: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Give each empty cluster one half of the largest: two centroids on either side of its mean, in place (as ABGD).

    Args:
        spread: `[K, d]`, standard deviations of the blocks of each cluster.
    """
    counts = counts.copy()
    for empty in np.flatnonzero(counts == 0):
        largest = int(counts.argmax())
        if counts[largest] < 2:
            return
        step = 0.5 * spread[largest] * rng.choice([-1.0, 1.0], len(spread[largest]))
        centroids[empty] = centroids[largest] + step
        centroids[largest] -= step
        spread[empty] = spread[largest] = spread[largest] / 2
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
