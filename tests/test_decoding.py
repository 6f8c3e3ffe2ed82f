"""Greedy search against a plain loop over the definition of the model."""

import jax
import numpy as np
import pytest
import reference

from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.decoding import greedy

SOURCES = [[4, 5, 6], [], [7, 8, 4, 5, 5], [6]]
LIMIT = 6


def searched(params, config, source, limit):
    """The most probable symbol after each prefix, read off the whole prefix anew, and the weights of its step."""
    if not source:
        return [], np.zeros((0, 0))
    output, rows = [], []
    while len(output) < limit and EOS not in output:
        logits, weights = reference.model(params, config, source, [BOS, *output])
        allowed = [v for v in range(logits.shape[1]) if v not in (PAD, BOS)]
        output.append(max(allowed, key=lambda v: logits[-1, v]))
        rows.append(weights[-1])
    return output, np.array(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "additive", "input_feeding": "attentional", "cell": "lstm", "encoder": "bi"},
        {"score": "general", "cell": "gru", "decoder.layers": 2},
        {"score": "none", "cell": "rnn"},
    ],
    ids=lambda changes: changes["score"],
)
def test_greedy_is_the_plain_loop(x64, changes):
    model, config, params = reference.tiny_model(**changes)
    source = reference.padded(SOURCES)
    decode = reference.jit(lambda p: greedy(model.bind(p), source, source != PAD, LIMIT))
    ended = set()
    # Several sets of parameters, so that outputs end early, late, and not at all; symbols 0 and 1 are made tempting.
    for seed in range(6):
        params = reference.random_like(params, seed=seed, scale=1.0)
        params["decoder.output.bias"][[PAD, BOS, EOS]] += [3, 3, seed - 2]
        found = decode(params)
        for row, symbols in enumerate(SOURCES):
            expected, weights = searched(params, config, symbols, LIMIT)
            if symbols:
                ended.add("never" if EOS not in expected else "at once" if len(expected) == 1 else "later")
            assert found.tokens[row].tolist() == expected + [PAD] * (LIMIT - len(expected))
            if changes["score"] != "none" and symbols:
                n = len(expected)
                np.testing.assert_allclose(found.weights[row, :n, : len(symbols)], weights, rtol=1e-9)
                assert not np.any(found.weights[row, :n, len(symbols) :]), "weights on padding"
                assert not np.any(found.weights[row, n:]), "weights after the end"
    assert ended == {"never", "at once", "later"}, "the parameters do not show every ending"


def test_output_depends_neither_on_the_batch_nor_on_its_padding(x64):
    model, _, params = reference.tiny_model(score="concat", input_feeding="attentional", cell="gru", encoder="bi")
    decode = reference.jit(lambda p, source: greedy(model.bind(p), source, source != PAD, LIMIT))
    together = decode(params, reference.padded(SOURCES, 7))
    for row in (0, 2):
        alone = decode(params, reference.padded([SOURCES[row]]))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        n = len(SOURCES[row])
        np.testing.assert_allclose(alone.weights[0], together.weights[row, :, :n], rtol=1e-9)


def test_runs_that_end_at_different_steps_do_not_disturb_each_other(x64):
    model, _, params = reference.tiny_model(score="general", cell="gru")
    source = reference.padded(SOURCES)

    def decode(params):
        return greedy(model.bind(params), source, source != PAD, LIMIT)

    bias = params["decoder.output.bias"]
    # One run ends everything at once, one nothing, one as it happens.
    runs = [{**params, "decoder.output.bias": bias + add * (np.arange(len(bias)) == EOS)} for add in (50, -50, 0)]
    together = reference.jit(jax.vmap(decode))({name: np.stack([run[name] for run in runs]) for name in params})
    assert (together.tokens[0, [0, 2, 3], 0] == EOS).all()
    assert not (together.tokens[1] == EOS).any()
    one = reference.jit(decode)
    for number, run in enumerate(runs):
        alone = one(run)
        np.testing.assert_array_equal(together.tokens[number], alone.tokens)
        np.testing.assert_allclose(together.weights[number], alone.weights, rtol=1e-9)


def test_a_batch_of_empty_sources_has_empty_outputs(x64):
    model, _, params = reference.tiny_model(score="dot")
    source = np.zeros((2, 3), np.int32)
    found = reference.jit(lambda p: greedy(model.bind(p), source, source != PAD, 4))(params)
    assert not found.tokens.any()
    assert not found.weights.any()
