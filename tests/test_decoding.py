"""Greedy search against a plain loop over the definition of the model; samples against its probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_search
import pytest
import reference
import scipy.stats

from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.decoding import greedy, likeliest, predict, sample, start
from attn_jax.seq2seq import build

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


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_no_precision_rounds_the_bias_of_scores(precision):
    """With a product of zero, scores are the bias to the last bit; what comes after the vocabulary is out of reach."""
    symbols = 9 * 64 + 1
    model = build(reference.tiny(score="dot", precision=precision), reference.SOURCE_SIZE, symbols)
    params = jax.jit(model.init)(jax.random.key(0))
    bias = np.random.default_rng(0).normal(size=symbols).astype(np.float32) * 10.0 ** np.arange(-8, 9).repeat(34)[1:]
    params |= {"decoder.output.kernel": jnp.zeros((8, symbols)), "decoder.output.bias": jnp.asarray(bias, jnp.float32)}
    source = reference.padded([[4, 5, 6]])

    @reference.jit
    def scores(params):
        states, given = start(model.bind(params), source, source != PAD, 4)
        return predict(model.bind(params), states, jnp.full(1, BOS, jnp.int32), given)[1].scores

    found = scores(params)[0]
    np.testing.assert_array_equal(found[:symbols], params["decoder.output.bias"])
    assert (np.asarray(found[symbols:]) < -1e29).all()


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
            assert found.lengths[row] == len(expected)
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


def forced(config, params, source, symbols):
    """The log-probability of an output."""
    logs, _ = plain_search.predictor(config, params, source)(symbols[:-1])
    return sum(logs[t, symbol] for t, symbol in enumerate(symbols))


def test_an_ensemble_follows_the_mean_of_the_probabilities(x64):
    model, config, params = reference.tiny_model(score="dot", cell="gru", input_feeding="attentional")
    source = reference.padded(SOURCES)
    decode = reference.jit(lambda *ps: greedy([model.bind(p) for p in ps], source, source != PAD, LIMIT))
    lone = reference.jit(lambda p: greedy(model.bind(p), source, source != PAD, LIMIT))
    differ = 0
    for seed in range(4):
        drawn = [reference.random_like(params, seed=10 * seed + n, scale=1.0) for n in range(3)]
        found = decode(*drawn)
        for row, symbols in enumerate(SOURCES):
            if not symbols:
                continue
            predict, output = plain_search.predictor(config, drawn, symbols), []
            while len(output) < LIMIT and EOS not in output:
                logs = predict(output)[0][-1]
                output.append(max((v for v in range(len(logs)) if v not in (PAD, BOS)), key=lambda v: logs[v]))
            n = len(output)
            assert found.tokens[row, :n].tolist() == output
            np.testing.assert_allclose(found.score[row], forced(config, drawn, symbols, output), rtol=1e-9)
            np.testing.assert_allclose(found.weights[row, :n, : len(symbols)], predict(output[:-1])[1], rtol=1e-9)
        alone = lone(drawn[0])
        for part, expected in zip(decode(*drawn[:1]), alone, strict=True):
            np.testing.assert_array_equal(part, expected)
        differ += int((alone.tokens != found.tokens).any())
    assert differ, "an ensemble never differs from its first member"


DRAWS = 4000


def drawing(model, source, limit, **options):
    """A compiled sampler: parameters, keys, temperature."""
    return reference.jit(
        lambda p, keys, heat: sample(model.bind(p), source, source != PAD, limit, keys, temperature=heat, **options)
    )


@pytest.mark.parametrize("heat", [1.0, 0.6])
def test_samples_have_the_probabilities_of_the_model(x64, heat):
    """Outputs of up to two symbols, counted: a key that were used for both steps would show."""
    model, config, params = reference.tiny_model(score="dot", cell="gru")
    source = np.repeat(reference.padded([[4, 7, 5]]), DRAWS, axis=0)
    found = drawing(model, source, 2)(params, jax.random.split(jax.random.key(3), DRAWS), heat)
    inner = [v for v in range(reference.TARGET_SIZE) if v not in (PAD, BOS)]
    outputs = [(EOS,), *((a, b) for a in inner if a != EOS for b in inner)]
    predict = plain_search.predictor(config, [params], [4, 7, 5])

    def tempered(logs, symbol):
        return np.exp(logs[symbol] / heat) / np.exp(logs[inner] / heat).sum()

    expected = [
        np.prod([tempered(logs, symbol) for logs, symbol in zip(predict(output[:-1])[0], output, strict=True)])
        for output in outputs
    ]
    drawn = [tuple(int(v) for v in row if v != PAD) for row in np.asarray(found.tokens)]
    counts = [drawn.count(output) for output in outputs]
    assert sum(counts) == DRAWS
    assert np.sum(expected) == pytest.approx(1)
    assert scipy.stats.chisquare(counts, DRAWS * np.array(expected)).pvalue > 0.01
    uneven = scipy.stats.chisquare(counts, np.full(len(counts), DRAWS / len(counts))).pvalue
    assert uneven < 1e-6, "the test could not tell another distribution"
    for output, row in zip(drawn[:5], range(5), strict=True):
        # Whatever the temperature, the reported probability is the model's.
        assert found.log_probability[row] == pytest.approx(forced(config, [params], [4, 7, 5], output))


def test_a_sample_depends_on_its_own_key_and_becomes_greedy_as_it_cools(x64):
    model, _, params = reference.tiny_model(score="general", cell="lstm", input_feeding="attentional")
    source = reference.padded(SOURCES)
    keys = jax.random.split(jax.random.key(0), len(SOURCES))
    draw = drawing(model, source, LIMIT)
    together, other = draw(params, keys, 1.0), draw(params, keys[::-1], 1.0)
    assert (together.tokens != other.tokens).any()
    order = np.array([2, 0, 1, 3])
    moved = drawing(model, source[order], LIMIT)(params, keys[order], 1.0)
    np.testing.assert_array_equal(moved.tokens, together.tokens[order])
    assert not together.tokens[1].any(), "a source without symbols has no output"

    cold, least = draw(params, keys, 1e-6), drawing(model, source, LIMIT, min_length=4)(params, keys, 1.0)
    expected = greedy(model.bind(params), source, source != PAD, LIMIT)
    np.testing.assert_array_equal(cold.tokens, expected.tokens)
    np.testing.assert_allclose(cold.log_probability, expected.log_probability, rtol=1e-9)
    assert (np.asarray(least.lengths)[[0, 2, 3]] >= 4).all()
    assert (np.asarray(together.lengths)[[0, 2, 3]] < 4).any()


def test_the_likeliest_symbol_is_the_first_of_the_highest_that_can_be_put_out():
    scores = np.random.default_rng(0).integers(0, 4, size=(40, 30)).astype(np.float32)
    scores[0, 4:] = -np.inf
    scores[1] = -np.inf
    scores[2, :3] = 9
    allowed = np.where(np.isin(np.arange(30), (PAD, BOS)), -np.inf, scores)
    np.testing.assert_array_equal(likeliest(jnp.asarray(scores)), allowed.argmax(axis=1))
    assert 0 <= int(likeliest(jnp.full((1, 30), jnp.nan))[0]) < 30
