import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import scan_p

from attn_jax import products
from attn_jax.scan_outputs import without_copies


def scanned(carry, xs, reverse):
    """Outputs of which some are another, an input, or the same number at every step."""

    def step(carry, x):
        a, n = x
        total = carry + jnp.sin(a) * n
        return total, (total, a, total, n, 1.0, carry)

    last, (total, a, again, n, one, before) = jax.lax.scan(step, carry, xs, reverse=reverse)
    return {"last": last, "again": again, "sum": total + again, "a": a, "n": n, "one": one, "before": before}


def stacked(jaxpr):
    """Outputs that the scans of a jaxpr stack."""
    scans = [equation for equation in jaxpr.eqns if equation.primitive is scan_p]
    return sum(len(equation.outvars) - equation.params["num_carry"] for equation in scans)


@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_are_the_same_and_stacked_once(reverse):
    carry, xs = jnp.arange(3.0), (jnp.arange(12.0).reshape(4, 3), jnp.arange(4))
    function = lambda *arguments: scanned(*arguments, reverse)  # noqa: E731
    expected, found = function(carry, xs), without_copies(function, carry, xs)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert stacked(jax.make_jaxpr(function)(carry, xs).jaxpr) > 3
    lean = jax.make_jaxpr(lambda *arguments: without_copies(function, *arguments))(carry, xs).jaxpr
    assert stacked(lean) == 3  # the sums, the ones, and what was before


def test_the_gradient_of_a_sum_in_a_loop_is_stacked_once():
    """An Elman step of two recurrent inputs: one cotangent for three terms, and no copies of what entered products."""
    w, x, h = {"u": jnp.eye(3), "v": jnp.eye(3)}, jnp.ones((5, 2, 3)), jnp.zeros((2, 3))

    def step(operands, carry, x):
        u, v = (products.contract("bh,hg->bg", carry, operands[name]) for name in "uv")
        new = jnp.tanh(x + u + v)
        return new, new

    gradient = jax.grad(lambda w, x: products.scan(step, False, w, h, x)[1].sum(), (0, 1))
    scans = [e for e in jax.make_jaxpr(gradient)(w, x).jaxpr.eqns if e.primitive is scan_p]
    assert stacked(jax.make_jaxpr(gradient)(w, x).jaxpr) - (len(scans[0].outvars) - 1) == 1
