"""Hierarchical bootstrap: what another draw of seeds and another draw of test sentences would have changed.

A t-interval over seeds holds the test set fixed. Here sentences are drawn again too. Every seed is tested on the same
sentences: so the two are drawn independently of each other, and all variants get the same draws of both.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 1000

CHUNK = 100
"""Resamples whose counts of sentences are held in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its percentile interval over resamples."""

    n: int
    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Scores of every variant and seed: of all sentences, [V, S], and of B draws of sentences, [B, V, S].

    NaN where a variant has no run of a seed. What is derived from it draws seeds as well: for each of the B draws of
    sentences as many seeds as there are, with replacement. The draw depends on `seed` and the number of seeds alone.

    The percentile interval of a plain bootstrap over n seeds is too narrow where n is small: it divides by n where
    n - 1 is due, and knows no t quantile. What the draw of seeds adds to a mean is therefore stretched, in intervals by
    sqrt(n / (n - 1)) t(n - 1) / z, with the quantiles of their level, and in `best` by sqrt(n / (n - 1)).
    scripts/simulate prints the coverage.

    Source: Owen (2007), The pigeonhole bootstrap, for two crossed factors: its variance is that of both factors'
    effects, and a little above. Hesterberg (2015), What teachers should know about the bootstrap, section 3.2 and the
    expanded percentile interval, for the stretching, which is here of one factor.
    """

    whole: np.ndarray
    draws: np.ndarray
    seed: int = 0

    def mean(self, variant: int, level: float = 0.95) -> Interval | None:
        """Mean of a variant over its seeds; None without any. From one seed: what the draw of sentences changes."""
        return self._interval(self.whole[variant], self.draws[:, variant], level)

    def difference(self, one: int, other: int, level: float = 0.95) -> Interval | None:
        """Mean difference one - other over common seeds, on the same sentences; None without a common seed."""
        return self._interval(self.whole[one] - self.whole[other], self.draws[:, one] - self.draws[:, other], level)

    def best(self, higher: bool) -> dict[int, float]:
        """By variant, the share of resamples in which it is best, over the seeds that all variants with runs have.

        Ties share. Empty without a common seed.
        """
        variants = np.flatnonzero(np.isfinite(self.whole).any(axis=1))
        columns = np.flatnonzero(np.isfinite(self.whole[variants]).all(axis=0))
        if not len(columns) or not len(variants):
            return {}
        means = self._means(self.draws[:, variants][:, :, columns], _narrowness(len(columns)))
        means = means[np.isfinite(means).all(axis=1)]
        extreme = means.max(axis=1) if higher else means.min(axis=1)
        wins = np.isclose(means, extreme[:, None], rtol=0, atol=1e-9)
        shares = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
        return dict(zip(variants.tolist(), shares.tolist(), strict=True))

    def _interval(self, whole: np.ndarray, draws: np.ndarray, level: float) -> Interval | None:
        columns = np.flatnonzero(np.isfinite(whole))
        if not len(columns):
            return None
        stretch = _narrowness(len(columns)) * _expansion(len(columns), level)
        means = self._means(draws[:, None, columns], stretch)[:, 0]
        # A draw of sentences without any reference symbol has no score.
        low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
        return Interval(len(columns), float(whole[columns].mean()), float(low), float(high))

    def _means(self, draws: np.ndarray, stretch: float) -> np.ndarray:
        """Means [B, V] of scores [B, V, S] over seeds drawn with replacement, the same for all variants."""
        seeds = draws.shape[-1]
        even = np.full(seeds, 1 / seeds)
        counts = np.random.default_rng([self.seed, seeds]).multinomial(seeds, even, len(draws))
        return np.einsum("bvs,bs->bv", draws, even + stretch * (counts / seeds - even))


def _narrowness(n: int) -> float:
    return math.sqrt(n / (n - 1)) if n > 1 else 1.0


def _expansion(n: int, level: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(n - 1, (1 + level) / 2) / ndtri((1 + level) / 2)) if n > 1 else 1.0


def resample(
    statistics: Sequence[Mapping[int, np.ndarray]],
    formula: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Draws N sentences with replacement, B = `resamples` times, and scores every variant and seed on each draw.

    statistics: by variant {seed: statistics [N, K] of the same N sentences}, see `metrics.per_sentence`; at least one
    is there. formula: scores [B] of sums [B, K] over sentences, see `metrics.aggregates`.
    """
    seeds = sorted({own for variant in statistics for own in variant})
    places = [(v, s) for v, variant in enumerate(statistics) for s, own in enumerate(seeds) if own in variant]
    stacked = np.stack([statistics[v][seeds[s]] for v, s in places], axis=1)  # [N, runs, K]
    sentences, runs, width = stacked.shape
    flat = stacked.reshape(sentences, runs * width)
    rng = np.random.default_rng(seed)
    sums = [flat.sum(axis=0, keepdims=True)]
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        counts = rng.multinomial(sentences, np.full(sentences, 1 / sentences), size)
        sums.append(counts.astype(float) @ flat)
    scores = np.full((resamples + 1, len(statistics), len(seeds)), np.nan)
    totals = np.concatenate(sums).reshape(resamples + 1, runs, width)
    for run, (v, s) in enumerate(places):
        scores[:, v, s] = formula(totals[:, run])
    return Resampled(scores[0], scores[1:], seed)
