"""Matrix products, and a scan whose weight gradients are one product each after the backward loop.

Differentiating `lax.scan` carries the gradient of every weight through the backward loop and adds a thin product
[H, B] x [B, G] to it at each step. The gradient of a weight W that enters step t as y_t = a_t W is

    dW = sum_t a_t' dy_t,

one product over all steps. `scan` computes it so for every operand that its body multiplies with `contract`: weights,
and also keys and values of attention, which are per-batch operands of the same form. Everything else is differentiated
as usual.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax.shapes import Array


class _Scope:
    """The operands of one scan body while it is traced, and the products in which they were used."""

    def __init__(self, operands: Any, taps: list[tuple[Array, Array]] | None):
        # Tracers are recognised by identity; the list keeps them alive while their ids are in use.
        self.operands = [leaf for leaf in jax.tree.leaves(operands) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        self.index = {id(leaf): i for i, leaf in enumerate(self.operands)}
        self.taps = taps
        self.uses: list[tuple[int, str, Any, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]] = []

    def contract(self, spec: str, a: Array, w: Array, dtype: Any) -> Array:
        number = len(self.uses)
        out = jax.eval_shape(lambda a, w: _einsum(spec, a, w, dtype), a, w)
        self.uses.append(
            (
                self.index[id(w)],
                spec,
                dtype,
                jax.ShapeDtypeStruct(a.shape, a.dtype),
                jax.ShapeDtypeStruct(out.shape, out.dtype),
            )
        )
        if self.taps is None:
            return _einsum(spec, a, w, dtype)
        return _tapped(spec, dtype, a, w, *self.taps[number])


_scopes: list[_Scope] = []


@contextlib.contextmanager
def _scoped(scope: _Scope) -> Iterator[_Scope]:
    _scopes.append(scope)
    try:
        yield scope
    finally:
        _scopes.pop()


def _einsum(spec: str, a: Array, w: Array, dtype: Any) -> Array:
    """The product with operands rounded to `dtype` (None: as they are) and accumulated in the type of `a`."""
    if dtype is None:
        return jnp.einsum(spec, a, w)
    return jnp.einsum(spec, a.astype(dtype), w.astype(dtype), preferred_element_type=a.dtype)


def contract(spec: str, a: Array, w: Array, dtype: Any = None) -> Array:
    """`einsum(spec, a, w)` of an activation `a` and an operand `w`; in `scan`, with the gradient of `w` after the loop.

    `dtype`: type to which both operands are rounded (`jnp.bfloat16`), or None; the sum is accumulated in the type of
    `a`.
    """
    if _scopes and id(w) in _scopes[-1].index:
        return _scopes[-1].contract(spec, a, w, dtype)
    return _einsum(spec, a, w, dtype)


def _split(spec: str) -> tuple[str, str, str]:
    operands, out = spec.split("->")
    a, w = operands.split(",")
    return a, w, out


# The product inside a differentiated scan. The taps are zeros that the forward pass never reads; their "gradients"
# carry the product's input and the gradient of its output out of the backward loop, stacked over steps.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tapped(spec: str, dtype: Any, a: Array, w: Array, tap_a: Array, tap_out: Array) -> Array:
    return _einsum(spec, a, w, dtype)


def _tapped_forward(spec: str, dtype: Any, a: Array, w: Array, tap_a: Array, tap_out: Array) -> tuple[Array, Any]:
    return _einsum(spec, a, w, dtype), (a, w)


def _tapped_backward(spec: str, dtype: Any, residuals: Any, g: Array) -> tuple[Array | None, ...]:
    a, w = residuals
    a_axes, w_axes, out_axes = _split(spec)
    return _einsum(f"{out_axes},{w_axes}->{a_axes}", g, w, dtype), None, a, g


_tapped.defvjp(_tapped_forward, _tapped_backward)

Body = Callable[[Any, Any, Any], tuple[Any, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(body: Body, reverse: bool, operands: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse)`, differentiated as said above.

    operands: pytree of everything that is differentiated and enters every step: weights, keys, values. The body
        multiplies by its leaves with `contract` and must close over no differentiated value.
    Returns the last carry and the stacked outputs, as `lax.scan` does.
    """
    return jax.lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse)


def _scan_forward(body: Body, reverse: bool, operands: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    length = jax.tree.leaves(xs)[0].shape[0]
    with _scoped(_Scope(operands, None)) as seen:
        jax.eval_shape(lambda c, x: body(operands, c, x), carry, jax.tree.map(lambda x: x[0], xs))
    taps = [tuple(jnp.zeros((length, *s.shape), s.dtype) for s in (a, out)) for _, _, _, a, out in seen.uses]

    def tapped(operands: Any, carry: Any, xs: Any, taps: Any) -> tuple[Any, Any]:
        def step(c: Any, x: Any) -> tuple[Any, Any]:
            x, step_taps = x
            with _scoped(_Scope(operands, step_taps)):
                return body(operands, c, x)

        return jax.lax.scan(step, carry, (xs, taps), reverse=reverse)

    out, pullback = jax.vjp(tapped, operands, carry, xs, taps)
    uses = [(index, spec, dtype) for index, spec, dtype, _, _ in seen.uses]
    return out, (pullback, _Static(uses))


@jax.tree_util.register_static
class _Static:
    """A constant that rides along with the residuals."""

    def __init__(self, value: list):
        self.value = value

    def __hash__(self) -> int:
        return hash(str(self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.value == other.value


def _scan_backward(body: Body, reverse: bool, residuals: Any, g: Any) -> tuple[Any, Any, Any]:
    pullback, uses = residuals
    d_operands, d_carry, d_xs, d_taps = pullback(g)
    leaves, tree = jax.tree.flatten(d_operands)
    floating = [i for i, leaf in enumerate(leaves) if leaf.dtype != jax.dtypes.float0]
    for (index, spec, dtype), (a, d_out) in zip(uses.value, d_taps, strict=True):
        a_axes, w_axes, out_axes = _split(spec)
        gradient = _einsum(f"Z{a_axes},Z{out_axes}->{w_axes}", a, d_out, dtype)
        leaves[floating[index]] = leaves[floating[index]] + gradient
    return jax.tree.unflatten(tree, leaves), d_carry, d_xs


scan.defvjp(_scan_forward, _scan_backward)
