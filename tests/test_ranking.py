"""Confidence sets of ranks against an own step-down procedure on SciPy's one-sided tests."""

import numpy as np
import pytest
from scipy import stats as reference

from attn_jax.ranking import Ranks, ranks
from attn_jax.stats import pairwise


def own_ranks(columns: list[np.ndarray], higher: bool, alpha: float = 0.05) -> dict[int, Ranks]:
    """By the definition: hypotheses are rejected one after the other, each at alpha / (those that are left)."""
    k = len(columns)
    alternative = "greater" if higher else "less"
    p = {
        (i, j): reference.ttest_rel(columns[i], columns[j], alternative=alternative).pvalue
        for i in range(k)
        for j in range(k)
        if i != j
    }
    rejected: list[tuple[int, int]] = []
    for pair in sorted(p, key=lambda pair: p[pair]):
        if p[pair] > alpha / (len(p) - len(rejected)):
            break
        rejected.append(pair)
    return {i: Ranks(1 + sum(b == i for _, b in rejected), k - sum(a == i for a, _ in rejected)) for i in range(k)}


@pytest.mark.parametrize("higher", [True, False])
def test_against_the_step_down_procedure(higher: bool) -> None:
    found = set()
    for study in range(40):
        rng = np.random.default_rng(study)
        columns = [rng.normal(mean, 1.0, 6) for mean in (80, 82, 82, 85, 89)]
        tests = pairwise([dict(enumerate(column.tolist())) for column in columns])
        expected = own_ranks(columns, higher)
        assert ranks(range(5), tests, higher) == expected
        found |= set(expected.values())
    # The studies are not all alike: some ranks are known, some half known, some open.
    assert {Ranks(1, 1), Ranks(2, 3), Ranks(2, 4)} <= found


def test_variants_that_cannot_be_tested_have_all_ranks() -> None:
    tests = pairwise([{0: 1.0}, {0: 2.0}, {1: 3.0}])
    assert set(ranks(range(3), tests, higher=True).values()) == {Ranks(1, 3)}
    assert ranks([1], tests, higher=True) == {1: Ranks(1, 1)}


def test_equal_variants_share_all_ranks() -> None:
    column = dict(enumerate([80.0, 81.0, 82.5]))
    assert set(ranks(range(2), pairwise([column, dict(column)]), higher=True).values()) == {Ranks(1, 2)}
