"""How far fp32 results may differ from each other, derived once."""

import numpy as np

EPS = float(np.finfo(np.float32).eps)


def assert_close(got: np.ndarray, expected: np.ndarray, terms: int) -> None:
    """Compare two sums of `terms` products, computed in different orders.

    Rounding errors of a sum grow with the square root of its length where their signs are random; the factor 8 leaves
    room for the worst of many values. What counts is the size of the largest expected value: single results may cancel.
    """
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    bound = 8 * EPS * np.sqrt(terms + 1) * max(float(np.abs(expected).max(initial=0)), 1e-30)
    worst = float(np.abs(got.astype(np.float64) - expected).max(initial=0))
    assert worst <= bound, f"differs by {worst:.3g}, allowed {bound:.3g}"
