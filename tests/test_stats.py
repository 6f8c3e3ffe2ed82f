"""Statistics against scipy.stats and textbook figures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from attn_jax.signflip import sign_flip
from attn_jax.stats import effect_size, holm, paired, pairwise, summary
from scripts.simulate import NOISES, false_claims, t_coverage

ROWS = [np.random.default_rng(k).normal(80 + k, 1 + k, size=n) for k, n in enumerate((2, 3, 5, 10, 40))]


@pytest.mark.parametrize("values", ROWS, ids=len)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_summary_against_scipy(values: np.ndarray, level: float) -> None:
    result = summary(list(values), level)
    low, high = reference.t.interval(level, len(values) - 1, values.mean(), reference.sem(values))
    assert (result.n, result.mean) == (len(values), pytest.approx(values.mean()))
    assert result.sd == pytest.approx(np.std(values, ddof=1))
    assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))


def test_textbook_interval() -> None:
    # mean 3, sd sqrt(2.5), t(4, .975) = 2.776: 3 +- 2.776 * 1.5811 / 2.2361.
    result = summary([1, 2, 3, 4, 5])
    assert result.high == pytest.approx(3 + 2.776 * math.sqrt(2.5 / 5), abs=2e-3)


def test_one_seed_has_no_interval() -> None:
    result = summary([71.5])
    assert (result.n, result.mean, result.sd, result.low, result.high) == (1, 71.5, None, None, None)
    test = paired({0: 71.5}, {0: 70.0, 1: 3.0})
    assert test is not None
    assert (test.n, test.difference, test.low, test.p) == (1, 1.5, None, None)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_against_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(80, 3, n), rng.normal(78, 3, n)
    # Seeds that only one side has take no part, and the order of seeds does not matter.
    test = paired(dict(enumerate(a)) | {77: 1e6}, dict(reversed(list(enumerate(b)))) | {78: -1e6})
    expected = reference.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert test is not None
    assert (test.n, test.difference) == (n, pytest.approx((a - b).mean()))
    assert test.p == pytest.approx(expected.pvalue)
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_differences_without_noise() -> None:
    same = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    # In decimal fractions all differences are 0.1; as doubles they are not all the same.
    shifted = paired({0: 80.2, 1: 70.3, 2: 60.4}, {0: 80.1, 1: 70.2, 2: 60.3})
    assert shifted is not None
    assert len({80.2 - 80.1, 70.3 - 70.2, 60.4 - 60.3}) > 1
    assert shifted.difference == pytest.approx(0.1)
    assert (shifted.low, shifted.high, shifted.p) == (None, None, None)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_holm_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=7), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        if (len(p_values) - rank) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_pairwise_corrects_over_all_pairs() -> None:
    rng = np.random.default_rng(5)
    columns = [rng.normal(mean, 1.0, 6) for mean in (80, 81, 83, 83)]
    table = pairwise([dict(enumerate(column)) for column in columns])
    pairs = list(itertools.combinations(range(4), 2))
    plain = [reference.ttest_rel(columns[i], columns[j]).pvalue for i, j in pairs]
    assert [table[pair].p for pair in pairs] == pytest.approx(holm(plain))
    assert min(p for test in table.values() if (p := test.p) is not None) == pytest.approx(6 * min(plain))
    for i, j in pairs:
        one, other = table[i, j], table[j, i]
        assert one.difference == pytest.approx((columns[i] - columns[j]).mean())
        assert (one.difference, one.low, one.high, one.p) == (
            -other.difference,
            -(other.high or 0),
            -(other.low or 0),
            other.p,
        )


def test_pairwise_leaves_out_what_cannot_be_compared() -> None:
    table = pairwise([{0: 1.0}, {0: 2.0}, {5: 1.0}])
    assert set(table) == {(0, 1), (1, 0)}
    assert table[0, 1].p is None


def test_effect_size_against_the_definition() -> None:
    a, b = np.array([82.0, 85.0, 81.0, 86.0, 83.0]), np.array([80.0, 84.0, 82.0, 82.0, 80.0])
    test = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert test is not None
    # Hedges' table: J(4) = 0.7979; mean 1.8, sd of 2, 1, -1, 4, 3.
    assert test.effect == pytest.approx(0.7979 * 1.8 / np.std([2, 1, -1, 4, 3], ddof=1), rel=1e-4)
    assert effect_size(1.0, 1.0, 2) is None
    swapped = pairwise([dict(enumerate(b)), dict(enumerate(a))])
    assert swapped[0, 1].effect == pytest.approx(-test.effect)


@pytest.mark.parametrize("n", [3, 5])
def test_effect_size_is_unbiased(n: int) -> None:
    rows = np.random.default_rng(n).normal(1.5, 1.0, (200_000, n))
    found = [effect_size(m, s, n) for m, s in zip(rows.mean(1).tolist(), rows.std(1, ddof=1).tolist(), strict=True)]
    # Without the correction the mean is off by 1.5 * 0.77 (n = 3) and 1.5 * 0.25 (n = 5).
    assert np.mean(np.array(found, float)) == pytest.approx(1.5, abs=0.03)


def test_sign_flips_are_corrected_or_name_the_seeds_they_need() -> None:
    rng = np.random.default_rng(3)
    columns = [dict(enumerate(rng.normal(mean, 1.0, 7).tolist())) for mean in (80, 83, 86)]
    plain = [sign_flip([columns[i][s] - columns[j][s] for s in range(7)]) for i, j in [(0, 1), (0, 2), (1, 2)]]
    table = pairwise(columns)
    assert [table[pair].flip for pair in [(0, 1), (0, 2), (1, 2)]] == holm([p for p in plain if p is not None])
    assert table[0, 2].flip == table[2, 0].flip == pytest.approx(3 * 2 / 2**7)
    # With six seeds the smallest p is 3 * 2 / 2^6 = 0.09, which is no test at 0.05.
    fewer = pairwise([{seed: value for seed, value in column.items() if seed < 6} for column in columns])
    assert {(test.flip, test.needs) for test in fewer.values()} == {(None, 7)}
    assert {test.p is None for test in fewer.values()} == {False}


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_errors_in_simulation(n: int) -> None:
    rng = np.random.default_rng(n)
    assert 0.93 <= t_coverage(NOISES["normal"], n, 2000, rng) <= 0.97
    claims = false_claims(NOISES["normal"], n, 2000, rng, (0.0,) * 4)
    # At or below 5 %: 2,000 studies do not speak against it.
    assert reference.binomtest(round(2000 * max(claims)), 2000, 0.05, "greater").pvalue > 0.01
    # The correction is not so strict that nothing is ever claimed.
    assert claims[0] > 0.01
