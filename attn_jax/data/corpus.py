"""Encoded text as padded arrays, in as few length buckets as keep padding low."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from attn_jax.config import Config
from attn_jax.data.datasets import Dataset, Example
from attn_jax.data.text import EOS, TextCodec
from attn_jax.errors import UserError


class Bucket(NamedTuple):
    """Examples of similar lengths. Padding is 0; targets end with end-of-sentence and have no start symbol."""

    source: np.ndarray
    """[N, S] int32"""
    target: np.ndarray
    """[N, T] int32"""
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    """[N] positions in the split"""


Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set encoded as a configuration says."""

    dataset: Dataset
    source: TextCodec
    target: TextCodec
    encoded: Mapping[str, Pairs]
    left_out: int
    """Training pairs left out because of their lengths."""

    @property
    def fingerprint(self) -> str:
        """Identifies the texts."""
        return self.dataset.fingerprint


def encode(dataset: Dataset, config: Config) -> Corpus:
    """Vocabularies from the training split only; every split as ids. Raises UserError if no training pair is left."""
    data = config.data
    train = dataset.splits["train"]
    options: dict[str, Any] = {"bpe_size": data.bpe_size, "lowercase": data.lowercase}
    source = TextCodec.train([e.source for e in train], data.source_unit, min_count=data.source_min_count, **options)
    target = TextCodec.train([e.target for e in train], data.target_unit, min_count=data.target_min_count, **options)

    def pairs(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        return [(source.encode(e.source), [*target.encode(e.target), EOS]) for e in examples]

    encoded = {name: pairs(examples) for name, examples in dataset.splits.items()}
    longest_source, longest_target = data.max_source_length or np.inf, data.max_target_length or np.inf
    kept = [(s, t) for s, t in encoded["train"] if 0 < len(s) <= longest_source and len(t) - 1 <= longest_target]
    if not kept:
        raise UserError(
            f"{dataset.info.name}: no training pair is left with data.max_source_length={data.max_source_length} "
            f"and data.max_target_length={data.max_target_length}"
        )
    left_out = len(encoded["train"]) - len(kept)
    return Corpus(dataset, source, target, {**encoded, "train": kept}, left_out)


def pad(sequences: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """[N, width] int32, zero where a sequence has ended."""
    out = np.zeros((len(sequences), width), np.int32)
    for row, ids in zip(out, sequences, strict=True):
        row[: len(ids)] = ids
    return out


def buckets(pairs: Pairs, *, smallest: int = 1, padding: float = 0.10, most: int = 8) -> list[Bucket]:
    """Splits examples by length into the fewest buckets whose padding is at most the given share of their positions.

    Positions are source and target symbols; each bucket is as wide as its longest source and its longest target.
    Starting from one bucket, the cut at a source or target length that saves most positions is made, again and again.

    smallest: examples that a bucket must have, unless there are fewer. most: number of buckets at which padding is
    accepted.
    """
    lengths = np.array([(len(s), len(t)) for s, t in pairs], np.int64).reshape(-1, 2)
    parts = [np.arange(len(pairs))]
    cuts = [_best_cut(lengths, smallest)]
    while len(parts) < most and 1 - lengths.sum() / _positions(lengths, parts) > padding:
        widest = int(np.argmax([cut.saved for cut in cuts]))
        cut, part = cuts[widest], parts[widest]
        if cut.saved == 0:
            break
        short = lengths[part, cut.axis] <= cut.length
        parts[widest : widest + 1] = halves = [part[short], part[~short]]
        cuts[widest : widest + 1] = [_best_cut(lengths[half], smallest) for half in halves]
    return [_bucket(pairs, part, lengths) for part in parts]


class _Cut(NamedTuple):
    """Examples with at most `length` symbols on side `axis` (0 source, 1 target) apart from the longer ones."""

    saved: int
    axis: int
    length: int


def _best_cut(lengths: np.ndarray, smallest: int) -> _Cut:
    """The cut that saves most positions, in one pass over the sorted lengths of each side; without one `saved` is 0."""
    n, best = len(lengths), _Cut(0, 0, 0)
    whole = n * int(lengths.max(axis=0).sum())
    for axis in (0, 1):
        ordered = lengths[np.argsort(lengths[:, axis], kind="stable")]
        below = np.maximum.accumulate(ordered, axis=0).sum(axis=1)
        above = np.maximum.accumulate(ordered[::-1], axis=0)[::-1].sum(axis=1)
        sizes = np.arange(1, n)
        saved = whole - sizes * below[:-1] - (n - sizes) * above[1:]
        possible = (ordered[1:, axis] > ordered[:-1, axis]) & (sizes >= smallest) & (n - sizes >= smallest)
        if possible.any():
            at = int(np.argmax(np.where(possible, saved, -1)))
            if saved[at] > best.saved:
                best = _Cut(int(saved[at]), axis, int(ordered[at, axis]))
    return best


def _positions(lengths: np.ndarray, parts: Sequence[np.ndarray]) -> int:
    return sum(len(part) * int(lengths[part].max(axis=0).sum()) for part in parts)


def _bucket(pairs: Pairs, index: np.ndarray, lengths: np.ndarray) -> Bucket:
    width_s, width_t = np.maximum(lengths[index].max(axis=0), 1)
    source, target = (pad([pairs[i][side] for i in index], width) for side, width in ((0, width_s), (1, width_t)))
    return Bucket(source, target, index)


def padding_share(found: Sequence[Bucket]) -> float:
    """Share of source and target positions that are padding."""
    total = sum(b.source.size + b.target.size for b in found)
    real = sum(int((b.source != 0).sum() + (b.target != 0).sum()) for b in found)
    return 1 - real / max(total, 1)
