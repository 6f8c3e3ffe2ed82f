"""Main effects and interactions of the axes of a grid: marginal means and analysis of variance, with seeds as blocks.

A table of all variants answers which is best; a grid also answers what an axis does on average over the others, and
whether that depends on them.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attn_jax.stats import Summary, summary

Levels = tuple[Any, ...]
"""A value of every axis."""


@dataclasses.dataclass(frozen=True)
class Marginal:
    """A level of an axis: the mean of the metric over the other axes, with its t-interval over seeds.

    mean: None where the runs cannot tell it apart from the levels of other axes.
    """

    axis: str
    level: Any
    mean: Summary | None


@dataclasses.dataclass(frozen=True)
class Term:
    """A line of the analysis of variance: an axis, an interaction, "higher interactions", "seed" or "residual".

    squares: sum of squares, type II; df: degrees of freedom; eta, partial: squares / total, and
    squares / (squares + residual); F and p are None for the residual, and where nothing is left to compare with.
    """

    name: str
    squares: float
    df: int
    eta: float
    partial: float | None
    f: float | None
    p: float | None


@dataclasses.dataclass(frozen=True)
class Effects:
    """What a grid says of its axes.

    n: seeds that every variant of the grid has; runs of other seeds take no part. missing: combinations of levels
    without a variant that has results.
    """

    axes: Sequence[str]
    n: int
    missing: Sequence[Levels]
    marginals: Sequence[Marginal]
    terms: Sequence[Term]


def effects(axes: Sequence[str], cells: Mapping[Levels, Mapping[int, float]]) -> Effects | None:
    """Effects of the axes on {levels: {seed: value}}; None where the runs make no grid.

    Runs make a grid where two axes or more have several levels each, some seed was run with every variant, and there
    are more variants than main effects, 1 + sum over axes of (levels - 1): with fewer there is nothing to average over.

    Marginal means. For every seed an additive model, value = constant + one effect for each axis, is fitted by least
    squares to the cells, and a level's mean is that of the model over all combinations of the other levels (estimated
    marginal means; Searle, Speed and Milliken 1980). In a grid without gaps this is the plain average of the cells.
    The interval is the t-interval of that mean over seeds. Where combinations are missing (`missing`), the
    means are right as far as axes do not interact.

    Analysis of variance. value = cell + seed + noise, cells split into main effects, interactions of two axes, and
    what these leave ("higher interactions"). The sum of squares of a term is what it adds to all terms that do not
    contain it (type II; without gaps all types agree). Every F compares with the interaction of cells and seeds, so
    seeds are blocks, and n = 1 gives no F. With missing combinations degrees of freedom are what least squares can
    tell apart; a term with none is left out. p values are of each term alone, without a correction over the
    terms, and take noise to be equally large in all cells.

    Source: Fisher (1925), Statistical methods for research workers, chapter 7; Yates (1934) for type II;
    Cohen (1973) for eta squared and partial eta squared.
    """
    cells = {levels: values for levels, values in cells.items() if values}
    seeds = sorted(set.intersection(*(set(values) for values in cells.values()))) if cells else []
    levels = [list(dict.fromkeys(own[k] for own in cells)) for k in range(len(axes))]
    parameters = 1 + sum(len(own) - 1 for own in levels)
    if not seeds or sum(len(own) > 1 for own in levels) < 2 or len(cells) <= parameters:
        return None
    values = np.array([[own[seed] for seed in seeds] for own in cells.values()])
    return Effects(
        axes=list(axes),
        n=len(seeds),
        missing=[own for own in itertools.product(*levels) if own not in cells],
        marginals=_marginals(axes, levels, list(cells), values),
        terms=_variance(axes, levels, list(cells), values),
    )


def _columns(levels: Sequence[Sequence[Any]], cells: Sequence[Levels], axes: Sequence[int]) -> np.ndarray:
    """Indicators [cells, combinations] of the combined levels of some axes; one column of ones for no axis."""
    combinations = list(itertools.product(*(levels[k] for k in axes)))
    return np.array([[tuple(cell[k] for k in axes) == own for own in combinations] for cell in cells], float)


def _additive(levels: Sequence[Sequence[Any]], cells: Sequence[Levels]) -> np.ndarray:
    return np.concatenate([_columns(levels, cells, own) for own in [(), *((k,) for k in range(len(levels)))]], axis=1)


def _marginals(
    axes: Sequence[str], levels: Sequence[Sequence[Any]], cells: Sequence[Levels], values: np.ndarray
) -> list[Marginal]:
    design = _additive(levels, cells)
    fit = np.linalg.pinv(design)
    everywhere = list(itertools.product(*levels))
    full = _additive(levels, everywhere)
    found = []
    for k, axis in enumerate(axes):
        for level in levels[k]:
            wanted = full[[cell[k] == level for cell in everywhere]].mean(axis=0)
            # A mean that lies outside what the cells span depends on which of many solutions is taken.
            told = np.allclose(wanted @ fit @ design, wanted)
            found.append(Marginal(axis, level, summary((wanted @ fit @ values).tolist()) if told else None))
    return found


def _variance(
    axes: Sequence[str], levels: Sequence[Sequence[Any]], cells: Sequence[Levels], values: np.ndarray
) -> list[Term]:
    count, n = values.shape
    means = values.mean(axis=1)
    terms = [own for size in (1, 2) for own in itertools.combinations(range(len(axes)), size)]

    def explained(parts: Sequence[tuple[int, ...]]) -> tuple[float, int]:
        """Residual sum of squares of cell means, times n, and rank of the model with these terms."""
        design = np.concatenate([_columns(levels, cells, own) for own in [(), *parts]], axis=1)
        fitted, _, rank, _ = np.linalg.lstsq(design, means, rcond=None)
        return n * float(((means - design @ fitted) ** 2).sum()), int(rank)

    rows: list[tuple[str, float, int]] = []
    for term in terms:
        others = [own for own in terms if not set(term) <= set(own)]
        (without, smaller), (within, larger) = explained(others), explained([*others, term])
        rows.append((" x ".join(axes[k] for k in term), without - within, larger - smaller))
    left, rank = explained(terms)
    rows.append(("higher interactions", left, count - rank))
    grand = values.mean()
    rows.append(("seed", count * float(((values.mean(axis=0) - grand) ** 2).sum()), n - 1))
    residual = float(((values - means[:, None] - values.mean(axis=0)[None] + grand) ** 2).sum())
    return _tested(rows, residual, (count - 1) * (n - 1), float(((values - grand) ** 2).sum()))


def _tested(rows: Sequence[tuple[str, float, int]], residual: float, df: int, total: float) -> list[Term]:
    from scipy.special import fdtrc

    # Sums of squares that are 0 but for rounding.
    smallest = 1e-12 * total
    found = []
    for name, squares, own in rows:
        if own:
            squares = squares if squares > smallest else 0.0
            f = (squares / own) / (residual / df) if df and residual > smallest else None
            p = None if f is None else float(fdtrc(own, df, f))
            eta = squares / total if total else 0.0
            partial = squares / (squares + residual) if squares + residual and df else None
            found.append(Term(name, squares, own, eta, partial, f, p))
    found.append(
        Term("residual", residual if df else 0.0, df, residual / total if total and df else 0.0, None, None, None)
    )
    return found
