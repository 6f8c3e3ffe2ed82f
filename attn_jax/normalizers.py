"""Scores to weights, over the last axis.

Masked positions get exactly 0; a row with nothing to attend to is all zeros.
"""

from typing import ClassVar

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
