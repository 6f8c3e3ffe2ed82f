"""The exact sign-flip test of paired differences: no assumption on the shape of the noise, but many seeds needed."""

import math
from collections.abc import Sequence

import numpy as np

MOST = 40
"""Seeds up to which the test is computed: 2^40 patterns as two halves of 2^20 sums."""


def sign_flip(differences: Sequence[float]) -> float | None:
    """Two-sided p value of the hypothesis that the n differences are symmetric about 0; None beyond `MOST`.

    p = #{s in {-1, 1}^n: |sum_i s_i d_i| >= |sum_i d_i|} / 2^n, over all 2^n patterns of signs: swapping the labels of
    two variants within a seed changes the sign of its difference. p is at least `smallest_p(n)`.

    Source: Fisher (1935), The design of experiments, section 21; Pitman (1937). All patterns are counted without
    writing them down: sums of one half of the seeds are looked up among sorted sums of the other half.
    """
    if len(differences) > MOST:
        return None
    array = np.asarray(differences, float)
    # Sums that are equal as decimal fractions may differ in their last bits.
    least = abs(float(array.sum())) - 1e-10 * float(np.abs(array).sum())
    if least <= 0:
        return 1.0
    one, other = _sums(array[: len(array) // 2]), np.sort(_sums(array[len(array) // 2 :]))
    above = len(other) - np.searchsorted(other, least - one, side="left")
    below = np.searchsorted(other, -least - one, side="right")
    return float((above.sum() + below.sum()) / 2.0 ** len(array))


def _sums(values: np.ndarray) -> np.ndarray:
    """sum_i s_i values_i for all 2^n patterns of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_p(n: int) -> float:
    """The smallest p value that n seeds can give: all n differences have one sign, 2 of 2^n patterns."""
    return min(1.0, 2.0 ** (1 - n))


def seeds_needed(tests: int, alpha: float = 0.05) -> int:
    """The least number of seeds with which the smallest p value passes Holm's correction of so many tests at alpha.

    The first step of the correction is the hardest: tests * 2^(1 - n) <= alpha.
    """
    n = max(1, math.ceil(1 + math.log2(tests / alpha)) - 1)
    while tests * smallest_p(n) > alpha:
        n += 1
    return n
