"""Sequences of different lengths in one batch, both directions, against the cell's definition step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from attn_jax.cells import CELLS
from attn_jax.config import Cell as Settings
from attn_jax.recurrence import recur

LENGTHS, INPUT, SIZE = [5, 2, 0, 3], 3, 4
STEPS = max(LENGTHS)


@pytest.mark.parametrize(("name", "reverse"), [(name, reverse) for name in CELLS for reverse in (False, True)])
def test_each_sequence_runs_alone_within_its_length(x64, name, reverse):
    settings, rng = Settings(name, 0.5), np.random.default_rng(5)
    graph, state = reference.random_module(lambda init: CELLS[name]((INPUT,), SIZE, settings=settings, init=init))
    xs = rng.normal(size=(STEPS, len(LENGTHS), INPUT))
    first = tuple(rng.normal(size=(len(LENGTHS), SIZE)) for _ in CELLS[name].parts)
    dropout = (rng.random((len(LENGTHS), SIZE)) < 0.5) * 2.0
    mask = np.arange(STEPS)[None] < np.array(LENGTHS)[:, None]
    factors = rng.normal(size=(STEPS + len(first), len(LENGTHS), SIZE))

    @reference.jit
    def run(state, xs, first):
        def total(state, xs, first):
            cell = nnx.merge(graph, state)
            found = recur(cell, cell.project(xs), first, mask_BT=mask, dropout_BH=jnp.asarray(dropout), reverse=reverse)
            return jnp.sum(jnp.concatenate([found[0], jnp.stack(found[1])]) * factors), found

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(state, xs, first)

    def named(state, xs, first):
        return {**reference.by_name(state), "xs": xs, **{f"first{k}": part for k, part in enumerate(first)}}

    def defined(values):
        """All states [T, B, H], zero beyond a sequence's length, and the last carry."""
        states, last = np.zeros((STEPS, len(LENGTHS), SIZE), values["xs"].dtype) + 0 * values["bias"][0], []
        for b, length in enumerate(LENGTHS):
            carry = tuple(values[f"first{k}"][b] for k in range(len(first)))
            for t in reversed(range(length)) if reverse else range(length):
                carry = reference.cell_step(name, values, carry, values["xs"][t, b], 0.5, dropout[b])
                states[t, b] = carry[0]
            last.append(carry)
        return states, np.array(last).swapaxes(0, 1)

    def total(values):
        states, last = defined({k: v + 0j for k, v in values.items()})
        return np.sum(np.concatenate([states, last]) * factors)

    (_, (states, last)), gradients = run(state, xs, first)
    values = named(state, xs, first)
    expected_states, expected_last = defined(values)
    np.testing.assert_allclose(states, expected_states, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(last, expected_last, rtol=1e-9)
    np.testing.assert_array_equal(np.stack(last)[:, 2], np.stack(first)[:, 2], "an empty sequence moved")
    reference.assert_gradients(total, values, named(*gradients))
    assert not np.any(np.asarray(gradients[1])[~mask.T])


def test_without_a_mask_all_steps_are_real(x64):
    cell = CELLS["gru"]((INPUT,), SIZE, settings=Settings("gru"), init=reference.initializer(jnp.float64))
    projected = cell.project(jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, INPUT))))
    start = cell.zeros(2, projected.dtype)
    found = recur(cell, projected, start)
    masked = recur(cell, projected, start, mask_BT=jnp.ones((2, 3), bool))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, masked)
    np.testing.assert_array_equal(found[0][-1], found[1][0])
