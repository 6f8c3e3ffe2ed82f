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
from attn_jax.layers import project
from attn_jax.shapes import Array, Bool, Float, Int, Key

Models = Seq2Seq | Sequence[Seq2Seq]
"""A model, or the members of an ensemble, which share their vocabularies."""

BLOCK, FEWEST_BLOCKS = 64, 8
"""Scores of which searches first look at the largest alone, and how many such blocks a vocabulary must have for it."""

NEVER = -1e30
"""The score of what is no symbol. In products of split operands, as on TPUs, a bias of -inf would not be -inf."""


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
    """The next symbol, after one step: log p(y) = scores[y] - normalizer.

    scores: of the V symbols, then `NEVER` up to a whole number N of blocks; a small vocabulary is one block. tops: the
    largest score of each block. The normaliser is kept apart: only a search knows for which symbols it needs the
    difference.
    """

    scores: Float[Array, "B W"]
    tops: Float[Array, "B N"]
    normalizer: Float[Array, " B"]
    weights: Float[Array, "B *N S"]

    def log_probability(self, chosen: Int[Array, " B"]) -> Float[Array, " B"]:
        """Of one symbol a row."""
        return jnp.take_along_axis(self.scores, chosen[:, None], axis=1)[:, 0] - self.normalizer


class Given(NamedTuple):
    """What every step of a model needs: of the source, and [W; b] of the output projection, as wide as its scores.

    The bias is what the last rows of `output` add up to. All arrays of `source` have a leading batch axis.
    """

    source: Any
    output: Float[Array, "F+M W"]


def members(models: Models) -> tuple[Seq2Seq, ...]:
    """The models of an ensemble, or the only one."""
    return tuple(models) if isinstance(models, Sequence) else (models,)


def last_symbol(models: Models) -> int:
    """The highest symbol of the vocabulary: where scores are not numbers, a search may come upon a column after it."""
    return members(models)[0].decoder.output.weights()[0].shape[1] - 1


def start(
    models: Models, source: Int[Array, "B S"], mask: Bool[Array, "B S"], max_length: int
) -> tuple[Any, tuple[Given, ...]]:
    """States before the first of at most `max_length` steps, and what every step needs besides."""
    started = [model.decoder.start(model.encode(source, mask), max_length) for model in members(models)]
    outputs = [_output(model) for model in members(models)]
    given = (Given(prepared, output) for (_, prepared), output in zip(started, outputs, strict=True))
    return tuple(state for state, _ in started), tuple(given)


def _output(model: Seq2Seq) -> Array:
    """[W; b] of the output projection, with columns up to a whole number of blocks that have no probability.

    A bias that is added after the product costs a pass over all scores at each step. Where products round their
    operands, a bias of float32 is the sum of three rows of 8 bits each, which no rounding changes.
    """
    kernel, bias = model.decoder.output.weights()
    assert bias is not None  # only other dense layers may lack one
    features, vocabulary = kernel.shape
    more = -vocabulary % BLOCK if vocabulary >= FEWEST_BLOCKS * BLOCK else 0
    rest, rows = jnp.pad(bias, (0, more), constant_values=NEVER), []
    if model.decoder.output.dtype is not None:
        for _ in range(2):
            rows.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7))
            rest = jnp.where(jnp.isfinite(rest), rest - rows[-1], 0)
    rows.append(rest)
    # GPUs have no fast products of rounded operands with a number of rows that is no multiple of 8.
    zeros = [jnp.zeros_like(rest)] * (-(features + len(rows)) % 8 if len(rows) > 1 else 0)
    return jnp.concatenate([jnp.pad(kernel, ((0, 0), (0, more))), jnp.stack([*rows, *zeros])])


def predict(models: Models, states: Any, last: Int[Array, " B"], given: tuple[Given, ...]) -> tuple[Any, Prediction]:
    """One step of every member after the symbols `last`: log p = log mean_m p_m, and the mean weights.

    There may be several rows for each source, one after another.
    """
    steps = [m.decoder.step(s, last, g.source) for m, s, g in zip(members(models), states, given, strict=True)]
    states, features, weights = zip(*steps, strict=True)
    scores = [
        _scores(m.decoder.output.dtype, x, g.output) for m, x, g in zip(members(models), features, given, strict=True)
    ]
    if len(steps) == 1:
        return states, _predicted(scores[0], weights[0])
    logs = jnp.stack([jax.nn.log_softmax(each) for each in scores])
    mean = jax.nn.logsumexp(logs, axis=0) - math.log(len(steps))
    return states, _predicted(mean, _mean(weights))._replace(normalizer=jnp.zeros_like(mean[:, 0]))


def _scores(dtype: Any, features: Float[Array, "B F"], output: Float[Array, "F+M W"]) -> Float[Array, "B W"]:
    ones = jnp.ones((len(features), len(output) - features.shape[1]), features.dtype)
    return project(jnp.concatenate([features, ones], axis=1), output, dtype)


def _predicted(scores: Array, weights: Array) -> Prediction:
    width = scores.shape[-1]
    size = BLOCK if width >= FEWEST_BLOCKS * BLOCK else width
    tops = scores.reshape(-1, width // size, size).max(axis=-1)
    # The log of the sum of exponentials, by the largest score that is known already.
    top = tops.max(axis=-1)
    top = jnp.where(jnp.isfinite(top), top, 0)
    normalizer = top + jnp.log(jnp.sum(jnp.exp(scores - top[:, None]), axis=-1))
    return Prediction(scores, tops, normalizer, weights)


def _mean(weights: Sequence[Array]) -> Array:
    """The mean over members. Those without attention do not count; heads that differ in number are averaged first."""
    attending = [w for w in weights if w.shape[-1]] or list(weights)
    if len({w.shape for w in attending}) > 1:
        attending = [one_row(w) for w in attending]
    return jnp.mean(jnp.stack(attending), axis=0)


def one_row(weights: Any, rows: int = 1) -> Any:
    """Weights [*rows, S], the mean over heads of [*rows, N, S]; rows: the number of axes before heads and source."""
    return weights if weights.ndim == rows + 1 else weights.mean(axis=-2)


def allowed(vocabulary: int, step: Int[Array, ""] | int = 0, min_length: int = 1) -> Bool[Array, " V"]:
    """Which symbols can be put out at a step, from 0: no padding, no start, no end before the shortest length."""
    symbols = jnp.arange(vocabulary)
    now = (symbols != PAD) & (symbols != BOS)
    return now & ((symbols != EOS) | (step + 1 >= min_length)) if min_length > 1 else now


def allowed_tops(
    scores: Float[Array, "... W"], tops: Float[Array, "... N"], now: Bool[Array, " W"]
) -> Float[Array, "... N"]:
    """The largest score of each block among those that are allowed `now`: only the first block has others."""
    size = scores.shape[-1] // tops.shape[-1]
    lone = (1,) * (scores.ndim - 1)
    first = jnp.where(now[:size].reshape(*lone, -1), scores[..., :size], -jnp.inf)
    return jnp.concatenate([first.max(axis=-1, keepdims=True), tops[..., 1:]], axis=-1)


def first_largest(x: Float[Array, "B N"]) -> Int[Array, " B"]:
    """The place of the largest number of each row, the first of several; some place where they are not numbers."""
    # What argmax does takes several times as long on a CPU.
    last = x.shape[-1] - 1
    places = jnp.where(x >= x.max(axis=-1, keepdims=True), jnp.arange(last + 1)[None], last)
    return places.min(axis=-1).astype(jnp.int32)


def likeliest(scores: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The most probable symbol that can be put out, the first of several; some symbol where scores are not numbers."""
    # Element by element, so that it becomes a part of what reads the scores, and no copy of them.
    return first_largest(jnp.where(allowed(scores.shape[-1])[None], scores, -jnp.inf))


def greedy(
    models: Models, source: Int[Array, "B S"], mask: Bool[Array, "B S"], max_length: int, *, min_length: int = 0
) -> Decoded:
    """The most probable symbol at each step, until every sentence has ended or has `max_length` symbols.

    min_length: fewest symbols, end-of-sentence included, as in `max_length`.
    """

    def choose(prediction: Prediction, step: Array) -> Array:
        scores, tops = prediction.scores, prediction.tops
        now = allowed(scores.shape[-1], step, min_length)
        block = first_largest(allowed_tops(scores, tops, now))
        size = scores.shape[-1] // tops.shape[-1]
        symbols = block[:, None] * size + jnp.arange(size)[None]
        found = scores.reshape(*tops.shape, size)[jnp.arange(len(block)), block]
        inside = first_largest(jnp.where(now[symbols], found, -jnp.inf))
        return jnp.minimum(block * size + inside, last_symbol(models))

    return _one_by_one(models, source, mask, max_length, choose)


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

    def draw(prediction: Prediction, step: Array) -> Array:
        # The reported log-probability stays the model's: it is not spread anew over what is allowed.
        now = allowed(prediction.scores.shape[-1], step, min_length)
        scores = jnp.where(now[None], prediction.scores, -jnp.inf)
        drawn = jax.vmap(jax.random.categorical)(
            jax.vmap(jax.random.fold_in, (0, None))(keys, step), scores / temperature
        )
        return drawn.astype(jnp.int32)

    return _one_by_one(models, source, mask, max_length, draw)


def _one_by_one(
    models: Models,
    source: Array,
    mask: Array,
    max_length: int,
    choose: Callable[[Prediction, Array], Array],
) -> Decoded:
    states, given = start(models, source, mask, max_length)
    batch = source.shape[0]
    first = jnp.full((batch,), BOS, jnp.int32)
    _, shapes = jax.eval_shape(lambda *now: predict(models, *now), states, first, given)
    tokens = jnp.full((batch, max_length), PAD, jnp.int32)
    weights = jnp.zeros((batch, max_length, *shapes.weights.shape[1:]), shapes.weights.dtype)

    def unfinished(loop: tuple) -> Array:
        t, _, _, done, *_ = loop
        return (t < max_length) & ~jnp.all(done)

    def step(loop: tuple) -> tuple:
        t, states, last, done, total, tokens, weights = loop
        states, prediction = predict(models, states, last, given)
        chosen = jnp.where(done, PAD, choose(prediction, t))
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
