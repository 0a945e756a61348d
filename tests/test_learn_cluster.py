"""k-means on blocks: its objective is ABGD's, it handles tails and empty clusters, and threads do not change it."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from pyquant.codecs import ProductConfig
from pyquant.codecs.product import blocks_from_weight, decode

pytest.importorskip("torch", reason="learning needs PyTorch")
pytest.importorskip("faiss", reason="learning needs faiss")

from pyquant.learn import cluster
from pyquant.learn.cluster import learn_codebook, split_largest, whitening_factor
from pyquant.learn.workers import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(1) as pool:
        yield pool


def correlated_gram(rng: np.random.Generator, size: int) -> np.ndarray:
    inputs = rng.standard_normal((200, size)) @ rng.standard_normal((size, size))
    return inputs.T @ inputs


def weighted_error(weight: np.ndarray, decoded: np.ndarray, block: tuple[int, int, int], gram: np.ndarray) -> float:
    """Return sum over blocks of (m - c)ᵀ G (m - c), as ABGD writes it."""
    difference = blocks_from_weight(weight - decoded, block).reshape(-1, len(gram)).astype(np.float64)
    return float(np.einsum("bi,ij,bj->", difference, gram, difference))


def test_whitened_distance_is_the_weighted_one(rng: np.random.Generator) -> None:
    gram = correlated_gram(rng, 9)
    factor = whitening_factor(gram).astype(np.float64)
    m, c = rng.standard_normal((2, 50, 9))
    damped = gram / (np.trace(gram) / 9)
    damped = (damped + cluster.DAMPING * np.eye(9)) / (1 + cluster.DAMPING)
    expected = np.einsum("bi,ij,bj->b", m - c, damped, m - c)
    np.testing.assert_allclose((((m - c) @ factor) ** 2).sum(axis=1), expected, rtol=1e-5)


@pytest.mark.parametrize("gram", [np.zeros((4, 4)), np.diag([1.0, 0, 0, 0]), np.ones((4, 4))])
def test_singular_grams_are_usable(gram: np.ndarray) -> None:
    factor = whitening_factor(gram)
    assert np.isfinite(factor).all()
    assert np.linalg.matrix_rank(factor) == 4


def test_codes_are_the_nearest_centroids_in_the_weighted_distance(rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((32, 8, 3, 3), dtype=np.float32)
    config = ProductConfig(block=(1, 3, 3), centroids=16)
    gram = correlated_gram(rng, 9)
    codes, codebook = learn_codebook(weight, config, gram, seed=0, workers=workers)
    assert (codes.shape, codebook.shape, codebook.dtype) == ((1, 32, 8), (1, 16, 9), np.float32)
    factor = whitening_factor(gram)
    blocks = blocks_from_weight(weight, config.block).reshape(-1, 9)
    distances = (((blocks[:, None] - codebook[0][None]) @ factor) ** 2).sum(axis=2)
    chosen = distances[np.arange(len(blocks)), codes.reshape(-1)]
    np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=1e-3)


def test_weighting_lowers_the_weighted_error(rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((64, 16, 1, 1), dtype=np.float32)
    config = ProductConfig(block=(4, 1, 1), centroids=16)
    gram = correlated_gram(rng, 4)
    errors = []
    for used in (gram, None):
        codes, codebook = learn_codebook(weight, config, used, seed=0, workers=workers)
        errors.append(weighted_error(weight, decode(codes, codebook, weight.shape, config), config.block, gram))
    assert errors[0] < 0.9 * errors[1]


def test_k_means_is_much_better_than_random_centroids(rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((64, 32, 3, 3), dtype=np.float32)
    config = ProductConfig(block=(1, 3, 3), centroids=64)
    codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers)
    learnt = np.square(weight - decode(codes, codebook, weight.shape, config)).mean()
    blocks = blocks_from_weight(weight, config.block).reshape(-1, 9)
    drawn = blocks[rng.choice(len(blocks), 64, replace=False)]
    random = np.square(blocks[:, None] - drawn[None]).sum(axis=2).min(axis=1).mean() / 9
    assert learnt < 0.85 * random


def test_noise_that_dies_away_leads_to_better_centroids(rng: np.random.Generator, workers: Workers) -> None:
    config = ProductConfig(block=(4, 1, 1), centroids=64)
    weight = rng.standard_normal((256, 32, 1, 1)).astype(np.float32)
    errors = []
    for annealed in (False, True):
        codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers, annealed=annealed)
        errors.append(float(np.square(decode(codes, codebook, weight.shape, config) - weight).sum()))
    assert errors[1] < 0.99 * errors[0]


def test_well_separated_clusters_are_found(rng: np.random.Generator, workers: Workers) -> None:
    centres = np.array([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]], np.float32)
    truth = rng.integers(4, size=(64, 8))
    weight = (centres[truth] + 0.01 * rng.standard_normal((64, 8, 4))).astype(np.float32).reshape(64, 32)
    config = ProductConfig(block=(4, 1, 1), centroids=4)
    codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers)
    np.testing.assert_allclose(codebook[0][codes[0]], centres[truth], atol=0.02)


@pytest.mark.parametrize("shape", [(40, 7, 3, 3), (40, 8, 5, 3), (40, 9, 5, 5), (200, 5)])
def test_padding_of_tail_blocks_has_no_say(shape: tuple[int, ...], rng: np.random.Generator, workers: Workers) -> None:
    block = (2, 1, 1) if len(shape) == 2 else (2, 3, 3)
    config = ProductConfig(block=block, centroids=8)
    # One value per weight position: without padding every block is the same, so any centroid there is exact.
    weight = np.full(shape, 5.0, np.float32)
    weight += 1e-3 * rng.standard_normal(shape, dtype=np.float32)
    codes, codebook = learn_codebook(weight, config, np.eye(config.dim), seed=0, workers=workers)
    assert np.abs(decode(codes, codebook, shape, config) - weight).max() < 0.01
    # Zeros of the padding would show here: no centroid may drift towards them.
    used = np.unique(codes)
    assert codebook[0][used].min() > 4.9


def test_fewer_blocks_than_centroids_are_kept_as_they_are(rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((4, 8), dtype=np.float32).astype(np.float16).astype(np.float32)
    config = ProductConfig(block=(4, 1, 1), centroids=65536)
    codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers)
    assert codebook.shape == (1, 65536, 4)
    np.testing.assert_array_equal(decode(codes, codebook, weight.shape, config), weight)


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_blocks_than_centroids(distinct: int, rng: np.random.Generator, workers: Workers) -> None:
    values = rng.integers(-8, 8, size=(distinct, 4)).astype(np.float32)
    weight = values[rng.integers(distinct, size=(32, 4))].reshape(32, 16)
    config = ProductConfig(block=(4, 1, 1), centroids=16)
    codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers)
    np.testing.assert_allclose(decode(codes, codebook, weight.shape, config), weight, atol=1e-5)


@pytest.mark.parametrize("centroids", [2, 3, 1000])
def test_any_number_of_centroids(centroids: int, rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((128, 64), dtype=np.float32)
    config = ProductConfig(block=(4, 1, 1), centroids=centroids)
    codes, codebook = learn_codebook(weight, config, None, seed=0, workers=workers)
    assert codebook.shape == (1, centroids, 4)
    assert codes.max() < centroids
    assert len(np.unique(codes)) > 0.9 * centroids


def test_an_empty_cluster_takes_half_of_the_largest(rng: np.random.Generator) -> None:
    centroids = np.array([[0.0, 0], [5, 5], [9, 9]])
    spread = np.array([[1.0, 2], [0, 0], [0.1, 0.1]])
    split_largest(centroids, np.array([100, 0, 3]), spread, rng)
    np.testing.assert_allclose(np.abs(centroids[:2]), [[0.5, 1], [0.5, 1]])
    np.testing.assert_allclose(centroids[0] + centroids[1], 0)
    np.testing.assert_allclose(centroids[2], [9, 9])


def test_threads_and_repetition_do_not_change_the_codes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CHUNK", 100)  # so that there is something to share out
    weight = rng.standard_normal((64, 18, 3, 3), dtype=np.float32)
    config = ProductConfig(block=(2, 3, 3), centroids=32)  # d = 18, where faiss multiplies with its own BLAS
    gram = correlated_gram(rng, 18)
    results = []
    for threads in (1, 2, 3, 1):
        with Workers(threads) as pool:
            results.append(learn_codebook(weight, config, gram, seed=5, workers=pool))
    for codes, codebook in results[1:]:
        np.testing.assert_array_equal(codes, results[0][0])
        np.testing.assert_array_equal(codebook, results[0][1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_of_any_size_are_learnt_alike(scale: float, rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((32, 8, 3, 3), dtype=np.float32)
    config = ProductConfig(block=(1, 3, 3), centroids=16)
    codes, _ = learn_codebook(weight, config, None, seed=0, workers=workers)
    scaled = (weight * scale).astype(np.float32)
    scaled_codes, codebook = learn_codebook(scaled, config, None, seed=0, workers=workers)
    assert (codes == scaled_codes).mean() > 0.9  # some lie between two centroids, which fp16 moves
    assert np.square((decode(codes, codebook, weight.shape, config) - scaled) / scale).mean() < 0.6


def test_seeds_differ(rng: np.random.Generator, workers: Workers) -> None:
    weight = rng.standard_normal((64, 64), dtype=np.float32)
    config = ProductConfig(block=(4, 1, 1), centroids=32)
    first, second = (learn_codebook(weight, config, None, seed=seed, workers=workers)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_faiss_and_torch_work_together_in_either_order(order: str, child_environment: dict[str, str]) -> None:
    program = f"""
import {order}
import numpy as np
from pyquant.codecs import ProductConfig
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.workers import Workers
torch.nn.functional.conv2d(torch.ones(2, 8, 16, 16), torch.ones(8, 8, 3, 3))
weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
with Workers(2) as workers:
    codes, _ = learn_codebook(weight, ProductConfig(block=(4, 1, 1), centroids=16), None, seed=0, workers=workers)
torch.nn.functional.conv2d(torch.ones(2, 8, 16, 16), torch.ones(8, 8, 3, 3))
print(codes.max())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=child_environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 15
