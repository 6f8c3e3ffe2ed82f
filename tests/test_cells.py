"""Every cell, one step, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from attn_jax.cells import CELLS
from attn_jax.config import Cell as Settings

BATCH, INPUTS, SIZE = 3, (2, 5), 4


def parts(name, forget_bias=0.5):
    """The structure of a cell with two inputs, and random parameters."""
    settings = Settings(name, forget_bias)
    return reference.random_module(lambda init: CELLS[name](INPUTS, SIZE, settings=settings, init=init))


def problem(name):
    rng = np.random.default_rng(3)
    xs = tuple(rng.normal(size=(BATCH, width)) for width in INPUTS)
    carry = tuple(rng.normal(size=(BATCH, SIZE)) for _ in CELLS[name].parts)
    return xs, carry, (rng.random((BATCH, SIZE)) < 0.5) * 2.0


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_step_and_gradients_are_the_definition(x64, name, dropout):
    graph, state = parts(name)
    xs, carry, mask = problem(name)
    factors = np.random.default_rng(4).normal(size=(len(carry), BATCH, SIZE))

    @reference.jit
    def step(state, xs, carry):
        def total(state, xs, carry):
            cell = nnx.merge(graph, state)
            new = cell.step(carry, cell.project(xs[0]) + cell.project(xs[1], 1), jnp.asarray(mask) if dropout else None)
            return jnp.sum(jnp.stack(new) * factors), new

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(state, xs, carry)

    def defined(values):
        rows = [
            reference.cell_step(
                name,
                values,
                tuple(values[f"carry{k}"][b] for k in range(len(carry))),
                np.concatenate([values["x0"][b], values["x1"][b]]),
                0.5,
                mask[b] if dropout else 1.0,
            )
            for b in range(BATCH)
        ]
        return [np.stack(part) for part in zip(*rows, strict=True)]

    def named(state, xs, carry):
        return {
            **reference.by_name(state),
            "x0": xs[0],
            "x1": xs[1],
            **{f"carry{k}": part for k, part in enumerate(carry)},
        }

    (_, new), gradients = step(state, xs, carry)
    values = named(state, xs, carry)
    for found, expected in zip(new, defined(values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    reference.assert_gradients(lambda v: np.sum(np.stack(defined(v)) * factors), values, named(*gradients))


def test_hand_computed_step_of_each_cell():
    """One unit, x = 1, h = 0.5, c = 2, all weights and biases 1, forget bias 1: every gate sees 2.5, and f sees 3.5."""

    def cell(name):
        cell = CELLS[name]((1,), 1, settings=Settings(name, 1.0), init=reference.initializer())
        graph, state = nnx.split(cell)
        return nnx.merge(graph, jax.tree.map(jnp.ones_like, state))

    x, h, c = jnp.ones((1, 1)), jnp.full((1, 1), 0.5), jnp.full((1, 1), 2.0)
    s, tanh = 1 / (1 + np.exp(-2.5)), np.tanh
    new_c = 2 / (1 + np.exp(-3.5)) + s * tanh(2.5)
    # The candidate of the gru: W x + b = 2, and r (U h + b_n) = 1.5 r.
    expected = {"rnn": [tanh(2.5)], "lstm": [s * tanh(new_c), new_c], "gru": [(1 - s) * tanh(2 + 1.5 * s) + s * 0.5]}
    for name, values in expected.items():
        one = cell(name)
        found = one.step((h, c)[: len(values)], one.project(x))
        np.testing.assert_allclose([v[0, 0] for v in found], values, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", CELLS)
def test_zero_carry_has_every_part(name):
    cell = CELLS[name]((2,), SIZE, settings=Settings(name), init=reference.initializer())
    carry = cell.zeros(2, jnp.float32)
    assert [part.shape for part in carry] == [(2, SIZE)] * len(CELLS[name].parts)
    assert not any(part.any() for part in carry)


def test_first_values_are_those_of_one_matrix_a_gate():
    """Glorot with the fans of a gate's matrix over all inputs; orthogonal recurrent blocks; zero biases."""
    cell = CELLS["lstm"]((300, 100), 64, settings=Settings(), init=reference.initializer())
    limit = (6 / (400 + 64)) ** 0.5
    for kernel in cell.kernels:
        assert 0.99 * limit < np.abs(kernel[...]).max() <= limit
    blocks = np.split(np.asarray(cell.recurrent[...]), 4, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(64), atol=1e-5)
    assert np.abs(blocks[0] - blocks[1]).max() > 0.1
    assert not cell.bias[...].any()
