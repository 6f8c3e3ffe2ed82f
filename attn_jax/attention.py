"""Attention: scores over the memory, normalised to weights, and the weighted sum of the values (the context vector).

A score with heads has weights [B, (T,) N, S]; normaliser and window act on each head alike.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from attn_jax.normalizers import Normalizer
from attn_jax.scores import Extra, Memory, Score
from attn_jax.shapes import Array, Bool, Float
from attn_jax.windows import Window


class Prepared(NamedTuple):
    """What attention needs of a source, computed once: keys, values [B, S, K] or [B, S, N, H], and mask [B, S]."""

    keys: Array
    values: Float[Array, "B S K"]
    mask: Bool[Array, "B S"]


class Attention(nnx.Module):
    """e = score(query, keys); weights = normalise(e) inside the window; context = sum_j weights_j values_j."""

    def __init__(self, score: Score, normalizer: Normalizer, window: Window):
        self.score = score
        self.normalizer = normalizer
        self.window = window

    def prepare(self, memory: Memory) -> Prepared:
        """Keys and values of a source."""
        return Prepared(self.score.keys(memory), self.score.values(memory), memory.mask)

    def __call__(
        self, query: Float[Array, "B *T Q"], prepared: Prepared, extra: Extra
    ) -> tuple[Float[Array, "B *T K"], Float[Array, "B *TN S"]]:
        """Context and weights for one query a sentence [B, Q], or one a step [B, T, Q]."""
        scores = self.score(query, prepared.keys, extra)
        allowed, factor = self.window(query, prepared.mask, extra)
        if scores.ndim > query.ndim:
            allowed, factor = allowed[..., None, :], None if factor is None else factor[..., None, :]
        weights = self.normalizer(scores, jnp.broadcast_to(allowed, scores.shape))
        weights = weights if factor is None else weights * factor
        return self.score.context(weights, prepared.values), weights
