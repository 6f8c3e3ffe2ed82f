"""The rank of every variant, with the ranks that its corrected tests leave open."""

import dataclasses
from collections.abc import Mapping, Sequence

from attn_jax.stats import ALPHA, Compared, holm


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Ranks, 1 for the best, that are compatible with the tests: from `first` to `last`."""

    first: int
    last: int


def ranks(
    variants: Sequence[int], tests: Mapping[tuple[int, int], Compared], higher: bool, alpha: float = ALPHA
) -> dict[int, Ranks]:
    """Simultaneous confidence set of the ranks of variants, at level 1 - alpha; higher: whether more is better.

    For every ordered pair the hypothesis that i is not better than j has the one-sided p value of the paired t-test.
    Holm's correction over all of them, twice as many as pairs, leaves pairs (i, j) in which i is shown to be better
    than j. Variant i then ranks between 1 + #{j shown to be better than i} and k - #{j shown to be worse than i}.
    With probability 1 - alpha at least all true ranks lie within these bounds; a variant whose pairs cannot be tested
    has all ranks. tests: of `stats.pairwise`. Pairs with a corrected two-sided p value just below alpha may stay
    unseparated: to say which of two variants is the better one is more than to say that they differ.

    Source: Mogstad, Romano, Shaikh and Wilhelm (2024), Inference for ranks with applications to mobility across
    neighbourhoods and academic achievement across countries, section 3, with Holm's procedure.
    """
    ordered: dict[tuple[int, int], float] = {}
    for i in variants:
        for j in variants:
            test = tests.get((i, j)) if i != j else None
            if test is not None and test.plain is not None:
                seems_better = test.difference != 0 and (test.difference > 0) == higher
                ordered[i, j] = test.plain / 2 if seems_better else 1 - test.plain / 2
    corrected = zip(ordered, holm(list(ordered.values())), strict=True)
    better = [pair for pair, p in corrected if p <= alpha]
    return {
        i: Ranks(1 + sum(loser == i for _, loser in better), len(variants) - sum(winner == i for winner, _ in better))
        for i in variants
    }
