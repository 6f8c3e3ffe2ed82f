"""Effects of axes against tables of statsmodels (scripts/statsmodels_tables.py) and grids with known effects."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_jax.effects import effects
from attn_jax.stats import holm, summary

STORED = json.loads((Path(__file__).parent / "arrays" / "statsmodels.json").read_text("utf-8"))


def cells_of(grid: dict[str, Any]) -> dict[tuple[Any, ...], dict[int, float]]:
    cells: dict[tuple[Any, ...], dict[int, float]] = {}
    for levels, seed, value in grid["values"]:
        cells.setdefault(tuple(levels), {})[seed] = value
    return cells


@pytest.mark.parametrize("grid", STORED["grids"], ids=lambda grid: "x".join(map(str, grid["axes"].values())))
def test_analysis_of_variance_against_statsmodels(grid: dict[str, Any]) -> None:
    found = effects(list(grid["axes"]), cells_of(grid))
    assert found is not None
    terms = {term.name: term for term in found.terms}
    names = {"a x b x c": "higher interactions", "Residual": "residual"}
    for name, (squares, df, f, p) in grid["table"].items():
        term = terms[names.get(name, name)]
        assert (term.squares, term.df) == (pytest.approx(squares, rel=1e-8), df), name
        assert (term.f, term.p) == ((None, None) if f is None else (pytest.approx(f), pytest.approx(p))), name
    if not grid["missing"]:
        assert len(terms) == len(grid["table"])
        # In a grid without gaps the sums of squares add up.
        values = np.array([value for _, _, value in grid["values"]])
        total = ((values - values.mean()) ** 2).sum()
        assert sum(term.squares for term in found.terms) == pytest.approx(total)
        assert sum(term.eta for term in found.terms) == pytest.approx(1)
        one, residual = terms["a"], terms["residual"]
        assert one.partial == pytest.approx(one.squares / (one.squares + residual.squares))
    assert found.missing == [tuple(own) for own in grid["missing"]]


def test_holm_against_statsmodels() -> None:
    assert holm(STORED["holm"]["p"]) == pytest.approx(STORED["holm"]["corrected"])


def test_marginal_means_of_a_grid_without_gaps_are_plain_averages() -> None:
    grid = STORED["grids"][1]
    cells = cells_of(grid)
    found = effects(list(grid["axes"]), cells)
    assert found is not None
    assert len(found.marginals) == 2 + 3 + 2
    for own in found.marginals:
        k = found.axes.index(own.axis)
        averages = [np.mean([v[seed] for levels, v in cells.items() if levels[k] == own.level]) for seed in range(3)]
        expected = summary([float(value) for value in averages])
        assert own.mean is not None
        assert (own.mean.mean, own.mean.low, own.mean.high) == pytest.approx(
            (expected.mean, expected.low, expected.high)
        )


def test_without_interaction_gaps_do_not_move_marginal_means() -> None:
    # Additive truth without noise; the two cells that are missing are the best and the worst one.
    rng = np.random.default_rng(1)
    a, b = np.array([0.0, 2.0, 9.0]), np.array([-3.0, 0.0, 1.0, 7.0])
    seeds = rng.normal(size=4)
    cells = {
        (i, j): {s: 80 + a[i] + b[j] + seeds[s] for s in range(4)}
        for i, j in itertools.product(range(3), range(4))
        if (i, j) not in [(2, 3), (0, 0)]
    }
    found = effects(["a", "b"], cells)
    assert found is not None
    assert found.missing == [(0, 0), (2, 3)]
    means = {(own.axis, own.level): own.mean for own in found.marginals}
    centre = 80 + seeds.mean()
    for i in range(3):
        mean = means["a", i]
        assert mean is not None
        assert mean.mean == pytest.approx(centre + a[i] + b.mean())
    # Nothing but the axes and seeds explains anything, and there is no noise to compare it with.
    terms = {term.name: term for term in found.terms}
    assert (terms["a x b"].squares, terms["a"].f) == (0.0, None)


def test_levels_that_cannot_be_told_apart_have_no_mean() -> None:
    # Two blocks of cells that share no level: the step between them may be of either axis.
    cells = {(i, j): {0: float(i + j), 1: float(i * j)} for i, j in itertools.product((0, 1), (0, 1))}
    cells |= {(i, j): {0: float(i + j), 1: float(i * j)} for i, j in itertools.product((2, 3, 4), (2, 3, 4))}
    found = effects(["a", "b"], cells)
    assert found is not None
    assert {own.mean for own in found.marginals} == {None}


def test_what_is_no_grid() -> None:
    row = {0: 1.0, 1: 2.0}
    assert effects([], {}) is None
    assert effects(["a"], {(0,): row, (1,): row, (2,): row}) is None
    # One choice changed at a time: nothing to average over.
    assert effects(["a", "b"], {(0, 0): row, (1, 0): row, (0, 1): row}) is None
    assert effects(["a", "b"], {(i, j): {i: 1.0} for i, j in itertools.product((0, 1), (0, 1))}) is None


def test_one_seed_has_means_without_tests() -> None:
    cells = {(i, j): {5: 3.0 * i + j} for i, j in itertools.product((0, 1), (0, 1, 2))}
    found = effects(["a", "b"], cells)
    assert found is not None
    assert found.n == 1
    assert {(term.f, term.p) for term in found.terms} == {(None, None)}
    assert [own.mean.mean for own in found.marginals if own.mean] == pytest.approx([1.0, 4.0, 1.5, 2.5, 3.5])
    assert all(own.mean is not None and own.mean.low is None for own in found.marginals)
