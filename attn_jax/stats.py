"""What seeds say about a variant, and about the difference of two variants.

The seed is the unit of replication. Runs of equal seed are paired: they share the order of the data, so the
difference by seed has less noise than the difference of two means.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean over seeds; `sd` (n - 1 below the line), `low` and `high` are None where n < 2."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Paired:
    """Mean difference a - b over common seeds, its interval and two-sided p value; None where they cannot be told."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


def summary(values: Sequence[float], level: float = 0.95) -> Summary:
    """Mean, standard deviation and Student t-interval, mean +- t(n - 1) sd / sqrt(n), of n >= 1 values."""
    array = np.asarray(values, float)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Summary(n, mean, None, None, None)
    sd = float(array.std(ddof=1))
    half = _quantile(n - 1, level) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Paired | None:
    """Paired t-test of a - b by seed, over the seeds that both have; None if they have none in common.

    Where every difference is the same, t has no noise to divide by: p is 1 if that difference is 0; else there is
    neither an interval nor a p value: a few seeds that happen to agree do not measure the noise.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    result = summary([a[seed] - b[seed] for seed in seeds], level)
    if result.sd is None:
        return Paired(result.n, result.mean, None, None, None)
    # Equal differences of decimal fractions differ in their last bits.
    rounding = 1e-12 * max(1.0, *(abs(side[seed]) for side in (a, b) for seed in seeds))
    if result.sd <= rounding:
        same = abs(result.mean) <= rounding
        return Paired(result.n, 0.0, 0.0, 0.0, 1.0) if same else Paired(result.n, result.mean, None, None, None)
    from scipy.special import stdtr

    p = float(2 * stdtr(result.n - 1, -abs(result.mean) / (result.sd / math.sqrt(result.n))))
    return Paired(result.n, result.mean, result.low, result.high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that control the chance of any false rejection.

    With p sorted ascending, the i-th (from 0) of m becomes max over j <= i of min(1, (m - j) p_j). Source:
    Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def pairwise(variants: Sequence[Mapping[int, float]]) -> dict[tuple[int, int], Paired]:
    """`paired` for every pair of variants, given as {seed: value}; p is Holm-corrected over all tested pairs.

    Both orders are there: (i, j) is variant i - variant j. Pairs without a common seed are left out.
    """
    pairs = {
        (i, j): test
        for i in range(len(variants))
        for j in range(i + 1, len(variants))
        if (test := paired(variants[i], variants[j])) is not None
    }
    tested = {pair: test.p for pair, test in pairs.items() if test.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    table = {}
    for (i, j), test in pairs.items():
        table[i, j] = dataclasses.replace(test, p=corrected.get((i, j)))
        low, high = (None, None) if test.low is None or test.high is None else (-test.high, -test.low)
        table[j, i] = Paired(test.n, -test.difference, low, high, corrected.get((i, j)))
    return table


def _quantile(degrees: int, level: float) -> float:
    # scipy.special takes a fraction of the time that importing scipy.stats does.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))
