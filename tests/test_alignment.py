"""Alignments from weights, and AER, against their definitions over sets and permutations."""

import itertools
import math
import random
import re

import jax
import numpy as np
import pytest
import reference

from attn_jax import alignment
from attn_jax.alignment import Counts, count, diagonal, error, links, word_weights
from attn_jax.data.alignments import Gold
from attn_jax.data.text import BOS, EOS, PAD, TextCodec, Vocabulary
from attn_jax.decoding import greedy
from attn_jax.errors import UserError


def gold(sure, possible=()):
    return Gold(frozenset(sure), frozenset({*sure, *possible}))


def found(*rows):
    return [frozenset(row) for row in rows]


@pytest.mark.parametrize(
    ("case", "aligned", "expected", "values"),
    [
        ("perfect", [(0, 0), (1, 1)], gold([(0, 0), (1, 1)]), (0, 100, 100)),
        ("nothing found", [], gold([(0, 0), (1, 1)]), (100, math.nan, 0)),
        ("nothing at all", [], gold([]), (0, math.nan, math.nan)),
        ("all wrong", [(0, 1)], gold([(0, 0)]), (100, 0, 0)),
        # |A| = 2, both possible, none sure; |S| = 0: 1 - (0 + 2) / (2 + 0).
        ("only possible links", [(0, 0), (1, 1)], gold([], [(0, 0), (1, 1), (2, 2)]), (0, 100, math.nan)),
        # |A| = 3, |S| = 2, A & S = {00}, A & P = {00, 12}: 1 - (1 + 2) / (3 + 2).
        ("some", [(0, 0), (1, 2), (3, 3)], gold([(0, 0), (1, 1)], [(1, 2)]), (40, 200 / 3, 50)),
        # A possible link that is not found costs nothing.
        ("possible is free", [(0, 0)], gold([(0, 0)], [(1, 1)]), (0, 100, 100)),
    ],
)
def test_error_by_hand(case, aligned, expected, values):
    scores = error(count(found(aligned), [expected]))
    assert list(scores) == ["aer", "precision", "recall"]
    np.testing.assert_allclose(list(scores.values()), values, atol=1e-12, err_msg=case)


def test_error_sums_over_the_corpus_before_it_divides():
    draw = random.Random(3)
    corpus = []
    for _ in range(30):
        every = list(itertools.product(range(draw.randint(1, 5)), range(draw.randint(1, 5))))
        a, s, p = ({link for link in every if draw.random() < 0.3} for _ in range(3))
        corpus.append((a, s, p))
    totals = dict.fromkeys(("a", "s", "as", "ap"), 0)
    for a, s, p in corpus:
        for link in a | s:
            totals["a"] += link in a
            totals["s"] += link in s
            totals["as"] += link in a and link in s
            totals["ap"] += link in a and (link in s or link in p)
    counts = count(found(*(a for a, _, _ in corpus)), [gold(s, p) for _, s, p in corpus])
    assert counts == (totals["a"], totals["s"], totals["as"], totals["ap"])
    mean = np.mean([error(count([frozenset(a)], [gold(s, p)]))["aer"] for a, s, p in corpus])
    scores = error(counts)
    np.testing.assert_allclose(
        [scores["aer"], scores["precision"], scores["recall"]],
        [
            100 * (1 - (totals["as"] + totals["ap"]) / (totals["a"] + totals["s"])),
            100 * totals["ap"] / totals["a"],
            100 * totals["as"] / totals["s"],
        ],
        rtol=1e-12,
    )
    assert abs(scores["aer"] - mean) > 1, "the data does not tell a corpus from a mean of sentences"
    with pytest.raises(ValueError, match="shorter"):
        count(found([(0, 0)]), [])


def test_argmax_and_union_by_hand():
    weights = np.array([[0.1, 0.6, 0.3], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.3, 0.3, 0.2]])
    # Rows are target words. The third has no weight at all; of equal weights the first source word is taken.
    assert links(weights) == {(1, 0), (1, 1), (0, 3)}
    assert links(weights, "union") == {(1, 0), (1, 1), (0, 3), (2, 1)}
    assert links(weights, threshold=0.5) == {(1, 0), (1, 1)}
    assert links(weights, "union", threshold=0.31) == {(1, 0), (1, 1), (2, 1)}
    assert links(np.zeros((2, 0))) == links(np.zeros((0, 2)), "one_to_one") == frozenset()
    with pytest.raises(UserError, match="unknown method of alignment 'argmx': did you mean 'argmax'"):
        links(weights, "argmx")


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (1, 4)])
def test_one_to_one_is_the_best_of_all_matchings(shape):
    rng = np.random.default_rng(sum(shape))
    differs = False
    for _ in range(20):
        weights = rng.dirichlet(np.full(shape[1], 0.3), shape[0]) + 1e-3
        found = links(weights, "one_to_one")
        assert len(found) == len({i for i, _ in found}) == len({j for _, j in found}) == min(shape)
        short, long = min(shape), max(shape)
        oriented = weights if shape[0] == short else weights.T
        best = max(sum(oriented[range(short), order]) for order in itertools.permutations(range(long), short))
        np.testing.assert_allclose(sum(weights[j, i] for i, j in found), best, rtol=1e-12)
        differs |= found != links(weights)
    assert differs or shape[0] == 1, "argmax would have done"
    # A word that only zero weights are left for stays unlinked.
    assert links(np.array([[1.0, 0.0], [1.0, 0.0]]), "one_to_one") in ({(0, 0)}, {(0, 1)})


def test_symbols_are_merged_to_words():
    weights = np.array([[0.5, 0.2, 0.1, 0.2], [0.1, 0.1, 0.2, 0.6], [0.3, 0.3, 0.3, 0.1]])
    # Source: word 0 is symbols 0 and 1, a space, word 1. Target: word 0 is symbol 0, word 1 symbols 1 and 2.
    merged = word_weights(weights, [0, 0, -1, 1], [0, 1, 1])
    np.testing.assert_allclose(merged, [[0.7, 0.2], [0.4, 0.35]], rtol=1e-12)
    np.testing.assert_array_equal(word_weights(weights, [0, 1, 2, 3], [0, 1, 2]), weights)


def test_baselines():
    assert diagonal(4, 4) == {(j, j) for j in range(4)}
    assert diagonal(6, 2) == {(1, 0), (4, 1)}
    assert diagonal(2, 5) == {(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)}
    assert diagonal(0, 3) == diagonal(3, 0) == frozenset()
    for s, t in itertools.product(range(1, 12), range(1, 12)):
        assert diagonal(s, t) == {(math.floor((j + 0.5) * s / t + 1e-9), j) for j in range(t)}
        assert all(0 <= i < s for i, _ in diagonal(s, t))

    # Every choice of a source word for each target word, taken together, is the uniform alignment.
    pairs = [((3, 2), gold([(0, 0), (1, 0), (2, 1)], [(0, 1)])), ((2, 1), gold([(1, 0)]))]
    counts = alignment.uniform([size for size, _ in pairs], [g for _, g in pairs])
    choices = [
        [found(enumerate_links(choice)) for choice in itertools.product(range(s), repeat=t)] for (s, t), _ in pairs
    ]
    every = [error(count([a for (a,) in together], [g for _, g in pairs])) for together in itertools.product(*choices)]
    for name, value in error(counts).items():
        np.testing.assert_allclose(value, np.mean([scores[name] for scores in every]), rtol=1e-12, err_msg=name)
    assert counts == Counts(3, 4, 2 / 3 + 1 / 3 + 1 / 2, 2 / 3 + 2 / 3 + 1 / 2)


def enumerate_links(choice):
    return [(i, j) for j, i in enumerate(choice)]


# -- forced decoding -------------------------------------------------------------------------------------------------

SOURCES = [[4, 5, 6], [7, 8, 4, 5, 5], [6]]
CASES = [
    {"score": "additive", "input_feeding": "attentional", "cell": "lstm", "encoder": "bi"},
    {"score": "general", "placement": "before", "cell": "gru"},
    {"score": "dot", "window": "local_m", "window.width": 1, "cell": "rnn"},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: changes["score"])
def test_forced_weights_of_a_greedy_output_are_those_of_greedy(x64, changes):
    model, config, params = reference.tiny_model(**changes)
    params = reference.random_like(params, seed=0, scale=1.0)
    params["decoder.output.bias"][EOS] += 1
    source = reference.padded(SOURCES)
    decoded = reference.jit(lambda p: greedy(model.bind(p), source, source != PAD, 5))(params)
    outputs = [[int(v) for v in row if v != PAD] for row in decoded.tokens]
    assert len({len(output) for output in outputs}) > 1
    weights = dict(alignment.forced_weights(model, params, list(zip(SOURCES, outputs, strict=True))))
    assert sorted(weights) == [0, 1, 2]
    for n, (symbols, output) in enumerate(zip(SOURCES, outputs, strict=True)):
        assert weights[n].shape == (len(output), len(symbols))
        np.testing.assert_allclose(weights[n], decoded.weights[n, : len(output), : len(symbols)], rtol=1e-9)
        _, expected = reference.model(params, config, symbols, [BOS, *output[:-1]])
        np.testing.assert_allclose(weights[n], expected, rtol=1e-9)


def word_rows(rows, text):
    """Weights of the words of a text of characters: sums over each word."""
    spans = [match.span() for match in re.finditer("[^ ]+", text)]
    return np.array([[sum(row[a:b]) for a, b in spans] for row in rows])


def test_links_of_texts_and_their_offset(x64, monkeypatch):
    """Batches of two, words of several characters, spaces, an empty side, and both offsets."""
    monkeypatch.setattr(alignment, "BATCH", 2)
    model, config, params = reference.tiny_model(score="additive", encoder="bi", cell="gru")
    params = reference.random_like(params, seed=1, scale=2.0)
    source = TextCodec("characters", Vocabulary("abcd "))
    target = TextCodec("words", Vocabulary("wxyz"), lowercase=True)
    texts = [("ab c", "x y z"), ("", "x"), ("a", "X"), ("d", " "), ("c  bad", "W z"), ("bb d a", "y y x w")]
    found = {}
    for offset, method in itertools.product(alignment.OFFSETS, ("argmax", "union")):
        found[offset, method] = alignment.align(model, params, source, target, texts, method=method, offset=offset)
        for (s, t), aligned in zip(texts, found[offset, method], strict=True):
            ids, output = source.encode(s), target.encode(t)
            if not ids or not output:
                assert aligned == frozenset()
                continue
            _, rows = reference.model(params, config, ids, [BOS, *output])
            words = word_rows(rows[:-1] if offset == "predicted" else rows[1:], s)
            expected = {(int(np.argmax(row)), j) for j, row in enumerate(words)}
            if method == "union":
                expected |= {(i, int(np.argmax(column))) for i, column in enumerate(words.T)}
            assert aligned == expected
    assert len({tuple(aligned) for aligned in found.values()}) == 4, "the weights do not tell the choices apart"


def test_weights_of_heads_are_averaged():
    rng = np.random.default_rng(0)
    heads = rng.dirichlet(np.ones(3), (1, 2, 4)).astype(np.float32)

    class Module:
        def teacher_forced(self, source, mask, inputs):
            return None, jax.numpy.asarray(heads)

    class Heads:
        config = reference.tiny(score="dot")

        def bind(self, params):
            return Module()

    ((place, weights),) = alignment.forced_weights(Heads(), {}, [([4, 5, 6], [4, EOS])])
    assert place == 0
    np.testing.assert_allclose(weights, heads[0].mean(axis=1), rtol=1e-6)


def test_wrong_use(x64):
    model, _, _ = reference.tiny_model(score="none", cell="rnn")
    words, tagged = TextCodec("words", Vocabulary("a")), TextCodec("tagged_characters", Vocabulary("a"))
    with pytest.raises(UserError, match="score=none: a run without attention"):
        alignment.align(model, {}, words, words, [("a", "a")])
    with pytest.raises(UserError, match="tagged_characters: a lemma and its tags are no words"):
        alignment.align(model, {}, tagged, words, [("a\tV", "a")])
    with pytest.raises(UserError, match="unknown offset 'inputs': did you mean 'input'"):
        alignment.align(model, {}, words, words, [("a", "a")], offset="inputs")
    with pytest.raises(UserError, match="unknown method of alignment 'best'"):
        alignment.align(model, {}, words, words, [], method="best")
