"""The sign-flip test against SciPy and a plain count of all patterns."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from attn_jax.signflip import MOST, seeds_needed, sign_flip, smallest_p


def counted(differences: list[float]) -> float:
    patterns = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in patterns) / len(patterns)


@pytest.mark.parametrize("n", [3, 6, 9])
def test_against_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(80, 2, n), rng.normal(79, 2, n)
    expected = reference.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(list(a - b)) == pytest.approx(expected.pvalue, abs=1e-12)


@given(st.lists(st.integers(-4, 4).map(lambda k: k / 10), min_size=1, max_size=9))
def test_against_counting_with_ties_and_zeros(differences: list[float]) -> None:
    assert sign_flip(differences) == pytest.approx(counted(differences), abs=1e-12)


def test_many_seeds() -> None:
    # By hand: of +-1, ..., +-1 and their sum, |sum| >= 30 - 4 means at most 2 of 30 signs turned, or at least 28.
    tail = 1 + 30 + 435
    assert sign_flip([1.0] * 28 + [-1.0] * 2) == pytest.approx(2 * tail / 2**30, rel=1e-12)
    assert sign_flip([0.1] * MOST) == pytest.approx(2.0 ** (1 - MOST), rel=1e-12)
    assert sign_flip([0.1] * (MOST + 1)) is None


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_smallest_p_is_reached(n: int) -> None:
    assert sign_flip([0.1 * (k + 1) for k in range(n)]) == pytest.approx(smallest_p(n))


@pytest.mark.parametrize(("tests", "alpha"), [(1, 0.05), (3, 0.05), (15, 0.05), (66, 0.01), (1, 1.0), (8, 0.0625)])
def test_seeds_needed_is_the_least_number(tests: int, alpha: float) -> None:
    n = seeds_needed(tests, alpha)
    assert tests * smallest_p(n) <= alpha
    assert n == 1 or tests * smallest_p(n - 1) > alpha


def test_seeds_needed_in_figures() -> None:
    # 2 / 2^6 = 0.031; three pairs: 3 * 2 / 2^7 = 0.047; six variants, 15 pairs: 15 * 2 / 2^10 = 0.029.
    assert [seeds_needed(tests) for tests in (1, 3, 15)] == [6, 7, 10]
