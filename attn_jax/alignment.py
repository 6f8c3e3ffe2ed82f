"""Word alignments from attention weights, and their error against gold links (AER).

A run reads a given target (forced decoding), and its weights at each step link a word of the target to words of the
source. A link is (i, j): word i of the source and word j of the target, both counted from 0.

Which row belongs to a target word is the `offset`. Row t is computed in the step that reads y_{t-1} and predicts y_t.

- `predicted`: word y_t takes row t, whose context enters its prediction. So it is for every placement: `before` attends
  from h_{t-1}, which has read no more than y_{t-2}, `between` and `after` from a state that has read y_{t-1}, and all
  of them predict y_t from that context. None of these queries has seen y_t.
- `input`: word y_t takes row t + 1, of the step that reads it; with `between` and `after` its query knows the word.
  Luong et al. (2015, footnote 14, and their released code) align content-based weights of four-layer decoders so; their
  location-based weights belong to the predicted word.

The default is `predicted` for all placements and scores. On reversed sequences one-layer models with content-based
scores come to an AER of 0.1 or less with it, and above 80 with `input`, in all three placements; on German and English
text additive attention placed `after`, with input feeding, comes to 67 and 86 (README). Deep decoders may differ.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from attn_jax.data.alignments import Gold, Link
from attn_jax.data.buckets import Pairs, buckets
from attn_jax.data.text import EOS, PAD, TextCodec
from attn_jax.decoding import one_row
from attn_jax.errors import UserError, unknown
from attn_jax.losses import previous_symbols
from attn_jax.scores import NONE
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params

BATCH = 128

OFFSETS = ("predicted", "input")

# -- weights ---------------------------------------------------------------------------------------------------------


def forced_weights(model: Model, params: Params, pairs: Pairs) -> Iterator[tuple[int, np.ndarray]]:
    """Weights [T, S] under teacher forcing, and the place of their pair, pairs of similar lengths together.

    pairs: source ids and target ids, end-of-sentence included; row t is that of the step that predicts target symbol t.
    Weights of several heads are averaged. Raises UserError for a model without attention.
    """
    if model.config.score.name == NONE:
        raise UserError("score=none: a run without attention has no weights to align by")

    @jax.jit
    def run(params: Params, source: Array, target: Array) -> Array:
        inputs = previous_symbols(target)
        _, weights = model.bind(params).teacher_forced(source, source != PAD, inputs)
        return one_row(weights, rows=2)

    for bucket in buckets(pairs, padding=0.25) if pairs else []:
        size = min(BATCH, len(bucket.index))
        for start in range(0, len(bucket.index), size):
            index = bucket.index[start : start + size]
            missing = ((0, size - len(index)), (0, 0))
            source, target = (np.pad(side[start : start + size], missing) for side in (bucket.source, bucket.target))
            for place, weights in zip(index, np.asarray(run(params, source, target)), strict=False):
                yield int(place), weights[: len(pairs[place][1]), : len(pairs[place][0])]


def word_weights(weights: np.ndarray, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Weights [words, words] from those of symbols [T, S]: sums over a source word, means over a target word.

    source, target: the number of each symbol's word, -1 for a space, which belongs to none.
    """
    rows, columns = (_members(numbers) for numbers in (target, source))
    return rows / np.maximum(rows.sum(axis=1, keepdims=True), 1) @ weights @ columns.T


def _members(numbers: Sequence[int]) -> np.ndarray:
    """[words, symbols], 1 where a symbol is a part of a word."""
    return (np.arange(max(numbers, default=-1) + 1)[:, None] == np.asarray(numbers)[None, :]).astype(np.float64)


# -- links -----------------------------------------------------------------------------------------------------------


def _argmax(weights: np.ndarray) -> Iterable[Link]:
    return ((int(np.argmax(row)), j) for j, row in enumerate(weights))


def _one_to_one(weights: np.ndarray) -> Iterable[Link]:
    from scipy.optimize import linear_sum_assignment

    targets, sources = linear_sum_assignment(weights, maximize=True)
    return zip(sources.tolist(), targets.tolist(), strict=True)


def _union(weights: np.ndarray) -> Iterable[Link]:
    return [*_argmax(weights), *((i, j) for j, i in _argmax(weights.T))]


METHODS: dict[str, Callable[[np.ndarray], Iterable[Link]]] = {
    "argmax": _argmax,
    "one_to_one": _one_to_one,
    "union": _union,
}
"""Links from weights [T, S].

argmax: each target word with the source word of the highest weight, the first of equal ones (Luong et al. 2015, section
5.4). one_to_one: the links of largest total weight that share no word. union: argmax, and each source word with the
target word that gives it the highest weight.
"""


def links(weights: np.ndarray, method: str = "argmax", threshold: float = 0.0) -> frozenset[Link]:
    """The links that weights [T, S] of words give; none of zero weight or of one below the threshold.

    Raises UserError on an unknown method.
    """
    choose = _method(method)
    if not weights.size:
        return frozenset()
    return frozenset((i, j) for i, j in choose(weights) if weights[j, i] > 0 and weights[j, i] >= threshold)


def _method(name: str) -> Callable[[np.ndarray], Iterable[Link]]:
    if name not in METHODS:
        raise unknown("method of alignment", name, METHODS)
    return METHODS[name]


def align(
    model: Model,
    params: Params,
    source: TextCodec,
    target: TextCodec,
    pairs: Sequence[tuple[str, str]],
    *,
    method: str = "argmax",
    offset: str = "predicted",
    threshold: float = 0.0,
) -> list[frozenset[Link]]:
    """The links between the words of each pair of texts, none where a text is empty.

    Words are what stands between spaces; characters and pieces are merged to words (`word_weights`).

    Raises UserError on a model without attention, on symbols that do not show words, on an unknown method or offset.
    """
    if offset not in OFFSETS:
        raise unknown("offset", offset, OFFSETS)
    _method(method)
    numbers = [(source.word_numbers(s), target.word_numbers(t)) for s, t in pairs]
    places = [n for n, (s, t) in enumerate(numbers) if s and t]
    encoded = [(source.encode(pairs[n][0]), [*target.encode(pairs[n][1]), EOS]) for n in places]
    found: list[frozenset[Link]] = [frozenset()] * len(pairs)
    for place, weights in forced_weights(model, params, encoded):
        rows = weights[:-1] if offset == "predicted" else weights[1:]
        n = places[place]
        found[n] = links(word_weights(rows, *numbers[n]), method, threshold)
    return found


# -- error -----------------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Sums over a corpus for links A, sure gold links S and possible ones P, which hold S: |A|, |S|, |A & S|, |A & P|.

    Those of a random alignment are expected values.
    """

    found: float
    sure: float
    found_sure: float
    found_possible: float


def count(found: Iterable[frozenset[Link]], gold: Iterable[Gold]) -> Counts:
    """The counts of the links of each pair against its gold links."""
    rows = [(len(a), len(g.sure), len(a & g.sure), len(a & g.possible)) for a, g in zip(found, gold, strict=True)]
    return _summed(rows)


def _summed(rows: Sequence[tuple[float, float, float, float]]) -> Counts:
    return Counts(*(sum(column) for column in zip(*rows, strict=True))) if rows else Counts(0, 0, 0, 0)


def error(counts: Counts) -> dict[str, float]:
    """`aer`, `precision` and `recall` in percent (Och and Ney 2003).

    AER = 1 - (|A & S| + |A & P|) / (|A| + |S|), 0 if there is nothing to find and nothing is found; precision
    |A & P| / |A| and recall |A & S| / |S|, NaN where they divide by 0.
    """
    a, s, found_sure, found_possible = counts
    return {
        "aer": 100 * (1 - (found_sure + found_possible) / (a + s)) if a + s else 0.0,
        "precision": 100 * found_possible / a if a else float("nan"),
        "recall": 100 * found_sure / s if s else float("nan"),
    }


def diagonal(sources: int, targets: int) -> frozenset[Link]:
    """Target word j with the source word on the diagonal, i = floor((j + 1/2) S / T), for S and T words."""
    return frozenset(((2 * j + 1) * sources // (2 * targets), j) for j in range(targets) if sources)


def uniform(sizes: Iterable[tuple[int, int]], gold: Iterable[Gold]) -> Counts:
    """The expected counts of linking each target word with a source word drawn uniformly.

    This is the argmax of uniform attention with ties broken at random. sizes: source and target words of each pair. The
    number of links is not random, so `error` of these counts is the expected error.
    """
    rows = [
        (t if s else 0, len(g.sure), len(g.sure) / max(s, 1), len(g.possible) / max(s, 1))
        for (s, t), g in zip(sizes, gold, strict=True)
    ]
    return _summed(rows)
