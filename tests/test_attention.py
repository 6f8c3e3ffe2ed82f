"""Context and weights by loops; what lies on padding; one step and all steps."""

import jax
import jax.numpy as jnp
import numpy as np
import reference

from attn_jax.attention import Attention
from attn_jax.config import Score as Settings
from attn_jax.normalizers import NORMALIZERS
from attn_jax.scores import Dot, Extra, Memory

LENGTHS = [5, 2, 0]


def attend(attention, queries, states):
    mask = jnp.arange(states.shape[1])[None] < jnp.array(LENGTHS)[:, None]
    return attention(queries, attention.prepare(Memory(states, mask, ())), Extra(jnp.array(LENGTHS), jnp.array(1)))


def dot_attention(score=Dot):
    init = reference.initializer(jnp.float64)
    return Attention(score(4, 4, settings=Settings(), init=init), NORMALIZERS["softmax"](), reference.EVERYWHERE)


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 5, 4))


def test_context_is_the_weighted_sum_of_the_values(x64):
    class Doubled(Dot):
        def values(self, memory):
            return 2 * memory.states

    queries, states = problem()
    for score, factor in [(Dot, 1), (Doubled, 2)]:
        context, weights = attend(dot_attention(score), jnp.asarray(queries), jnp.asarray(states))
        for b, length in enumerate(LENGTHS):
            for t in range(2):
                e = [sum(queries[b, t, k] * states[b, j, k] for k in range(4)) for j in range(length)]
                expected = np.exp(e) / np.exp(e).sum() if length else np.zeros(0)
                np.testing.assert_allclose(weights[b, t], [*expected, *np.zeros(5 - length)], rtol=1e-9)
                total = sum((w * m for w, m in zip(expected, states[b], strict=False)), np.zeros(4))
                np.testing.assert_allclose(context[b, t], factor * total, rtol=1e-9)


def test_one_step_is_a_row_of_all_steps(x64):
    queries, states = problem()
    together = attend(dot_attention(), jnp.asarray(queries), jnp.asarray(states))
    for t in range(2):
        for whole, row in zip(
            together, attend(dot_attention(), jnp.asarray(queries[:, t]), jnp.asarray(states)), strict=True
        ):
            np.testing.assert_allclose(whole[:, t], row, rtol=1e-12)


def test_padding_has_no_influence_and_no_gradient(x64):
    queries, states = problem()
    rubbish = states.copy()
    rubbish[1, 2:], rubbish[2] = 1e6, -1e6

    def total(states):
        context, weights = attend(dot_attention(), jnp.asarray(queries), states)
        return jnp.sum(jnp.sin(context)) + jnp.sum(weights**2), (context, weights)

    found = [jax.value_and_grad(total, has_aux=True)(jnp.asarray(s)) for s in (states, rubbish)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    gradient = np.asarray(found[0][1])
    assert not gradient[1, 2:].any()
    assert not gradient[2].any()
    assert gradient[0].all()


def test_widest_context_of_a_sharp_score_is_its_best_state():
    """Scores far apart pick one state."""
    attention = Attention(
        Dot(2, 2, settings=Settings(), init=reference.initializer()), NORMALIZERS["softmax"](), reference.EVERYWHERE
    )
    states = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    prepared = attention.prepare(Memory(states, jnp.ones((1, 2), bool), ()))
    context, weights = attention(jnp.array([[0.0, 50.0]]), prepared, Extra(jnp.array([2]), jnp.array(1)))
    np.testing.assert_allclose(weights, [[0, 1]], atol=1e-6)
    np.testing.assert_allclose(context, [[0, 1]], atol=1e-6)
