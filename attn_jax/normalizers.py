"""Scores to weights, over the last axis.

Masked positions get exactly 0; a row with nothing to attend to is all zeros.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from attn_jax.registry import Registry
from attn_jax.shapes import Array, Bool, Float


class Normalizer:
    """Maps a row of scores to weights; stateless."""

    name: ClassVar[str]

    def __call__(self, scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
        """Weights; `mask` is true where a position may be attended to."""
        raise TypeError(f"{type(self).__name__} must define __call__")


NORMALIZERS: Registry[type[Normalizer]] = Registry("normalizer")


@NORMALIZERS.register
class Softmax(Normalizer):
    """exp(e_j) / sum_k exp(e_k)."""

    name = "softmax"

    def __call__(self, scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
        masked = jnp.where(mask, scores, -jnp.inf)
        highest = jnp.max(masked, axis=-1, keepdims=True)
        # An all-masked row has no highest score; any finite shift keeps it at zero without NaN, in the gradient too.
        shifted = jnp.where(mask, scores - jnp.where(jnp.isfinite(highest), highest, 0), 0)
        exponentials = jnp.where(mask, jnp.exp(shifted), 0)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        return exponentials / jnp.where(total > 0, total, 1)


@NORMALIZERS.register
class Sparsemax(Normalizer):
    """Projection onto the simplex: max(e_j - tau, 0) with sum 1 (Martins and Astudillo 2016, algorithm 1)."""

    name = "sparsemax"

    def __call__(self, scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
        e, ranked, rank, some = _ranked(scores, mask, 1.0)
        # tau = (sum of the k highest - 1) / k for the largest k whose k-th highest score exceeds its tau.
        tau = (jnp.cumsum(ranked, axis=-1) - 1) / rank
        support = jnp.sum(ranked > tau, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(tau, jnp.maximum(support - 1, 0), axis=-1)
        chosen = mask & (e > jax.lax.stop_gradient(threshold))
        # Over a fixed support the projection is affine, so its gradient is exact.
        count = jnp.maximum(jnp.sum(chosen, axis=-1, keepdims=True), 1).astype(scores.dtype)
        mean = jnp.sum(jnp.where(chosen, e, 0), axis=-1, keepdims=True) / count
        return _or_nan(jnp.where(chosen & some, e - mean + 1 / count, 0), scores, mask)


@NORMALIZERS.register
class Entmax15(Normalizer):
    """max(e_j / 2 - tau, 0)^2 with sum 1: alpha-entmax with alpha 1.5 (Peters et al. 2019, algorithm 2)."""

    name = "entmax15"

    def __call__(self, scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
        e, ranked, rank, some = _ranked(scores, mask, 0.5)
        mean = jnp.cumsum(ranked, axis=-1) / rank
        square = jnp.cumsum(ranked * ranked, axis=-1) / rank
        gap = (1 - rank * (square - mean * mean)) / rank
        tau = mean - jnp.sqrt(jnp.maximum(gap, 0))
        support = jnp.sum(tau <= ranked, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(tau, jnp.maximum(support - 1, 0), axis=-1)
        root = jax.lax.stop_gradient(jnp.where(mask & some, jnp.maximum(e - threshold, 0), 0))
        # d p = 2 root (d e - d tau), where d tau keeps the sum at 1; the value is untouched by what is added here.
        total = jnp.sum(root, axis=-1, keepdims=True)
        shift = jnp.sum(root * e, axis=-1, keepdims=True) / jnp.where(total > 0, total, 1)
        moved = e - shift
        return root * root + 2 * root * (moved - jax.lax.stop_gradient(moved))


@NORMALIZERS.register
class Linear(Normalizer):
    """max(e_j, 0) / sum_k max(e_k, 0); uniform over unmasked positions where no score is positive."""

    name = "linear"

    def __call__(self, scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
        positive = jnp.where(mask, jnp.maximum(scores, 0), 0)
        total = jnp.sum(positive, axis=-1, keepdims=True)
        count = jnp.sum(mask, axis=-1, keepdims=True)
        uniform = jnp.where(mask, 1 / jnp.maximum(count, 1), 0).astype(scores.dtype)
        return _or_nan(jnp.where(total > 0, positive / jnp.where(total > 0, total, 1), uniform), scores, mask)


def _or_nan(weights: Array, scores: Array, mask: Array) -> Array:
    """The weights, or NaN in a row with a score that is NaN or inf: comparisons make numbers of it, unnoticed."""
    sound = jnp.all((scores < jnp.inf) | ~mask, axis=-1, keepdims=True)
    return jnp.where(sound, weights, jnp.nan)


def _ranked(scores: Array, mask: Array, factor: float) -> tuple[Array, Array, Array, Array]:
    """What a normaliser with a threshold needs.

    factor * scores shifted to a maximum of 0, and below any threshold where masked; the same in descending order,
    without gradient; their ranks from 1; and whether anything is unmasked.
    """
    some = jnp.any(mask, axis=-1, keepdims=True)
    highest = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    shifted = factor * (scores - jax.lax.stop_gradient(jnp.where(some, highest, 0)))
    # No threshold lies below -1; sums with this stand-in stay exact enough, unlike with -inf or 1e30.
    e = jnp.where(mask, shifted, -2.0)
    e = jnp.maximum(e, -2.0)
    ranked = jnp.flip(jnp.sort(jax.lax.stop_gradient(e), axis=-1), axis=-1)
    rank = jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype).reshape((1,) * (scores.ndim - 1) + (-1,))
    return e, ranked, rank, some
