"""The hierarchical bootstrap against texts scored again, all draws counted, and SciPy."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from attn_jax import metrics
from attn_jax.bootstrap import Resampled, resample

REFERENCES = [["the cat sat on the mat"], ["a dog ran home today"], ["it rains"], ["two birds sing in the old tree"]]
OUTPUTS = [
    ["the cat sat on a mat", "a dog ran home today", "it snows", "two birds sing in a tree"],
    ["a cat sat on the mat", "the dog ran home", "it rains", "two birds sing in the old tree"],
]


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def scored(values: np.ndarray) -> np.ndarray:
    """Statistics of sentences whose scores are `values`."""
    return np.stack([values, np.ones(len(values))], axis=1)


@pytest.mark.parametrize("name", metrics.OUTPUT_METRICS)
def test_scores_of_draws_are_scores_of_the_drawn_sentences(name: str) -> None:
    statistics = [{7: metrics.per_sentence(name, outputs, REFERENCES)} for outputs in OUTPUTS]
    found = resample(statistics, functools.partial(metrics.aggregates, name), resamples=8, seed=3)
    counts = np.random.default_rng(3).multinomial(4, np.full(4, 1 / 4), 8)
    for v, outputs in enumerate(OUTPUTS):
        assert found.whole[v, 0] == metrics.score([name], outputs, REFERENCES)[name]
        for b in range(8):
            drawn = np.repeat(np.arange(4), counts[b])
            expected = metrics.score([name], [outputs[i] for i in drawn], [REFERENCES[i] for i in drawn])[name]
            assert found.draws[b, v, 0] == pytest.approx(expected)
    assert len({tuple(row) for row in counts.tolist()}) > 4


def test_with_one_seed_it_is_the_percentile_bootstrap_of_sentences() -> None:
    values = np.random.default_rng(0).lognormal(0, 1, 60)
    found = resample([{0: scored(values)}], ratio, resamples=20_000).mean(0)
    expected = reference.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found is not None
    assert (found.n, found.mean) == (1, pytest.approx(values.mean()))
    spread = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.02 * spread)
    assert found.high == pytest.approx(expected.high, abs=0.02 * spread)


def test_without_noise_of_sentences_all_draws_of_seeds_can_be_counted() -> None:
    own = np.array([80.0, 83.0, 81.0, 87.0])
    found = resample([{s: scored(np.full(5, v)) for s, v in enumerate(own)}], ratio, resamples=40_000).mean(0, 0.8)
    # Every draw of 4 seeds is one of 4^4; deviations of the mean are stretched by sqrt(4 / 3) t / z.
    stretch = math.sqrt(4 / 3) * reference.t.ppf(0.9, 3) / reference.norm.ppf(0.9)
    means = [np.mean(draw) for draw in itertools.product(own, repeat=4)]
    low, high = own.mean() + stretch * (np.quantile(means, [0.1, 0.9]) - own.mean())
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_variance_is_that_of_seeds_and_sentences() -> None:
    rng = np.random.default_rng(5)
    seeds, sentences = 40, 300
    scores = rng.normal(size=(seeds, 1)) + 4 * rng.normal(size=(1, sentences))
    found = resample([{s: scored(row) for s, row in enumerate(scores)}], ratio, resamples=4000)
    interval = found.mean(0)
    # Effects are additive, so the variances of the two means add up.
    variance = scores.mean(axis=1).var(ddof=1) / seeds + scores.mean(axis=0).var() / sentences
    assert interval is not None
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(math.sqrt(variance), rel=0.05)


def test_differences_are_paired_by_sentence_and_by_seed() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(50, 20, (5, 1)) + rng.normal(0, 20, (1, 80))
    one = {s: scored(row) for s, row in enumerate(scores)}
    other = {s: scored(row - 3) for s, row in enumerate(scores)}
    found = resample([one, other, {9: scored(scores[0])}], ratio)
    interval = found.difference(0, 1)
    assert interval is not None
    assert (interval.n, interval.low, interval.high) == (5, pytest.approx(3), pytest.approx(3))
    alone = found.mean(0)
    assert alone is not None
    assert alone.high - alone.low > 10
    assert found.difference(0, 2) is None
    assert found.best(higher=True) == {}


def test_draws_depend_on_the_seed_alone() -> None:
    rng = np.random.default_rng(8)
    variants = [{s: scored(rng.normal(size=30)) for s in range(3)} for _ in range(3)]
    whole = resample(variants, ratio, 50)
    assert resample(variants[1:], ratio, 50).mean(0) == whole.mean(1)
    assert resample(variants, ratio, 50).difference(0, 2) == whole.difference(0, 2)
    assert resample(variants, ratio, 50, seed=1).mean(1) != whole.mean(1)


def test_the_best_shares_ties() -> None:
    draws = np.array([[[1.0], [2.0], [2.0]], [[5.0], [1.0], [0.0]], [[0.0], [0.0], [0.0]], [[4.0], [3.0], [9.0]]])
    found = Resampled(draws[0], draws)
    assert found.best(higher=True) == pytest.approx({0: (1 + 1 / 3) / 4, 1: (1 / 2 + 1 / 3) / 4, 2: (1.5 + 1 / 3) / 4})
    assert found.best(higher=False) == pytest.approx({0: (1 + 1 / 3) / 4, 1: (1 / 3 + 1) / 4, 2: (1 + 1 / 3) / 4})
