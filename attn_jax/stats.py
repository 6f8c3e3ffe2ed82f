"""What seeds say about a variant, and about the difference of two variants.

The seed is the unit of replication. Runs of equal seed are paired: they share the order of the data, so the
difference by seed has less noise than the difference of two means.

Two tests of a difference stand side by side. The paired t-test assumes that differences are normal and has power with
few seeds: it gives the p value of the tables and the intervals. The exact sign-flip test assumes symmetry alone; with
few seeds not even its smallest p value passes the correction, and then the number of seeds that it needs stands there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from attn_jax.signflip import seeds_needed, sign_flip, smallest_p

ALPHA = 0.05
"""The chance of any false rejection in a table of corrected tests."""


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
    """Mean difference a - b over common seeds, its interval and two-sided p values; None where they cannot be told.

    p: of the paired t-test; flip: of the exact sign-flip test; effect: see `effect_size`.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None = None
    flip: float | None = None


@dataclasses.dataclass(frozen=True)
class Compared(Paired):
    """One of several comparisons: `p` and `flip` are Holm-corrected over all of them.

    plain: p of the paired t-test before the correction. needs: the seeds that the sign-flip test needs for its
    smallest p value to pass the correction at `ALPHA`; with fewer `flip` is None: no outcome could be significant.
    """

    plain: float | None = None
    needs: int = 0

    def turned(self) -> "Compared":
        """The comparison b - a."""
        low, high = (None, None) if self.low is None or self.high is None else (-self.high, -self.low)
        effect = None if self.effect is None else -self.effect
        return dataclasses.replace(self, difference=-self.difference, low=low, high=high, effect=effect)


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
    """Paired tests of a - b by seed, over the seeds that both have; None if they have none in common.

    Where every difference is the same, t has no noise to divide by: p is 1 if that difference is 0; else there is
    neither an interval nor a p value: a few seeds that happen to agree do not measure the noise.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    differences = [a[seed] - b[seed] for seed in seeds]
    result = summary(differences, level)
    if result.sd is None:
        return Paired(result.n, result.mean, None, None, None)
    # Equal differences of decimal fractions differ in their last bits.
    rounding = 1e-12 * max(1.0, *(abs(side[seed]) for side in (a, b) for seed in seeds))
    if result.sd <= rounding:
        same = abs(result.mean) <= rounding
        if same:
            return Paired(result.n, 0.0, 0.0, 0.0, 1.0, flip=1.0)
        return Paired(result.n, result.mean, None, None, None, flip=sign_flip(differences))
    from scipy.special import stdtr

    p = float(2 * stdtr(result.n - 1, -abs(result.mean) / (result.sd / math.sqrt(result.n))))
    effect = effect_size(result.mean, result.sd, result.n)
    return Paired(result.n, result.mean, result.low, result.high, p, effect, sign_flip(differences))


def effect_size(mean: float, sd: float, n: int) -> float | None:
    """Standardised mean of n paired differences: d_z = mean / sd, with Hedges' correction for few of them.

    g_z = J(n - 1) d_z, J(v) = Gamma(v / 2) / (sqrt(v / 2) Gamma((v - 1) / 2)), which makes it unbiased where the
    differences are normal; None where n < 3, for which there is no such factor. It counts standard deviations of the
    difference between two runs of one seed; how much a difference matters, the difference itself says.

    Source: Cohen (1988), Statistical power analysis, section 2.3.5; Hedges (1981), Distribution theory for Glass's
    estimator of effect size; names as in Lakens (2013).
    """
    if n < 3:
        return None
    v = n - 1
    correction = math.exp(math.lgamma(v / 2) - math.lgamma((v - 1) / 2)) / math.sqrt(v / 2)
    return correction * mean / sd


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


def pairwise(
    variants: Sequence[Mapping[int, float]], scales: Sequence[str] | None = None
) -> dict[tuple[int, int], Compared]:
    """`paired` for every pair of variants, given as {seed: value}; p values are Holm-corrected over all tested pairs.

    Both orders are there: (i, j) is variant i - variant j. Pairs without a common seed are left out, and those whose
    values are not on one scale; scales: of every variant, all the same by default.
    """
    pairs = {
        (i, j): test
        for i in range(len(variants))
        for j in range(i + 1, len(variants))
        if (scales is None or scales[i] == scales[j]) and (test := paired(variants[i], variants[j])) is not None
    }
    tested = {pair: test.p for pair, test in pairs.items() if test.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    flipped = {pair: test.flip for pair, test in pairs.items() if test.flip is not None}
    corrected_flip = dict(zip(flipped, holm(list(flipped.values())), strict=True))
    needs = seeds_needed(len(flipped)) if flipped else 0
    table: dict[tuple[int, int], Compared] = {}
    for (i, j), test in pairs.items():
        can_pass = len(flipped) * smallest_p(test.n) <= ALPHA
        fields = dataclasses.asdict(test) | {"p": corrected.get((i, j)), "plain": test.p, "needs": needs}
        table[i, j] = Compared(**fields | {"flip": corrected_flip.get((i, j)) if can_pass else None})
        table[j, i] = table[i, j].turned()
    return table


def _quantile(degrees: int, level: float) -> float:
    # scipy.special takes a fraction of the time that importing scipy.stats does.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))
