"""How much of the error at an output symbol arrives at each source symbol."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.config import Config
from attn_jax.data.text import PAD
from attn_jax.errors import UserError
from attn_jax.losses import previous_symbols
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Bool, Float, Int, Params

STEPS = 8
"""Output symbols whose gradients are made at a time: memory grows with them, by the states of source and target."""

_TABLE = "source_embedding.table"


class Gradients(NamedTuple):
    """Norms of gradients of the log-probability of each target symbol y_t, given the source and y_1 to y_{t-1}.

    source: |d log p(y_t) / d e(x_s)|, with respect to the embedded source symbol s, along all paths.
    error: |d log p(y_t) / d a_t|, with respect to the vector before the output projection: where the error begins.
    Both are 0 on padding. source / error tells what arrives of an error, however large it is: as a trained model
    becomes sure of a symbol, both vanish together.
    """

    source: Float[Array, "B T S"]
    error: Float[Array, "B T"]


def check(config: Config) -> None:
    """Raises UserError if a model of this configuration has no source embeddings to differentiate by."""
    if config.model == "recurrent" and config.embedding.name == "onehot":
        raise UserError("embedding=onehot: there are no source vectors to take gradients by; use embedding=learned")


def gradients(
    model: Model, params: Params, source: Int[Array, "B S"], target: Int[Array, "B T"], *, at_a_time: int = STEPS
) -> Gradients:
    """Gradients on a batch under teacher forcing, without dropout. To be jitted.

    at_a_time: target positions that are pulled back together, which takes memory. Raises UserError as `check` does.
    """
    check(model.config)
    (batch, length), steps = source.shape, target.shape[1]
    # Every position gets a row of an embedding table of its own: the gradient of the row is that of the position.
    places = jnp.arange(batch * length).reshape(batch, length)
    rows = jnp.take(params[_TABLE], source.reshape(-1), axis=0)
    real = target != PAD

    def features(rows: Float[Array, "N E"]) -> Float[Array, "B T F"]:
        module = model.bind({**params, _TABLE: rows})
        return module.teacher_forced(places, source != PAD, previous_symbols(target))[0]

    def log_probability(features: Float[Array, "B T F"]) -> Float[Array, ""]:
        logits = model.bind(params).decoder.output(features)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(real, chosen, 0))

    made, pullback = jax.vjp(features, rows)
    errors = jax.grad(log_probability)(made)  # a symbol's log-probability depends on its own features alone

    def at(step: Int[Array, ""]) -> Float[Array, "B S"]:
        (found,) = pullback(jnp.where(jnp.arange(steps)[None, :, None] == step, errors, 0))
        return _norm(found.reshape(batch, length, -1))

    norms = jax.lax.map(at, jnp.arange(steps), batch_size=at_a_time)
    return Gradients(jnp.swapaxes(norms, 0, 1), _norm(errors))


def _norm(vectors: Float[Array, "... E"]) -> Float[Array, "..."]:
    """Norms whose squares may be too small for the type."""
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(vectors / scale[..., None], axis=-1)


def distances(source_lengths: Int[np.ndarray, " B"], steps: int, width: int) -> Int[np.ndarray, "B T S"]:
    """Recurrent steps from reading source symbol s to predicting target symbol t, through one state after the other.

    (S - 1 - s) + 1 + t with s and t from 0: what is left of the source, and the decoder's steps. Of an encoder that
    reads the source from its beginning; below 1 on padding.
    """
    lengths, t, s = np.asarray(source_lengths)[:, None, None], np.arange(steps)[None, :, None], np.arange(width)
    return lengths - s[None, None] + t


def by_distance(
    values: Float[np.ndarray, "B T S"], away: Int[np.ndarray, "B T S"], counted: Bool[np.ndarray, "B T S"], most: int
) -> Float[np.ndarray, " D"]:
    """Means over all counted pairs (s, t) of all sentences at each distance from 0 to `most`; NaN where there is none.

    What has no finite value counts as absent.
    """
    kept = counted & (away >= 0) & (away <= most) & np.isfinite(values)
    sums = np.bincount(away[kept], values[kept].astype(np.float64), most + 1)
    counts = np.bincount(away[kept], minlength=most + 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def falls_to(curve: Float[np.ndarray, " D"], level: float) -> int | None:
    """The first distance at which a curve by distance is at `level` or below; None if it never is."""
    found = np.flatnonzero(np.nan_to_num(curve, nan=np.inf) <= level)
    return int(found[0]) if len(found) else None


def decay(curve: Float[np.ndarray, " D"]) -> float | None:
    """The factor r a step of c r^d, fitted to a curve by least squares of logarithms; None with fewer than two points.

    For a linear recurrence it tends to the spectral radius of the state's matrix (Pascanu et al. 2013, section 2.1).
    """
    known = np.flatnonzero(np.nan_to_num(curve) > 0)
    if len(known) < 2:
        return None
    return float(np.exp(np.polyfit(known, np.log(curve[known]), 1)[0]))
