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
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax.scan_outputs import without_copies
from attn_jax.shapes import Array

PRECISIONS: Mapping[str, Any] = {"float32": None, "tensorfloat32": jax.lax.Precision.HIGH, "bfloat16": jnp.bfloat16}
"""How the operands of products are rounded, by name: what is called `dtype` below.

`tensorfloat32` is for accelerators: 10 bits of mantissa on a GPU, about 16 on a TPU, float32 on a CPU.
"""

LONG_SUM, MANY_ROWS = 1024, 128
"""On CPUs a product of bfloat16 with fewer rows than MANY_ROWS sums at most so many terms at a time."""

LARGE = 1 << 16
"""On CPUs a matrix of so many numbers is transposed in memory before it is multiplied."""


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


class _Scopes(threading.local):
    """The scopes that the traces of a thread are in, the innermost last: JAX traces in several threads at a time."""

    def __init__(self) -> None:
        self.open: list[_Scope] = []


_SCOPES = _Scopes()


@contextlib.contextmanager
def _scoped(scope: _Scope) -> Iterator[_Scope]:
    _SCOPES.open.append(scope)
    try:
        yield scope
    finally:
        _SCOPES.open.pop()


def rounds(dtype: Any) -> bool:
    """Whether operands are rounded by us, and not by the product."""
    return dtype is not None and not isinstance(dtype, jax.lax.Precision)


def _einsum(spec: str, a: Array, w: Array, dtype: Any) -> Array:
    """The product with operands rounded to `dtype` (None: as they are) and accumulated in the type of `a`."""
    if not rounds(dtype):
        # Without a word of it accelerators take float32 for less than it is.
        return jnp.einsum(spec, a, w, precision=dtype or jax.lax.Precision.HIGHEST)

    def plain(a: Array, w: Array) -> Array:
        return jnp.einsum(spec, a.astype(dtype), w.astype(dtype), preferred_element_type=a.dtype)

    on_cpu = functools.partial(_einsum_on_cpu, spec, dtype)
    return jax.lax.platform_dependent(a, w, cpu=on_cpu, default=plain)


def _einsum_on_cpu(spec: str, dtype: Any, a: Array, w: Array) -> Array:
    """The product of rounded operands in the form in which XLA is fast on CPUs.

    It has fast products of bfloat16 for [rows, summed] x [summed, columns] as they lie in memory, and computes others
    in float32. Of long sums with few rows it is fast in parts alone.
    """
    rounded = a.astype(dtype), w.astype(dtype)
    a_axes, w_axes, out_axes = _split(spec)
    rows = "".join(axis for axis in out_axes if axis not in w_axes)
    columns = "".join(axis for axis in out_axes if axis not in a_axes)
    summed = "".join(axis for axis in w_axes if axis in a_axes and axis not in out_axes)
    if not (rows and columns and summed) or rows + columns != out_axes:
        return jnp.einsum(spec, *rounded, preferred_element_type=a.dtype)
    left, right = _matrix(rounded[0], a_axes, rows, summed), _matrix(rounded[1], w_axes, summed, columns)
    # A few terms at the end make no part of their own.
    cuts = list(range(LONG_SUM, right.shape[0] - 8, LONG_SUM)) if left.shape[0] < MANY_ROWS else []
    parts = zip(jnp.split(left, cuts, axis=1), jnp.split(right, cuts, axis=0), strict=True)
    product = functools.reduce(jnp.add, (jnp.dot(x, y, preferred_element_type=a.dtype) for x, y in parts))
    sizes = dict(zip(a_axes + w_axes, a.shape + w.shape, strict=True))
    return product.reshape([sizes[axis] for axis in out_axes])


def _matrix(x: Array, axes: str, rows: str, columns: str) -> Array:
    """`x` as a matrix of these axes."""
    sizes = dict(zip(axes, x.shape, strict=True))
    shape = math.prod(sizes[axis] for axis in rows), math.prod(sizes[axis] for axis in columns)
    if axes == columns + rows and x.size >= LARGE and not _SCOPES.open:
        return _transposed(x.reshape(shape[::-1]))
    return jnp.transpose(x, [axes.index(axis) for axis in rows + columns]).reshape(shape)


@jax.custom_batching.custom_vmap
def _transposed(x: Array) -> Array:
    """The last two axes exchanged, in memory.

    XLA makes a transposition that it sees part of the product, which then is in float32. So it stands in a branch that
    is always taken, of which XLA does not know that.
    """
    first = jax.lax.bitcast_convert_type(x[(0,) * x.ndim], f"int{8 * x.dtype.itemsize}")
    nothing = jnp.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    return jax.lax.cond((first | 1) != 0, lambda x: jnp.swapaxes(x, -1, -2), lambda _: nothing, x)


@_transposed.def_vmap
def _transposed_together(size: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
    # Under vmap there would be both branches.
    return _transposed(x), True


def contract(spec: str, a: Array, w: Array, dtype: Any = None) -> Array:
    """`einsum(spec, a, w)` of an activation `a` and an operand `w`; in `scan`, with the gradient of `w` after the loop.

    `dtype`: of `PRECISIONS`, to what both operands are rounded, also those of the gradients' products; None: to
    nothing. Sums are accumulated in the type of `a`. spec: every axis is an axis of two of `a`, `w` and the result.
    """
    if _SCOPES.open and id(w) in _SCOPES.open[-1].index:
        return _SCOPES.open[-1].contract(spec, a, w, dtype)
    return _product(spec, dtype, a, w)


# JAX's own gradient of an einsum is that of `w` transposed, in whose order an optimiser then reads it on CPUs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, dtype: Any, a: Array, w: Array) -> Array:
    return _einsum(spec, a, w, dtype)


def _product_forward(spec: str, dtype: Any, a: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _einsum(spec, a, w, dtype), (a, w)


def _product_backward(spec: str, dtype: Any, operands: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, w = operands
    a_axes, w_axes, out_axes = _split(spec)
    return _gradient_of_a(spec, dtype, w, g), _einsum(f"{a_axes},{out_axes}->{w_axes}", a, g, dtype)


_product.defvjp(_product_forward, _product_backward)


def _split(spec: str) -> tuple[str, str, str]:
    operands, out = spec.split("->")
    a, w = operands.split(",")
    return a, w, out


def _gradient_of_a(spec: str, dtype: Any, w: Array, g: Array) -> Array:
    a_axes, w_axes, out_axes = _split(spec)
    return _einsum(f"{out_axes},{w_axes}->{a_axes}", g, w, dtype)


# The product inside a differentiated scan. The taps are zeros that the forward pass never reads; their "gradients"
# carry the product's input and the gradient of its output out of the backward loop, stacked over steps.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tapped(spec: str, dtype: Any, a: Array, w: Array, tap_a: Array, tap_out: Array) -> Array:
    return _einsum(spec, a, w, dtype)


def _tapped_forward(spec: str, dtype: Any, a: Array, w: Array, tap_a: Array, tap_out: Array) -> tuple[Array, Any]:
    return _einsum(spec, a, w, dtype), (a, w)


def _tapped_backward(spec: str, dtype: Any, residuals: Any, g: Array) -> tuple[Array | None, ...]:
    a, w = residuals
    return _gradient_of_a(spec, dtype, w, g), None, a, g


_tapped.defvjp(_tapped_forward, _tapped_backward)

Body = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(
    body: Body, reverse: bool, operands: Any, carry: Any, xs: Any, keep_every: int = 0, unroll: int = 1
) -> tuple[Any, Any]:
    """`lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse)`, differentiated as said above.

    operands: pytree of everything that is differentiated and enters every step: weights, keys, values. The body
        multiplies by its leaves with `contract` and must close over no differentiated value.
    keep_every: if not 0, the backward pass finds the carries of every so-manieth step only, and computes again what
        lies between (Chen et al. 2016, arXiv 1604.06174): T / n carries and n steps' intermediate values in place of
        those of T steps. Gradients of weights are then one product for n steps.
    unroll: steps in one turn of the compiled loops, of which a GPU has a cost of its own.
    Returns the last carry and the stacked outputs, as `lax.scan` does.
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    if not 0 < keep_every < steps:
        return _scan(body, reverse, unroll, operands, carry, xs)
    whole = steps // keep_every * keep_every
    again = jax.checkpoint(lambda c, x: _scan(body, reverse, unroll, operands, c, x), prevent_cse=False)

    def evenly(carry: Any) -> tuple[Any, Any]:
        parts = jax.tree.map(lambda x: x[:whole].reshape(-1, keep_every, *x.shape[1:]), xs)
        carry, outputs = jax.lax.scan(again, carry, parts, reverse=reverse)
        return carry, jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), outputs)

    if whole == steps:
        return evenly(carry)
    # What is left over lies at the end, where a reversed scan begins.
    rest = jax.tree.map(lambda x: x[whole:], xs)
    if reverse:
        carry, last = again(carry, rest)
        carry, first = evenly(carry)
    else:
        carry, first = evenly(carry)
        carry, last = again(carry, rest)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), first, last)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(body: Body, reverse: bool, unroll: int, operands: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return jax.lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse, unroll=unroll)


def _scan_forward(body: Body, reverse: bool, unroll: int, operands: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    length = jax.tree.leaves(xs)[0].shape[0]
    with _scoped(_Scope(operands, None)) as seen:
        jax.eval_shape(lambda c, x: body(operands, c, x), carry, jax.tree.map(lambda x: x[0], xs))
    taps = [tuple(jnp.zeros((length, *s.shape), s.dtype) for s in (a, out)) for _, _, _, a, out in seen.uses]

    def tapped(operands: Any, carry: Any, xs: Any, taps: Any) -> tuple[Any, Any]:
        def step(c: Any, x: Any) -> tuple[Any, Any]:
            x, step_taps = x
            with _scoped(_Scope(operands, step_taps)):
                return body(operands, c, x)

        return jax.lax.scan(step, carry, (xs, taps), reverse=reverse, unroll=unroll)

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


def _scan_backward(body: Body, reverse: bool, unroll: int, residuals: Any, g: Any) -> tuple[Any, Any, Any]:
    pullback, uses = residuals
    d_operands, d_carry, d_xs, d_taps = without_copies(pullback, g)
    leaves, tree = jax.tree.flatten(d_operands)
    floating = [i for i, leaf in enumerate(leaves) if leaf.dtype != jax.dtypes.float0]
    for (index, spec, dtype), (a, d_out) in zip(uses.value, d_taps, strict=True):
        a_axes, w_axes, out_axes = _split(spec)
        gradient = _einsum(f"Z{a_axes},Z{out_axes}->{w_axes}", a, d_out, dtype)
        leaves[floating[index]] = leaves[floating[index]] + gradient
    return jax.tree.unflatten(tree, leaves), d_carry, d_xs


_scan.defvjp(_scan_forward, _scan_backward)
