"""What is said of a tuned variant, against what its numbers say."""

import math
import random

import pytest

from attn_jax.tuned import Tried, Tuned, show_choice

RATE, DROP = "optim.learning_rate", "dropout.readout"


def tuned(metric, results, chosen=None, values=(1e-4, 1e-3, 1e-2)):
    tried = [Tried({RATE: value}, found) for value, found in zip(values, results, strict=True)]
    return Tuned("", metric, {RATE: list(values)}, tried, None if chosen is None else {RATE: chosen})


@pytest.mark.parametrize(("metric", "best"), [("bleu", max), ("exact_match", max), ("loss", min), ("wer", min)])
def test_the_best_mean_wins_the_first_of_equal_ones(metric, best):
    draw = random.Random(metric)
    for _ in range(200):
        results = [[float(draw.randint(0, 3)), float(draw.randint(0, 3))] for _ in range(3)]
        means = [sum(row) / 2 for row in results]
        first = means.index(best(means))
        found = tuned(metric, results, (1e-4, 1e-3, 1e-2)[first])
        assert found.ranked[0] == found.taken == found.choices[first]
        others = means[:first] + means[first + 1 :]
        assert found.runner_up.mean == best(others)
        assert found.margin == abs(means[first] - best(others))


def test_a_run_without_a_value_loses():
    for missing in (None, math.nan, math.inf):
        found = tuned("loss", [[0.1, missing], [2.0, 2.0], [3.0, 3.0]], 1e-3)
        assert (found.ranked[0].values[RATE], found.ranked[-1].values[RATE]) == (1e-3, 1e-4)
        assert (found.choices[0].mean, found.margin) == (None, 1.0)
    lost = tuned("loss", [[None], [None], [None]], 1e-4)
    assert (lost.ranked[0].values[RATE], lost.runner_up, lost.margin) == (1e-4, None, None)
    assert tuned("loss", [[1.0], [2.0], [3.0]]).taken is None


@pytest.mark.parametrize(("chosen", "edges"), [(1e-4, {RATE: "lowest"}), (1e-3, {}), (1e-2, {RATE: "highest"})])
def test_edges_of_the_grid(chosen, edges):
    assert tuned("loss", [[1.0]] * 3, chosen).edges == edges


def test_bounds_of_a_field_and_names_are_no_edges():
    fields = {DROP: [0.0, 0.2, 0.99], "train.teacher_forcing": [0.5, 1.0], "score.name": ["dot", "none"]}
    for values in ((0.0, 1.0, "dot"), (0.99, 1.0, "none")):
        chosen = dict(zip(fields, values, strict=True))
        other = {DROP: 0.2, "train.teacher_forcing": 0.5, "score.name": "dot"}
        found = Tuned("", "loss", fields, [Tried(chosen, [1.0]), Tried(other, [2.0])], chosen)
        assert found.edges == {}
    assert found.all_choices == 12
    assert found.idle == []


def test_a_field_that_does_not_matter_is_told_and_has_no_edge():
    fields = {RATE: [0.1, 0.2], "combine.name": ["tanh", "linear"]}
    tried = [Tried({RATE: rate, "combine.name": "tanh"}, [rate]) for rate in (0.1, 0.2)]
    found = Tuned("", "loss", fields, tried, tried[0].values)
    assert (found.idle, found.all_choices, found.edges) == (["combine.name"], 4, {RATE: "lowest"})


def test_choices_as_text():
    assert show_choice({RATE: 0.001, "score.name": "dot", "coverage": True}) == (
        "learning_rate=0.001, score=dot, coverage=true"
    )
    assert (
        show_choice({"dropout.embedding": 0.1, "embedding.name": "onehot"}) == "dropout.embedding=0.1, embedding=onehot"
    )
    assert show_choice({"encoder.size": 3, "decoder.size": 4}) == "encoder.size=3, decoder.size=4"
