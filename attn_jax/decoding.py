"""Output symbol by symbol, inside one compiled program: greedy search and sampling; what beam search shares with them.

Every search takes one model, or several that make an ensemble: their probabilities are averaged at each step, and so
are their weights. Sentences of a batch do not disturb each other, and searches may be vmapped over runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.encoder_decoder import Seq2Seq
from attn_jax.shapes import Array, Bool, Float, Int, Key

Models = Seq2Seq | Sequence[Seq2Seq]
"""A model, or the members of an ensemble, which share their vocabularies."""


class Decoded(NamedTuple):
    """Hypotheses of a batch of sources: one each, or, where there is an axis K, so many each, the best first.

    tokens: symbols, end-of-sentence included where it was reached, then padding. weights: of attention, one row a
    symbol and zero after the last; S is 0 without attention, and a score with heads has its axis N before S.
    log_probability: of the symbols under the model, log p(tokens | source). score: what hypotheses are ranked by; the
    log-probability where nothing is added to it. lengths: number of symbols n, end-of-sentence included.

    A source without symbols, which is padding of the batch, has no hypothesis: length 0 and score -inf. Neither has a
    place of K for which a search found none.
    """

    tokens: Int[Array, "*BK L"]
    weights: Float[Array, "*BKLN S"]
    log_probability: Float[Array, "*BK"]
    score: Float[Array, "*BK"]
    lengths: Int[Array, "*BK"]


class Prediction(NamedTuple):
    """The next symbol, after one step: log p(y) = scores[y] - normalizer. Scores may be -inf for what is not allowed.

    The two are kept apart: only a search knows for which symbols it needs the difference.
    """

    scores: Float[Array, "B V"]
    normalizer: Float[Array, " B"]
    weights: Float[Array, "B *N S"]

    def log_probability(self, chosen: Int[Array, " B"]) -> Float[Array, " B"]:
        """Of one symbol a row."""
        return jnp.take_along_axis(self.scores, chosen[:, None], axis=1)[:, 0] - self.normalizer


def members(models: Models) -> tuple[Seq2Seq, ...]:
    """The models of an ensemble, or the only one."""
    return tuple(models) if isinstance(models, Sequence) else (models,)


def start(models: Models, source: Int[Array, "B S"], mask: Bool[Array, "B S"], max_length: int) -> tuple[Any, Any]:
    """States before the first of at most `max_length` steps, and what every step needs of the source."""
    started = [model.decoder.start(model.encode(source, mask), max_length) for model in members(models)]
    return tuple(state for state, _ in started), tuple(prepared for _, prepared in started)


def predict(models: Models, states: Any, last: Int[Array, " B"], prepared: Any) -> tuple[Any, Prediction]:
    """One step of every member after the symbols `last`: log p = log mean_m p_m, and the mean weights."""
    steps = [m.decoder.step(s, last, p) for m, s, p in zip(members(models), states, prepared, strict=True)]
    states, logits, weights = zip(*steps, strict=True)
    if len(steps) == 1:
        return states, Prediction(logits[0], jax.nn.logsumexp(logits[0], axis=-1), weights[0])
    logs = jnp.stack([jax.nn.log_softmax(scores) for scores in logits])
    mean = jax.nn.logsumexp(logs, axis=0) - math.log(len(steps))
    return states, Prediction(mean, jnp.zeros_like(mean[:, 0]), _mean(weights))


def _mean(weights: Sequence[Array]) -> Array:
    """The mean over members. Those without attention do not count; heads that differ in number are averaged first."""
    attending = [w for w in weights if w.shape[-1]] or list(weights)
    if len({w.shape for w in attending}) > 1:
        attending = [one_row(w) for w in attending]
    return jnp.mean(jnp.stack(attending), axis=0)


def one_row(weights: Any, rows: int = 1) -> Any:
    """Weights [*rows, S], the mean over heads of [*rows, N, S]; rows: the number of axes before heads and source."""
    return weights if weights.ndim == rows + 1 else weights.mean(axis=-2)


def allow(prediction: Prediction, step: Int[Array, ""], min_length: int) -> Prediction:
    """The prediction with scores of -inf for what is not `allowed`.

    Probabilities stay the model's: they are not spread anew over what is left.
    """
    scores = prediction.scores
    return prediction._replace(scores=jnp.where(allowed(scores.shape[-1], step, min_length)[None], scores, -jnp.inf))


def allowed(vocabulary: int, step: Int[Array, ""] | int = 0, min_length: int = 1) -> Bool[Array, " V"]:
    """Which symbols can be put out at a step, from 0: no padding, no start, no end before the shortest length."""
    symbols = jnp.arange(vocabulary)
    now = (symbols != PAD) & (symbols != BOS)
    return now & ((symbols != EOS) | (step + 1 >= min_length)) if min_length > 1 else now


def possible(scores: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """The scores, -inf for padding and start-of-sentence, which no output has."""
    # Element by element, so that it becomes a part of what reads the scores, and no copy of them.
    return jnp.where(allowed(scores.shape[-1])[None], scores, -jnp.inf)


def likeliest(scores: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The most probable symbol that can be put out, the first of several; some symbol where scores are not numbers."""
    scores = possible(scores)
    # What argmax does takes several times as long on a CPU.
    last = scores.shape[-1] - 1
    places = jnp.where(scores >= scores.max(axis=-1, keepdims=True), jnp.arange(last + 1)[None], last)
    return places.min(axis=-1).astype(jnp.int32)


def greedy(
    models: Models, source: Int[Array, "B S"], mask: Bool[Array, "B S"], max_length: int, *, min_length: int = 0
) -> Decoded:
    """The most probable symbol at each step, until every sentence has ended or has `max_length` symbols.

    min_length: fewest symbols, end-of-sentence included, as in `max_length`.
    """
    return _one_by_one(models, source, mask, max_length, min_length, lambda scores, _: likeliest(scores))


def sample(
    models: Models,
    source: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    max_length: int,
    keys: Key[Array, " B"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    min_length: int = 0,
) -> Decoded:
    """Symbols drawn from p(y)^(1/temperature), normalised over what can be put out, until the end as in `greedy`.

    keys: one a sentence, so that a sample depends on its own key and not on the batch. The reported log-probability is
    that of temperature 1.
    """

    def draw(scores: Array, step: Array) -> Array:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(now, scores / temperature).astype(jnp.int32)

    return _one_by_one(models, source, mask, max_length, min_length, draw)


def _one_by_one(
    models: Models,
    source: Array,
    mask: Array,
    max_length: int,
    min_length: int,
    choose: Callable[[Array, Array], Array],
) -> Decoded:
    states, prepared = start(models, source, mask, max_length)
    batch = source.shape[0]
    first = jnp.full((batch,), BOS, jnp.int32)
    _, shapes = jax.eval_shape(lambda *now: predict(models, *now), states, first, prepared)
    tokens = jnp.full((batch, max_length), PAD, jnp.int32)
    weights = jnp.zeros((batch, max_length, *shapes.weights.shape[1:]), shapes.weights.dtype)

    def unfinished(loop: tuple) -> Array:
        t, _, _, done, *_ = loop
        return (t < max_length) & ~jnp.all(done)

    def step(loop: tuple) -> tuple:
        t, states, last, done, total, tokens, weights = loop
        states, prediction = predict(models, states, last, prepared)
        chosen = jnp.where(done, PAD, choose(allow(prediction, t, min_length).scores, t))
        total = total + jnp.where(done, 0, prediction.log_probability(chosen))
        tokens = tokens.at[:, t].set(chosen)
        ended = done.reshape(-1, *[1] * (prediction.weights.ndim - 1))
        weights = weights.at[:, t].set(jnp.where(ended, 0, prediction.weights))
        return t + 1, states, chosen, done | (chosen == EOS), total, tokens, weights

    # A source without symbols is padding of the batch: done before it starts.
    real = jnp.any(mask, axis=1)
    total = jnp.where(real, 0, -jnp.inf).astype(shapes.scores.dtype)
    *_, total, tokens, weights = jax.lax.while_loop(unfinished, step, (0, states, first, ~real, total, tokens, weights))
    return Decoded(tokens, weights, total, total, jnp.sum(tokens != PAD, axis=-1))
