"""Search for an output, inside one compiled program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.seq2seq import Seq2Seq
from attn_jax.shapes import Array, Bool, Float, Int


class Decoded(NamedTuple):
    """Output symbols, end-of-sentence included where it was reached, padded, and their attention weights.

    Without attention S is 0; a score with heads has one more axis, [B, L, N, S].
    """

    tokens: Int[Array, "B L"]
    weights: Float[Array, "B *LN S"]


def greedy(model: Seq2Seq, source: Int[Array, "B S"], mask: Bool[Array, "B S"], max_length: int) -> Decoded:
    """The most probable symbol at each step, until every sentence has ended or has `max_length` symbols."""
    state, prepared = model.decoder.start(model.encode(source, mask), max_length)
    batch = source.shape[0]
    first = jnp.full((batch,), BOS, jnp.int32)
    _, _, row = jax.eval_shape(model.decoder.step, state, first, prepared)
    tokens = jnp.full((batch, max_length), PAD, jnp.int32)
    weights = jnp.zeros((batch, max_length, *row.shape[1:]), row.dtype)

    def unfinished(loop: tuple) -> Array:
        step, _, _, done, _, _ = loop
        return (step < max_length) & ~jnp.all(done)

    def step(loop: tuple) -> tuple:
        t, state, last, done, tokens, weights = loop
        state, logits, step_weights = model.decoder.step(state, last, prepared)
        # Padding and start-of-sentence are no outputs.
        chosen = jnp.argmax(logits.at[:, jnp.array([PAD, BOS])].set(-jnp.inf), axis=-1).astype(jnp.int32)
        chosen = jnp.where(done, PAD, chosen)
        tokens = tokens.at[:, t].set(chosen)
        weights = weights.at[:, t].set(jnp.where(done.reshape(-1, *[1] * (row.ndim - 1)), 0, step_weights))
        return t + 1, state, chosen, done | (chosen == EOS), tokens, weights

    # A source without symbols is padding of the batch: done before it starts.
    start = (0, state, first, ~jnp.any(mask, axis=1), tokens, weights)
    *_, tokens, weights = jax.lax.while_loop(unfinished, step, start)
    return Decoded(tokens, weights)
