"""The decoder against its definition in NumPy, one example at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax.cells import CELLS
from attn_jax.decoder import FEEDINGS
from attn_jax.scores import SCORES, Memory
from attn_jax.windows import WINDOWS

LENGTHS, STEPS = [4, 0, 2], 3
INPUTS = np.array([[1, 4, 5], [1, 7, 3], [1, 6, 6]], np.int32)


def memory_of(config, rng) -> Memory:
    """Random memories of different lengths, with rubbish instead of zeros on padding: it must not matter."""
    states = rng.normal(size=(len(LENGTHS), max(LENGTHS), config.encoder.size))
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    parts = len(CELLS[config.cell.name].parts)
    shape = (len(LENGTHS), config.encoder.layers, config.encoder.size)
    return Memory(states, mask, tuple(rng.normal(size=shape) for _ in range(parts)))


def repeated(decoder, memory, inputs):
    """Logits and weights step by step."""
    state, source = decoder.start(memory)

    def step(state, tokens):
        state, logits, weights = reference.step(decoder, state, tokens, source)
        return state, (logits, weights)

    _, outputs = jax.lax.scan(step, state, inputs.T)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)


def expected_of(params, config, memory, row):
    """Logits and weights of one example, from the definition."""
    summary = [[part[row, layer] for layer in range(config.encoder.layers)] for part in memory.summary]
    carries = reference.bridge(params, config, memory.states[row, : LENGTHS[row]], summary)
    states = memory.states[row, : LENGTHS[row]]
    return reference.decode(params, config, states, carries, list(INPUTS[row]), summary[0][-1])


def combinations():
    """Every score and every cell with and without feeding; the full product is not worth its minutes."""
    cells = itertools.cycle(CELLS)
    found = [(score, feeding, next(cells)) for score in ["none", *SCORES] for feeding in FEEDINGS]
    return found + [(score, feeding, cell) for cell in CELLS for feeding in FEEDINGS for score in ("none", "general")]


@pytest.mark.parametrize(("score", "feeding", "cell"), dict.fromkeys(combinations()))
def test_step_by_step_and_all_at_once_are_the_definition(x64, score, feeding, cell):
    model, config, params = reference.tiny_model(score=score, input_feeding=feeding, cell=cell)
    memory = memory_of(config, np.random.default_rng(0))

    @reference.jit
    def run(params, memory, inputs):
        decoder = model.bind(params).decoder
        features, weights = decoder.teacher_forced(inputs, memory)
        return repeated(decoder, memory, inputs), (decoder.output(features), weights)

    for logits, weights in run(params, memory, INPUTS):
        for row, length in enumerate(LENGTHS):
            expected_logits, expected_weights = expected_of(params, config, memory, row)
            np.testing.assert_allclose(logits[row], expected_logits, rtol=1e-9, atol=1e-12)
            if score != "none":
                np.testing.assert_allclose(weights[row, ..., :length], expected_weights, rtol=1e-9)
                assert not np.any(weights[row, ..., length:])


PLACED = [
    {"placement": placement, "input_feeding": feeding, "decoder.layers": layers, "cell": cell, "readout": readout}
    for placement, feeding, layers, cell, readout in [
        ("before", "none", 1, "gru", "maxout"),
        ("before", "attentional", 2, "lstm", "projection"),
        ("between", "none", 2, "gru", "deep"),
        ("between", "attentional", 1, "lstm", "maxout"),
        ("between", "none", 1, "lnlstm", "projection"),
        ("after", "context", 2, "gru", "deep"),
        ("after", "none", 1, "rnn", "maxout"),
        ("after", "attentional", 2, "lstm", "deep"),
    ]
] + [
    {"placement": "after", "coverage": True, "decoder.layers": 2, "decoder.residual": True, "cell": "gru"},
    {"placement": "before", "coverage": True, "embedding": "onehot", "window": "local_p", "readout": "maxout"},
]


@pytest.mark.parametrize("changes", PLACED, ids=lambda changes: "-".join(map(str, changes.values())))
def test_placements_and_readouts_are_the_definition(x64, changes):
    model, config, params = reference.tiny_model(score="additive", **changes)
    memory = memory_of(config, np.random.default_rng(0))

    @reference.jit
    def run(params):
        decoder = model.bind(params).decoder
        features, weights = decoder.teacher_forced(INPUTS, memory)
        return repeated(decoder, memory, INPUTS), (decoder.output(features), weights)

    for logits, weights in run(params):
        for row, length in enumerate(LENGTHS):
            expected_logits, expected_weights = expected_of(params, config, memory, row)
            np.testing.assert_allclose(logits[row], expected_logits, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(weights[row, ..., :length], expected_weights, rtol=1e-9)


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_the_definition(x64, window, feeding):
    """In the middle of the sentence, at its ends and past them, where nothing is left to attend to."""
    model, config, params = reference.tiny_model(**{"window": window, "window.width": 1, "input_feeding": feeding})
    rng = np.random.default_rng(0)
    memory, inputs = memory_of(config, rng), rng.integers(1, 8, size=(len(LENGTHS), 6))

    def total(params):
        decoder = model.bind(params).decoder
        a, weights = decoder.teacher_forced(inputs, memory)
        one_by_one = repeated(decoder, memory, inputs)
        return jnp.sum(jnp.cos(decoder.output(a))), (decoder.output(a), weights, one_by_one)

    found, gradients = reference.jit(jax.value_and_grad(total, has_aux=True))(params)

    def defined(params, row):
        summary = [[part[row, layer] for layer in range(config.encoder.layers)] for part in memory.summary]
        states = memory.states[row, : LENGTHS[row]]
        carries = reference.bridge(params, config, states, summary)
        return reference.decode(params, config, states, carries, list(inputs[row]), summary[0][-1])

    _, (logits, weights, (stepped_logits, stepped_weights)) = found
    for row, length in enumerate(LENGTHS):
        wanted_logits, wanted = defined(params, row)
        for one, other in ((logits, weights), (stepped_logits, stepped_weights)):
            np.testing.assert_allclose(one[row], wanted_logits, rtol=1e-9)
            np.testing.assert_allclose(
                other[row, ..., :length], wanted.reshape(inputs.shape[1], length), rtol=1e-9, atol=1e-12
            )
            assert not np.any(other[row, ..., length:])
    trained = {name: value for name, value in params.items() if name.startswith("decoder.core.attention.window.")}
    assert bool(trained) == window.startswith("local_p")
    for name, value in trained.items():
        direction, step = np.ones_like(value), 1e-30
        moved = {**params, name: value + 1j * step * direction}
        wanted = sum(np.sum(np.cos(defined(moved, row)[0])).imag / step for row in range(len(LENGTHS)))
        np.testing.assert_allclose(np.sum(gradients[name] * direction), wanted, rtol=1e-8)


SHARED = [
    *({"score": score, "window": window} for score in SCORES for window in WINDOWS),
    {"score": "additive", "coverage": True, "placement": "before", "cell": "gru"},
    {"score": "concat", "coverage": True, "window": "local_p"},
    {"score": "none", "input_feeding": "context"},
    {"model": "transformer", "transformer.size": 6, "transformer.heads": 2, "transformer.feedforward": 5},
]


@pytest.mark.parametrize("changes", SHARED, ids=str)
def test_rows_that_share_a_source_are_as_if_each_had_its_own(x64, changes):
    """Three hypotheses for each of two sentences, in different states."""
    model, _, params = reference.tiny_model(**changes)
    source = np.array([[4, 5, 6, 7], [8, 4, 0, 0]], np.int32)
    tokens = np.array([[4, 5, 6, 7, 3, 4], [1, 5, 5, 6, 7, 8]], np.int32)

    @reference.jit
    def run(params):
        module = model.bind(params)

        def steps(given):
            state, _ = module.decoder.start(
                module.encode(np.repeat(source, 3, axis=0), np.repeat(source, 3, axis=0) != 0), 2
            )
            found = []
            for last in tokens:
                state, *made = module.decoder.step(state, last, given)
                found.append(made)
            return found

        (_, shared), (_, own) = (
            module.decoder.start(module.encode(x, x != 0), 2) for x in (source, np.repeat(source, 3, axis=0))
        )
        return steps(shared), steps(own)

    shared, own = run(params)
    for found, expected in zip(jax.tree.leaves(shared), jax.tree.leaves(own), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.ptp(np.asarray(own[1][0])[:3], axis=0).max() > 1e-3, "hypotheses differ"
