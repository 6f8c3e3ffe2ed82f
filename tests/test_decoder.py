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
        state, logits, weights = decoder.step(state, tokens, source)
        return state, (logits, weights)

    _, outputs = jax.lax.scan(step, state, inputs.T)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)


def expected_of(params, config, memory, row):
    """Logits and weights of one example, from the definition."""
    summary = [[part[row, layer] for layer in range(config.encoder.layers)] for part in memory.summary]
    carries = reference.bridge(params, config, memory.states[row, : LENGTHS[row]], summary)
    return reference.decode(params, config, memory.states[row, : LENGTHS[row]], carries, list(INPUTS[row]))


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
                np.testing.assert_allclose(weights[row, :, :length], expected_weights, rtol=1e-9)
                assert not np.any(weights[row, :, length:])
