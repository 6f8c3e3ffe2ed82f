"""Padded arrays of text in as few shapes as keep padding low: each shape is compiled once.

A bucket has a shape, its numbers of source and target symbols; an example lies in the smallest bucket that holds it.
The first shape holds everything. The others are chosen one after another, each where it saves most; then each in turn
is moved to where it saves most while the rest stay, until none moves.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attn_jax.shapes import Int

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]

LEVELS = 48
"""Shapes have at most so many different lengths of a side: all that occur or, where those are more, quantiles."""


class Bucket(NamedTuple):
    """Examples of similar lengths. Padding is 0; targets end with end-of-sentence and have no start symbol."""

    source: np.ndarray
    """[N, S] int32"""
    target: np.ndarray
    """[N, T] int32"""
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    """[N] positions in the split"""


def buckets(pairs: Pairs, *, smallest: int = 1, padding: float = 0.10, most: int = 8) -> list[Bucket]:
    """The fewest buckets found whose padding is at most the given share of their source and target positions.

    smallest: examples that a bucket must have, unless there are fewer. most: number of buckets at which padding is
    accepted. The narrowest bucket comes first.
    """
    lengths = np.array([(len(s), len(t)) for s, t in pairs], np.int64)
    cover = _Cover(lengths, smallest)

    def padded(count: int) -> float:
        return 1 - lengths.sum() / _positions(lengths, cover.parts(cover.improved(count)))

    cover.grow(most)
    few, many = 1, len(cover.chosen)
    if padded(many) > padding:
        few = many
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if padded(middle) <= padding else (middle + 1, many)
    found = [_bucket(pairs, part, lengths) for part in cover.parts(cover.improved(many))]
    return sorted(found, key=lambda bucket: bucket.source.shape[1] + bucket.target.shape[1])


def pad(sequences: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """[N, width] int32, zero where a sequence has ended."""
    out = np.zeros((len(sequences), width), np.int32)
    for row, ids in zip(out, sequences, strict=True):
        row[: len(ids)] = ids
    return out


def padding_share(found: Sequence[Bucket]) -> float:
    """Share of source and target positions that are padding."""
    total = sum(b.source.size + b.target.size for b in found)
    real = sum(int((b.source != 0).sum() + (b.target != 0).sum()) for b in found)
    return 1 - real / max(total, 1)


class _Cover:
    """Shapes that hold all examples.

    `cells` are the pairs of lengths that occur, each side raised to one of at most LEVELS lengths, with the `counts` of
    their examples; shapes are all pairs of such lengths. positions[i, j] is the size of shape i, or TOO_SMALL if it
    does not hold cell j. chosen: the shapes in the order in which they were chosen; the first one holds everything.
    """

    TOO_SMALL = 1e9

    def __init__(self, lengths: Int[np.ndarray, "N 2"], smallest: int):
        levels = [_levels(side) for side in lengths.T]
        raised = np.stack([level[np.searchsorted(level, side)] for level, side in zip(levels, lengths.T, strict=True)])
        cells, cell_of, counts = np.unique(raised, axis=1, return_inverse=True, return_counts=True)
        shapes = np.stack([side.ravel() for side in np.meshgrid(*levels, indexing="ij")])
        holds = (shapes[:, :, None] >= cells[:, None, :]).all(axis=0)
        # Double precision is exact for all counts: every process must find the same.
        self.positions, self.counts = np.where(holds, shapes.sum(axis=0)[:, None], self.TOO_SMALL), counts.astype(float)
        self.cell_of, self.smallest, self.chosen = cell_of.ravel(), smallest, [shapes.shape[1] - 1]
        self.improved = functools.cache(self._improved)

    def parts(self, chosen: list[int]) -> list[Int[np.ndarray, " n"]]:
        """The examples of every shape."""
        owner = self.positions[chosen].argmin(axis=0)[self.cell_of]
        return [np.flatnonzero(owner == k) for k in range(len(chosen))]

    def grow(self, most: int) -> None:
        """Chooses shapes until there are so many, or none saves anything."""
        while len(self.chosen) < most and (shape := self._best(self.chosen)) is not None:
            self.chosen.append(shape)

    def _improved(self, count: int) -> list[int]:
        """The first `count` shapes, each moved to where it saves most beside the others, until none saves more."""
        chosen, unmoved, place = self.chosen[:count], 0, 0
        while unmoved < count - 1:
            place = place % (count - 1) + 1
            rest = chosen[:place] + chosen[place + 1 :]
            shape = self._best(rest)
            # Last, where it gets no example that fits another one as well: `_best` did not count those.
            if shape is not None and self._total([*rest, shape]) < self._total(chosen):
                chosen, unmoved, place = [*rest, shape], 0, place - 1
            else:
                unmoved += 1
        return chosen

    def _total(self, chosen: list[int]) -> int:
        return int(self.positions[chosen].min(axis=0) @ self.counts)

    def _best(self, rest: list[int]) -> int | None:
        """The shape that saves most beside others, if any does; no shape may be left with too few examples."""
        now, owner = self.positions[rest].min(axis=0), self.positions[rest].argmin(axis=0)
        saved = np.maximum(now - self.positions, 0) @ self.counts
        owned = np.where(owner[:, None] == np.arange(len(rest)), self.counts[:, None], 0)
        lost = (self.positions < now).astype(float) @ owned
        legal = (lost.sum(axis=1) >= self.smallest) & (owned.sum(axis=0) - lost >= self.smallest).all(axis=1)
        best = int(np.where(legal, saved, 0).argmax())
        return best if legal[best] and saved[best] > 0 else None


def _levels(lengths: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    found = np.unique(lengths)
    if len(found) > LEVELS:
        found = np.unique(np.quantile(lengths, np.linspace(0, 1, LEVELS + 1)[1:], method="higher"))
    return found


def _positions(lengths: np.ndarray, parts: Sequence[np.ndarray]) -> int:
    return sum(len(part) * int(lengths[part].max(axis=0).sum()) for part in parts)


def _bucket(pairs: Pairs, index: np.ndarray, lengths: np.ndarray) -> Bucket:
    width_s, width_t = np.maximum(lengths[index].max(axis=0), 1)
    source, target = (pad([pairs[i][side] for i in index], width) for side, width in ((0, width_s), (1, width_t)))
    return Bucket(source, target, index)
