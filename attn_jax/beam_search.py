r"""Beam search, inside one compiled program.

At each step every live hypothesis is continued by every symbol. Of the `beam_size` most probable continuations those
that end are finished; the `beam_size` most probable ones that do not end live on, so that the beam never shrinks (as in
fairseq). All live hypotheses have one length, so they are compared by log-probability. Finished ones
are ranked by

    score = log p(Y | X) / lp(n) + beta \sum_j log min(\sum_t weight_tj, 1)

with n symbols, end-of-sentence included, and lp by name (`PENALTIES`). Hypotheses that reach the greatest length
without an end compete with the finished ones, by the same formula.

A search ends for a sentence when no live hypothesis can come to a better score than the worst of the finished ones that
are kept, see `Ranking.bound`. Then nothing of the sentence changes any more, however long others take.

A search that is to be used many times is compiled in parts: a first step, in which a sentence has one live hypothesis,
the empty one, and costs as much as one; and a loop for each of the sizes that a batch has as its sentences end.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.decoding import Decoded, Given, Models, allowed, allowed_tops, last_symbol, one_row, predict, start
from attn_jax.shapes import Array, Bool, Float, Int

PENALTIES: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda n, alpha: jnp.ones_like(n),
    "gnmt": lambda n, alpha: ((5 + n) / 6) ** alpha,
    "power": lambda n, alpha: n**alpha,
    "average": lambda n, alpha: n,
}
"""lp(n), by which the log-probability of n symbols is divided (`gnmt`: Wu et al. 2016, equation 14)."""

MOST_STAGES, SMALLEST_STAGE = 3, 8
"""The most sizes that a batch has, for each of which a step is compiled, and the fewest sentences of one."""

SMALLEST = 1e-30
"""Smallest sum of weights inside the coverage penalty: a position that no step attends to costs beta log of it."""


class Ranking(NamedTuple):
    """How finished hypotheses are ranked. length_penalty: a name in `PENALTIES`. coverage_penalty: beta; 0: off."""

    length_penalty: str = "none"
    alpha: float = 0.6
    coverage_penalty: float = 0.0

    def score(self, log_probability: Array, length: Any, covered: Array) -> Array:
        """The score of hypotheses of `length` symbols. covered: their coverage terms, see `coverage`."""
        n = jnp.asarray(length, log_probability.dtype)
        return log_probability / PENALTIES[self.length_penalty](n, self.alpha) + covered

    def coverage(self, sums: Float[Array, "B K S"], mask: Bool[Array, "B S"]) -> Float[Array, "B K"]:
        r"""Beta \sum_j log min(\sum_t weight_tj, 1) over real positions (Wu et al. 2016, equation 14)."""
        if not self.coverage_penalty:
            return jnp.zeros(sums.shape[:2], sums.dtype)
        logs = jnp.log(jnp.clip(sums, SMALLEST, 1))
        return self.coverage_penalty * jnp.sum(jnp.where(mask[:, None, :], logs, 0), axis=-1)

    def bound(self, log_probability: Array, max_length: int) -> Array:
        """The best score to which a live hypothesis of that log-probability P can come.

        Symbols only add to P what is not positive, and it ends with some n <= max_length = L. Since P <= 0 and every
        lp(n) grows with n or stays (alpha >= 0), P / lp(n) <= P / lp(L): `none` P, `gnmt` P / ((5 + L) / 6)^alpha,
        `power` P / L^alpha, `average` P / L. Sums of weights only grow, each to 1 at best where its log is 0, so the
        coverage penalty of the finished hypothesis is at most 0, whatever it is now.
        """
        return self.score(log_probability, max_length, jnp.zeros_like(log_probability))


UNPENALIZED = Ranking()
"""By log-probability."""


class _Kept(NamedTuple):
    """The best finished hypotheses, the best first; what is not there has score -inf.

    end: step, from 0, at which end-of-sentence was put out; L if it was not. slot: which live hypothesis was ended.
    """

    score: Float[Array, "B K"]
    log_probability: Float[Array, "B K"]
    end: Int[Array, "B K"]
    slot: Int[Array, "B K"]

    def merged(self, others: "_Kept", closed: Bool[Array, " B"]) -> "_Kept":
        """The best of these and others; where `closed`, these. Of equal scores what was there before comes first."""
        both = _Kept(*(jnp.concatenate(pair, axis=1) for pair in zip(self, others, strict=True)))
        _, best = jax.lax.top_k(both.score, self.score.shape[1])
        chosen = _Kept(*(jnp.take_along_axis(part, best, axis=1) for part in both))
        return _Kept(*(jnp.where(closed[:, None], old, new) for old, new in zip(self, chosen, strict=True)))


class _History(NamedTuple):
    """What each step did, for hypotheses to be read backwards: no sequence is copied when the beam is reordered.

    tokens, parents: of live hypotheses after a step, the last symbol and the live hypothesis before it. weights: of
    live hypotheses before the step.
    """

    tokens: Int[Array, "L B K"]
    parents: Int[Array, "L B K"]
    weights: Float[Array, "L B K *N S"]

    def written(
        self,
        step: Int[Array, ""],
        places: Int[Array, " N"] | None,
        tokens: Int[Array, "N K"],
        parents: Int[Array, "N K"],
        weights: Float[Array, "N ..."],
    ) -> "_History":
        """With a step of the sentences at `places`, None for all.

        weights: [N, K, *N, S], or [N, 1, *N, S] where one hypothesis was live before the step.
        """
        row = (step,) if places is None else (step, places)
        return _History(
            self.tokens.at[row].set(tokens), self.parents.at[row].set(parents), self.weights.at[row].set(weights)
        )


class _Loop(NamedTuple):
    """The search between two steps, of n sentences with k live hypotheses each.

    places: of the sentences in the batch. history: of the whole batch.
    """

    step: Int[Array, ""]
    states: Any
    last: Int[Array, "N K"]
    live: Float[Array, "N K"]
    covered: Float[Array, "N K S"]
    done: Bool[Array, " N"]
    kept: _Kept
    places: Int[Array, " N"]
    history: _History


class _Sources(NamedTuple):
    """What every step needs of the sentences of a loop: for the models, see `Given`, and their masks."""

    given: tuple[Given, ...]
    mask: Bool[Array, "N S"]


def stages(batch: int) -> list[int]:
    """The sizes that a batch has one after another, each as soon as no more sentences than that are unfinished."""
    sizes = [batch]
    while len(sizes) < MOST_STAGES and sizes[-1] // 2 >= SMALLEST_STAGE:
        sizes.append(sizes[-1] // 2)
    return sizes


def beam(
    models: Models,
    source: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    max_length: int,
    *,
    beam_size: int,
    n_best: int = 1,
    ranking: Ranking = UNPENALIZED,
    min_length: int = 0,
    early_stop: bool = True,
    in_parts: bool = False,
) -> Decoded:
    """The `n_best` best of the hypotheses that a beam of `beam_size` finds, [B, n_best, ...], the best first.

    A beam of one without penalties is greedy search. min_length, max_length: bounds on the number of symbols,
    end-of-sentence included. early_stop: whether a sentence's search ends as soon as nothing better can come; what is
    found is the same without. in_parts: whether the first step is compiled for one hypothesis a sentence, and the
    others for several sizes of the batch, see `stages`; that is faster, and takes several times as long to compile.
    Raises ValueError unless n_best <= beam_size.
    """
    if not 1 <= n_best <= beam_size:
        raise ValueError(f"n_best={n_best} is not between 1 and beam_size={beam_size}")
    mask, batch, k = jnp.asarray(mask), source.shape[0], beam_size
    loop, sources = _begin(models, source, mask, max_length, k, n_best)

    def step(sources: _Sources, loop: _Loop) -> _Loop:
        """From n sentences with one live hypothesis, in the first step, or with k, to the same with k."""
        t, (n, before) = loop.step, loop.last.shape
        states, prediction = predict(models, loop.states, loop.last.reshape(-1), sources.given)
        weights = prediction.weights.reshape(n, before, *prediction.weights.shape[1:])
        covered = loop.covered
        if ranking.coverage_penalty:
            covered = covered + one_row(prediction.weights).reshape(covered.shape)

        offset = loop.live - prediction.normalizer.reshape(n, before)
        # Each live hypothesis has one continuation that ends: k of the 2k best do not.
        scores, tops = (part.reshape(n, before, -1) for part in (prediction.scores, prediction.tops))
        now = allowed(scores.shape[-1], t, min_length)
        best, parent, symbol = largest(scores, tops, offset, now, 2 * k)
        symbol = jnp.minimum(symbol, last_symbol(models))
        ends = symbol == EOS

        ended = jnp.where(ends, best, -jnp.inf)[:, :k]
        coverage = jnp.take_along_axis(ranking.coverage(covered, sources.mask), parent[:, :k], axis=1)
        finished = _Kept(ranking.score(ended, t + 1, coverage), ended, jnp.full_like(parent[:, :k], t), parent[:, :k])
        kept = loop.kept.merged(finished, loop.done)

        live, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), k)
        parent, symbol = (jnp.take_along_axis(part, chosen, axis=1) for part in (parent, symbol))
        order = (jnp.arange(n)[:, None] * before + parent).reshape(-1)
        done = loop.done
        if early_stop:
            # The most probable live hypothesis has the highest bound.
            done = done | (kept.score[:, -1] >= ranking.bound(live[:, 0], max_length))
        return _Loop(
            step=t + 1,
            states=_by_row(lambda leaf: leaf[order], states),
            last=symbol,
            live=live,
            covered=jnp.take_along_axis(covered, parent[:, :, None], axis=1),
            done=done,
            kept=kept,
            places=loop.places,
            history=loop.history.written(t, None if n == batch else loop.places, symbol, parent, weights),
        )

    kept, loop = loop.kept, step(sources, loop) if in_parts else _widened(loop, k)
    for size, smaller in itertools.pairwise([*(stages(batch) if in_parts else [batch]), 0]):
        if size < batch:
            loop, sources = _shrunk(loop, sources, size)

        def goes_on(loop: _Loop, smaller: int = smaller) -> Array:
            return (loop.step < max_length) & (jnp.sum(~loop.done) > smaller)

        loop = jax.lax.while_loop(goes_on, functools.partial(step, sources), loop)
        loop = _closed(loop, sources.mask, ranking, max_length)
        kept = _Kept(*(whole.at[loop.places].set(part) for whole, part in zip(kept, loop.kept, strict=True)))
    return _read(kept, loop.history)


def _begin(models: Models, source: Array, mask: Array, max_length: int, k: int, n_best: int) -> tuple[_Loop, _Sources]:
    """The search before its first step: one live hypothesis a sentence, none for a source without symbols."""
    states, given = start(models, source, mask, max_length)
    batch, last = source.shape[0], jnp.full((source.shape[0], 1), BOS, jnp.int32)
    _, shapes = jax.eval_shape(lambda *now: predict(models, *now), states, last.reshape(-1), given)
    dtype, row = shapes.scores.dtype, shapes.weights.shape[1:]
    real = jnp.any(mask, axis=1)
    nothing, nowhere = jnp.full((batch, n_best), -jnp.inf, dtype), jnp.zeros((batch, n_best), jnp.int32)
    steps = jnp.zeros((max_length, batch, k), jnp.int32)
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        states=states,
        last=last,
        live=jnp.where(real[:, None], 0, -jnp.inf).astype(dtype),
        covered=jnp.zeros((batch, 1, row[-1]), shapes.weights.dtype),
        done=~real,
        kept=_Kept(nothing, nothing, nowhere, nowhere),
        places=jnp.arange(batch),
        history=_History(steps, steps, jnp.zeros((max_length, batch, k, *row), shapes.weights.dtype)),
    ), _Sources(given, mask)


def _closed(loop: _Loop, mask: Array, ranking: Ranking, max_length: int) -> _Loop:
    """The loop where, at the greatest length, what is live has competed and all is done; else the loop as it is."""
    slots = jnp.broadcast_to(jnp.arange(loop.live.shape[1], dtype=jnp.int32), loop.live.shape)
    score = ranking.score(loop.live, max_length, ranking.coverage(loop.covered, mask))
    unended = _Kept(score, loop.live, jnp.full_like(slots, max_length), slots)
    closed = loop.done | (loop.step < max_length)
    return loop._replace(kept=loop.kept.merged(unended, closed), done=loop.done | ~closed)


def _widened(loop: _Loop, k: int) -> _Loop:
    """The search before its first step, with k hypotheses a sentence of which all but one are impossible."""
    more = [(0, 0), (0, k - 1)]
    return loop._replace(
        states=_by_row(lambda leaf: jnp.repeat(leaf, k, axis=0), loop.states),
        last=jnp.pad(loop.last, more, constant_values=BOS),
        live=jnp.pad(loop.live, more, constant_values=-jnp.inf),
        covered=jnp.pad(loop.covered, [*more, (0, 0)]),
    )


def _shrunk(loop: _Loop, sources: _Sources, size: int) -> tuple[_Loop, _Sources]:
    """The loop and sources of `size` sentences, among which are all unfinished ones."""
    k, chosen = loop.last.shape[1], jnp.argsort(loop.done)[:size]
    rows = (chosen[:, None] * k + jnp.arange(k)[None]).reshape(-1)

    def of_sentences(tree: Any) -> Any:
        return _by_row(lambda leaf: leaf[chosen], tree)

    fields = ("last", "live", "covered", "done", "kept", "places")
    given = tuple(one._replace(source=of_sentences(one.source)) for one in sources.given)
    return loop._replace(
        states=_by_row(lambda leaf: leaf[rows], loop.states),
        **{field: of_sentences(getattr(loop, field)) for field in fields},
    ), _Sources(given, sources.mask[chosen])


def largest(
    scores: Float[Array, "B K W"],
    tops: Float[Array, "B K N"],
    offset: Float[Array, "B K"],
    allowed: Bool[Array, " W"],
    count: int,
) -> tuple[Float[Array, "B M"], Int[Array, "B M"], Int[Array, "B M"]]:
    """The `count` largest of scores + offset among what is allowed: values, places on axis K, and on axis W.

    Equal values come in the order of their places, as from `jax.lax.top_k`; what is not there has value -inf and place
    0. tops: see `Prediction`. The `count` blocks whose largest values are largest hold the `count` largest, so most of
    a long row is not looked at.
    """
    batch, k, width = scores.shape
    blocks = tops.shape[-1]
    if k * width < count:
        best, parent, symbol = largest(scores, tops, offset, allowed, k * width)
        pad = [(0, 0), (0, count - k * width)]
        return jnp.pad(best, pad, constant_values=-jnp.inf), jnp.pad(parent, pad), jnp.pad(symbol, pad)
    if k * blocks <= 4 * count:
        sums = jnp.where(allowed[None, None], scores, -jnp.inf) + offset[:, :, None]
        best, place = jax.lax.top_k(sums.reshape(batch, -1), count)
        return best, place // width, place % width
    sums = allowed_tops(scores, tops, allowed) + offset[:, :, None]
    _, chosen = jax.lax.top_k(sums.reshape(batch, -1), count)
    chosen = jnp.sort(chosen, axis=-1)
    size, rows = width // blocks, jnp.arange(batch)[:, None]
    symbols = (chosen % blocks * size)[:, :, None] + jnp.arange(size, dtype=jnp.int32)[None, None]
    found = scores.reshape(batch, k * blocks, size)[rows, chosen]
    found = jnp.where(allowed[symbols], found, -jnp.inf) + offset[rows, chosen // blocks][:, :, None]
    best, place = jax.lax.top_k(found.reshape(batch, -1), count)
    parent = jnp.take_along_axis(chosen // blocks, place // size, axis=1)
    return best, parent, jnp.take_along_axis(symbols.reshape(batch, -1), place, axis=1)


def _by_row(change: Callable[[Array], Array], tree: Any) -> Any:
    """A change of the leading batch axis of every leaf; scalars are shared by the batch."""
    return jax.tree.map(lambda leaf: change(leaf) if jnp.ndim(leaf) else leaf, tree)


def _read(kept: _Kept, history: _History) -> Decoded:
    """The kept hypotheses, read from their ends to their starts."""
    max_length = history.tokens.shape[0]
    there = jnp.isfinite(kept.score)
    end = jnp.where(there, kept.end, -1)

    def back(slot: Array, step: tuple[Array, _History]) -> tuple[Array, tuple[Array, Array]]:
        t, now = step
        inside = t < end
        token = jnp.where(inside, jnp.take_along_axis(now.tokens, slot, axis=1), jnp.where(t == end, EOS, PAD))
        # At the end itself `slot` is the hypothesis that was ended, which has no later one.
        before = jnp.where(inside, jnp.take_along_axis(now.parents, slot, axis=1), slot)
        lone = [1] * (now.weights.ndim - 2)
        weights = jnp.take_along_axis(now.weights, before.reshape(*before.shape, *lone), axis=1)
        return before, (token, jnp.where((t <= end).reshape(*end.shape, *lone), weights, 0))

    _, (tokens, weights) = jax.lax.scan(back, kept.slot, (jnp.arange(max_length), history), reverse=True)
    return Decoded(
        tokens=jnp.moveaxis(tokens, 0, 2),
        weights=jnp.moveaxis(weights, 0, 2),
        log_probability=kept.log_probability,
        score=kept.score,
        lengths=jnp.minimum(end + 1, max_length),
    )
