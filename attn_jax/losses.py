"""Cross-entropy of a projected vocabulary, without ever holding all logits [B, T, V]; the coverage loss."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attn_jax.data.text import BOS, PAD
from attn_jax.products import contract, rounds
from attn_jax.shapes import Array, Float, Int

CHUNK_BYTES = 16 << 20
"""Logits of about this many bytes are made at a time."""

BLOCK_BYTES, FEWEST_BLOCKS = 4 << 20, 8
"""On CPUs the gradient of a kernel of at least so many blocks of about so many bytes is summed block by block."""


def previous_symbols(target: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The symbol before each of the target's: start-of-sentence, then all but its last."""
    return jnp.concatenate([jnp.full_like(target[:, :1], BOS), target[:, :-1]], axis=1)


class Totals(NamedTuple):
    """Sums over tokens: the training loss, the negative log-likelihood (nats), and the number of right predictions."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    correct: Float[Array, ""]


def cross_entropy(
    features: Float[Array, "N F"],
    kernel: Float[Array, "F V"],
    bias: Float[Array, " V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    smoothing: Float[Array, ""] | float | None = None,
    dtype: Any = None,
) -> Totals:
    """Weighted sums over N tokens, of logits = features kernel + bias.

    loss = sum_n w_n sum_v q_nv (-log p_nv), where q puts 1 - smoothing on the target and spreads `smoothing` evenly
    over the vocabulary without padding; None: there is none. weights: 0 on padding. dtype: operands of the products,
    see `products.contract`.
    Gradients flow from `loss` to features, kernel and bias.
    """
    smoothing = None if smoothing is None else jnp.asarray(smoothing, features.dtype)
    return _cross_entropy(dtype, features, kernel, bias, targets, weights, smoothing)


def repeated_attention(weights: Float[Array, "B T S"], real: Float[Array, "B T"]) -> Float[Array, ""]:
    """The coverage loss: sum_t sum_j min(weight_tj, cov_tj) (See et al. 2017, equation 12).

    cov_t is the sum of the weights before step t. real: 1 at the steps that count, 0 on padding.
    """
    earlier = jnp.cumsum(weights, axis=1) - weights
    return jnp.sum(real[:, :, None] * jnp.minimum(weights, earlier))


def _chunk(
    dtype: Any, x: Array, kernel: Array, bias: Array, targets: Array, weights: Array, smoothing: Array | None
) -> tuple[Totals, Array]:
    """Totals of some tokens, and the gradient of their loss with respect to their logits."""
    # A line below that touches all logits may be a pass over memory, which takes a tenth of the time of the product.
    logits = contract("nf,fv->nv", x, kernel, dtype) + bias[None]
    vocabulary = logits.shape[1]
    at_target = jnp.take_along_axis(logits, targets[:, None], axis=1)
    # The first of the highest, as argmax has it, which takes ten times as long on a CPU.
    earlier = ((jnp.arange(vocabulary)[None] < targets[:, None]) & (logits >= at_target)).any(axis=1, keepdims=True)
    # This maximum is no higher for its second part; but so all that needs the logits is known before their gradients,
    # which then can lie where the logits did.
    highest = jnp.maximum(logits.max(axis=1, keepdims=True), jnp.where(earlier, -jnp.inf, at_target))
    correct = ((at_target >= highest) & ~earlier)[:, 0].astype(x.dtype)
    exponentials = jnp.exp(logits - highest)
    total = exponentials.sum(axis=1, keepdims=True)
    log_total = highest[:, 0] + jnp.log(total[:, 0])
    nll = loss = log_total - at_target[:, 0]
    q = jnp.where(jnp.arange(vocabulary)[None] == targets[:, None], 1 if smoothing is None else 1 - smoothing, 0)
    if smoothing is not None:
        spread = smoothing / (vocabulary - 1)
        rest = (vocabulary - 1) * log_total - (logits.sum(axis=1) - logits[:, PAD])
        loss = (1 - smoothing) * nll + spread * rest
        q = q + jnp.where(jnp.arange(vocabulary) == PAD, 0, spread)[None]
    totals = Totals(*(jnp.sum(weights * value) for value in (loss, nll, correct)))
    d_logits = exponentials * (weights[:, None] / total) - weights[:, None] * q
    # Both products of it round it anyway: so it need not be stored in full for its sum over tokens.
    return totals, d_logits.astype(dtype).astype(x.dtype) if rounds(dtype) else d_logits


def _chunks(n: int, vocabulary: int, itemsize: int) -> int:
    """Number of equal chunks."""
    return max(1, -(-n * vocabulary * itemsize // CHUNK_BYTES))


def _reshaped(parts: int, *arrays: Array) -> tuple[Array, ...]:
    """Arrays cut into equal parts along their first axis, padded with zeros (whose weight is zero)."""
    n = arrays[0].shape[0]
    size = -(-n // parts)
    return tuple(
        jnp.pad(a, [(0, parts * size - n)] + [(0, 0)] * (a.ndim - 1)).reshape(parts, size, *a.shape[1:]) for a in arrays
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    dtype: Any, x: Array, kernel: Array, bias: Array, targets: Array, weights: Array, smoothing: Array | None
) -> Totals:
    parts = _chunks(x.shape[0], kernel.shape[1], x.dtype.itemsize)
    if parts == 1:
        return _chunk(dtype, x, kernel, bias, targets, weights, smoothing)[0]
    one = lambda chunk: _chunk(dtype, chunk[0], kernel, bias, chunk[1], chunk[2], smoothing)[0]  # noqa: E731
    return jax.tree.map(jnp.sum, jax.lax.map(one, _reshaped(parts, x, targets, weights)))


def _forward(
    dtype: Any, x: Array, kernel: Array, bias: Array, targets: Array, weights: Array, smoothing: Array | None
) -> tuple[Totals, Any]:
    # The loss is one number, so its gradient is known up to a factor as soon as the logits are: it is taken here, chunk
    # by chunk, and no logits are kept or made twice.
    def d_x(d_logits: Array) -> Array:
        return contract("nv,fv->nf", d_logits, kernel, dtype)

    parts = _chunks(x.shape[0], kernel.shape[1], x.dtype.itemsize)
    if parts == 1:
        totals, d_logits = _chunk(dtype, x, kernel, bias, targets, weights, smoothing)
        return totals, (d_x(d_logits), contract("nf,nv->fv", x, d_logits, dtype), d_logits.sum(axis=0))

    def d_bias(d_logits: Array) -> Array:
        # As a product: of a sum XLA makes a pass of its own over the logits with all that their gradient takes.
        # What is not rounded already is summed in full. Fewer rows of rounded operands are slow on CPUs.
        rows, rounded = (8, dtype) if rounds(dtype) else (1, None)
        return contract("mn,nv->mv", jnp.ones((rows, d_logits.shape[0]), x.dtype), d_logits, rounded)[0]

    def step(sums: tuple[Totals, Array, Array], chunk: tuple[Array, ...]) -> tuple[Any, Array]:
        found, d_logits = _chunk(dtype, chunk[0], kernel, bias, chunk[1], chunk[2], smoothing)
        totals, kernels, biases = sums
        kernels = _plus_product(dtype, kernels, chunk[0], d_logits)
        return (jax.tree.map(jnp.add, totals, found), kernels, biases + d_bias(d_logits)), d_x(d_logits)

    zero = jnp.zeros((), x.dtype)
    start = (Totals(zero, zero, zero), jnp.zeros_like(kernel), jnp.zeros_like(bias))
    (totals, kernels, biases), d_features = jax.lax.scan(step, start, _reshaped(parts, x, targets, weights))
    return totals, (d_features.reshape(-1, x.shape[1])[: x.shape[0]], kernels, biases)


def _plus_product(dtype: Any, d_kernel: Array, x: Array, d_logits: Array) -> Array:
    """d_kernel + x' d_logits."""

    def plain(d_kernel: Array, x: Array, d_logits: Array) -> Array:
        return d_kernel + contract("nf,nv->fv", x, d_logits, dtype)

    blocks = d_kernel.size * d_kernel.dtype.itemsize // BLOCK_BYTES
    if blocks < FEWEST_BLOCKS:
        return plain(d_kernel, x, d_logits)

    def in_blocks(d_kernel: Array, x: Array, d_logits: Array) -> Array:
        # There is never a second array of the kernel's size, and a block is in the cache when it is added.
        vocabulary = d_kernel.shape[1]
        size = -(-vocabulary // blocks)
        count = -(-vocabulary // size)  # sizes rounded up may need fewer

        def block(number: Array, d_kernel: Array) -> Array:
            # The last one begins early enough to be whole; what the one before it has done is zero there.
            start = jnp.minimum(number * size, vocabulary - size)
            columns = jax.lax.dynamic_slice_in_dim(d_logits, start, size, axis=1)
            if vocabulary % size:
                columns = jnp.where(start + jnp.arange(size)[None] >= number * size, columns, 0)
            before = jax.lax.dynamic_slice_in_dim(d_kernel, start, size, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(d_kernel, plain(before, x, columns), start, axis=1)

        return jax.lax.fori_loop(0, count, block, d_kernel)

    return jax.lax.platform_dependent(d_kernel, x, d_logits, cpu=in_blocks, default=plain)


def _backward(dtype: Any, residuals: tuple[Array, Array, Array], g: Totals) -> tuple[Array | None, ...]:
    d_x, d_kernel, d_bias = residuals
    return g.loss * d_x, g.loss * d_kernel, g.loss * d_bias, None, None, None


_cross_entropy.defvjp(_forward, _backward)
