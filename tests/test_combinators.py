"""Sweeps against plain loops."""

import itertools
import random

import pytest

from attn_jax import combinators
from attn_jax.combinators import chain, grid, named, paths, product, sample, values, without, zipped
from attn_jax.errors import UserError

SCORES, CELLS, RATES = ["none", "dot", "general"], ["lstm", "gru"], [0.1, 0.2, 0.3]


def test_product_and_grid_against_loops():
    expected = [
        {"score.name": score, "cell.name": cell, "optim.learning_rate": rate}
        for score in SCORES
        for cell in CELLS
        for rate in RATES
    ]
    rates = values("optim.learning_rate", *RATES)
    assert product(values("score", *SCORES), values("cell", *CELLS), rates) == expected
    assert grid({"score": SCORES, "cell": CELLS, "optim.learning_rate": RATES}) == expected
    assert product(product(values("score", *SCORES), values("cell", *CELLS)), rates) == expected, "associative"
    assert (product(), grid({})) == ([{}], [{}])
    assert product(values("score", "dot"), []) == []


def test_zipped_chain_and_without_against_loops():
    pairs = zipped(values("score", *SCORES), values("optim.learning_rate", *RATES))
    assert pairs == [{"score.name": s, "optim.learning_rate": r} for s, r in zip(SCORES, RATES, strict=True)]
    both = chain(pairs, values("cell", *CELLS), [{"score": "dot", "hidden_size": 8}])
    assert both == [*pairs, {"cell.name": "lstm"}, {"cell.name": "gru"}, {"score.name": "dot", "hidden_size": 8}]
    assert paths(both) == ["score.name", "optim.learning_rate", "cell.name", "hidden_size"]
    kept = without(grid({"score": SCORES, "cell": CELLS}), lambda c: c["score.name"] == "none" and "gru" in c.values())
    assert kept == [
        {"score.name": s, "cell.name": c} for s in SCORES for c in CELLS if not (s == "none" and c == "gru")
    ]
    kept[0]["score.name"] = both[0]["score.name"] = "changed"
    assert pairs[0]["score.name"] == "none", "arguments stay as they are"


@pytest.mark.parametrize("count", [0, 1, 5, 18, 30])
def test_samples(count):
    whole = grid({"score": SCORES, "cell": CELLS, "optim.learning_rate": RATES})
    drawn = sample(whole, count, seed=3)
    places = [whole.index(choice) for choice in drawn]
    assert len(places) == min(count, len(whole))
    assert places == sorted(set(places)), "different, in the order of the sweep"
    assert drawn == sample(whole, count, seed=3)
    assert all(choice in sample(whole, count + 3, seed=3) for choice in drawn), "a larger sample holds the smaller"


def test_every_choice_is_drawn_equally_often():
    whole = values("train.steps", *range(5))
    draws = [tuple(c["train.steps"] for c in sample(whole, 2, seed)) for seed in range(2000)]
    counts = {pair: draws.count(pair) for pair in itertools.combinations(range(5), 2)}
    assert sum(counts.values()) == 2000
    # Each of the 10 pairs 200 times, sd 13.4.
    assert max(abs(count - 200) for count in counts.values()) < 4 * 13.4
    random.seed(0)
    before = random.getstate()
    sample(whole, 3)
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: values("scoer", "dot"), "unknown configuration field 'scoer'"),
        (lambda: product(values("score", "dot"), values("score.name", "none")), "both choose score.name"),
        (lambda: zipped(values("score", "dot"), [{"score": "none"}]), "both choose score.name"),
        (lambda: zipped(values("score", "dot"), values("cell", "gru", "rnn")), "equally long, not 1, 2"),
        (lambda: chain([{"scoer": 1}]), "unknown configuration field 'scoer'"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_named_sweeps(monkeypatch):
    monkeypatch.setattr(combinators, "SWEEPS", {})

    def mine():
        """What I ask.

        More.
        """
        return values("score", "dot")

    assert named(mine) is mine
    assert combinators.described() == {"mine": "What I ask."}
    with pytest.raises(UserError, match="sweep 'mine' is already defined by test_combinators"):
        named(mine)
    with pytest.raises(UserError, match="sweep '<lambda>' needs a docstring"):
        named(lambda: values("score", "dot"))
