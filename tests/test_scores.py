"""Every registered score against its definition. `check_score` holds for any score that a user registers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from attn_jax.attention import Attention
from attn_jax.config import Score as Settings
from attn_jax.errors import UserError
from attn_jax.normalizers import NORMALIZERS
from attn_jax.scores import SCORES, Extra, Memory, Score

LENGTHS, STEPS = [4, 1, 3], 2
QUERY, MEMORY, WIDTH = 4, 6, 5


def make(name, init, *, memory=MEMORY, projection=True, **options) -> Score:
    settings = Settings(name=name, size=WIDTH, memory_projection=projection, heads=reference.HEADS)
    return SCORES[name](QUERY, memory, settings=settings, init=init, **options)


def problem(memory=MEMORY):
    """Queries [B, T, Q], and memories of different lengths, zero on padding."""
    rng = np.random.default_rng(1)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    states = rng.normal(size=(len(LENGTHS), max(LENGTHS), memory)) * mask[:, :, None]
    return rng.normal(size=(len(LENGTHS), STEPS, QUERY)), states, mask


def check_score(name, **options):
    """Scores, contexts and gradients of a score in padded batches are those of `formula` on each lone row, to 1e-9.

    For all steps at once, for one step, and step by step where a score has a limit `CHUNK_BYTES` for all steps at once.
    Gradients are of the context vectors, with respect to parameters, queries and states. Call it in float64.
    """
    graph, state = reference.random_module(lambda init: make(name, init, **options))
    queries, states, mask = problem(options.get("memory", MEMORY))
    lengths = jnp.array(LENGTHS)
    directions = np.random.default_rng(2).normal(size=(*queries.shape[:2], states.shape[-1]))

    def fast(state, queries, states, *, single):
        attention = Attention(nnx.merge(graph, state), NORMALIZERS["softmax"](), reference.EVERYWHERE)
        prepared, extra = attention.prepare(Memory(states, mask, ())), Extra(lengths, jnp.array(1))
        if not single:
            return attention.score(queries, prepared.keys, extra), attention(queries, prepared, extra)[0]
        steps = [queries[:, t] for t in range(STEPS)]
        scores = [attention.score(query, prepared.keys, extra) for query in steps]
        return jnp.stack(scores, 1), jnp.stack([attention(query, prepared, extra)[0] for query in steps], 1)

    def plain(state, queries, states):
        score = nnx.merge(graph, state)
        values = score.values(Memory(states, mask, ()))
        per_head = [reference.HEADS] if SCORES[name].uses_heads else []
        scores = jnp.zeros((len(LENGTHS), STEPS, *per_head, max(LENGTHS)))
        contexts = []
        for b, length in enumerate(LENGTHS):
            for t in range(STEPS):
                row = score.formula(queries[b, t], states[b, :length], Extra(lengths[b], jnp.array(1)))
                scores = scores.at[b, t, ..., :length].set(row)
                contexts.append(score.context(jax.nn.softmax(row)[None], values[b : b + 1, :length])[0])
        return scores, jnp.stack(contexts).reshape(directions.shape)

    def with_gradients(f):
        def objective(*arguments):
            scores, contexts = f(*arguments)
            real = mask[:, None, None, :] if scores.ndim == 4 else mask[:, None, :]
            return jnp.sum(contexts * directions), (jnp.where(real, scores, 0), contexts)

        return reference.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))(state, queries, states)

    expected = with_gradients(plain)
    for label, limit, single in [("all steps", 1 << 30, False), ("one step", 1 << 30, True), ("chunks", 1, False)]:
        chunked = hasattr(SCORES[name], "CHUNK_BYTES")
        if limit == 1 and not chunked:
            continue
        with pytest.MonkeyPatch.context() as patch:
            if chunked:
                patch.setattr(SCORES[name], "CHUNK_BYTES", limit)
            found = with_gradients(functools.partial(fast, single=single))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12, err_msg=f"{name}, {label}"),
            found,
            expected,
        )
        assert not np.any(np.asarray(found[1][2])[~mask]), f"{name}, {label}: padding has a gradient"


@pytest.mark.parametrize("name", SCORES)
def test_score_is_its_formula(x64, name):
    check_score(name)


@pytest.mark.parametrize("name", [name for name in SCORES if SCORES[name].equal_sizes])
def test_score_without_projection_is_its_formula(x64, name):
    check_score(name, memory=QUERY, projection=False)


@pytest.mark.parametrize("name", reference.SCORE_ROWS)
def test_formula_is_the_definition(x64, name):
    graph, state = reference.random_module(lambda init: make(name, init))
    queries, states, _ = problem()
    p = reference.by_name(state)
    found = nnx.merge(graph, state).formula(
        jnp.asarray(queries[0, 0]), jnp.asarray(states[0]), Extra(jnp.array(4), jnp.array(1))
    )
    np.testing.assert_allclose(found, reference.SCORE_ROWS[name](p, queries[0, 0], states[0]), rtol=1e-9)


def test_hand_computed_scores(x64):
    """Query (3, 4), memory (4, 3) and (0, 0): dot 24, over sqrt(2), over 5 * 5."""
    query, states = jnp.array([[3.0, 4.0]]), jnp.array([[[4.0, 3.0], [0.0, 0.0]]])
    memory, extra = Memory(states, jnp.ones((1, 2), bool), ()), Extra(jnp.array([2]), jnp.array(1))
    init = reference.initializer(jnp.float64)
    for name, expected in [("dot", 24), ("scaled_dot", 24 / 2**0.5), ("cosine", 24 / 25)]:
        score = SCORES[name](2, 2, settings=Settings(), init=init)
        np.testing.assert_allclose(score(query, score.keys(memory), extra), [[expected, 0]], rtol=1e-12)


def test_concat_equals_additive_when_the_matrices_are_equal(x64):
    concat = make("concat", reference.initializer(jnp.float64))
    init = reference.initializer(jnp.float64)
    additive = SCORES["additive"](QUERY, MEMORY, settings=Settings(size=QUERY), init=init)
    w = np.random.default_rng(0).normal(size=(QUERY, QUERY + MEMORY))
    concat.query_kernel[...] = additive.query_kernel[...] = jnp.asarray(w[:, :QUERY].T)
    concat.memory_kernel[...] = additive.memory_kernel[...] = jnp.asarray(w[:, QUERY:].T)
    concat.v[...] = additive.v[...]
    queries, states, mask = problem()
    memory, extra = Memory(jnp.asarray(states), mask, ()), Extra(jnp.array(LENGTHS), jnp.array(1))
    one, other = (score(jnp.asarray(queries), score.keys(memory), extra) for score in (concat, additive))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    joined = np.concatenate([queries[2, 1], states[2, 0]])
    np.testing.assert_allclose(one[2, 1, 0], np.asarray(concat.v[...]) @ np.tanh(w @ joined), rtol=1e-9)


def test_concat_is_initialised_as_one_matrix():
    score = SCORES["concat"](200, 600, settings=Settings(), init=reference.initializer())
    limit = (6 / (800 + 200)) ** 0.5
    for block in (score.query_kernel, score.memory_kernel):
        assert 0.99 * limit < np.abs(block[...]).max() <= limit


def test_additive_without_a_size_has_the_querys():
    score = SCORES["additive"](3, 5, settings=Settings(size=0), init=reference.initializer())
    assert score.query_kernel.shape == (3, 3)
    assert score.v.shape == (3,)


def test_cosine_is_finite_at_zero_vectors():
    score = SCORES["cosine"](2, 2, settings=Settings(), init=reference.initializer())
    extra = Extra(jnp.array([2]), jnp.array(1))

    def total(query, states):
        scores = score(query, score.keys(Memory(states, jnp.ones((1, 2), bool), ())), extra)
        return jnp.sum(scores), scores

    for query in ([[0.0, 0.0]], [[1.0, 2.0]]):
        states = jnp.array([[[0.0, 0.0], [3.0, 4.0]]])
        (_, scores), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(jnp.array(query), states)
        assert scores[0, 0] == 0
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", [name for name in SCORES if SCORES[name].equal_sizes])
def test_unequal_widths_are_refused_with_both_sizes(name):
    with pytest.raises(UserError, match=f"'{name}' .*4 .decoder.size.*6 .*memory_projection=true"):
        make(name, reference.initializer(), projection=False)
    assert make(name, reference.initializer()).projection.shape == (MEMORY, QUERY)


@pytest.mark.parametrize("name", SCORES)
def test_first_line_of_the_docstring_names_equation_and_source(name):
    line = (SCORES[name].__doc__ or "").strip().splitlines()[0]
    assert "(" in line
    assert re.search(r"\b(19|20)\d\d\b|tensorflow/nmt", line), f"neither the year of a publication nor code in {line!r}"
