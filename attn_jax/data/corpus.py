"""Encoded text as padded arrays, in as few length buckets as keep padding low."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
    index: np.ndarray
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
    options = {"bpe_size": data.bpe_size, "lowercase": data.lowercase}
    source = TextCodec.train(
        [e.source for e in train], data.source_unit, min_count=data.source_min_count, **options
    )
    target = TextCodec.train(
        [e.target for e in train], data.target_unit, min_count=data.target_min_count, **options
    )

    def pairs(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
        return [(source.encode(e.source), [*target.encode(e.target), EOS]) for e in examples]

    encoded = {name: pairs(examples) for name, examples in dataset.splits.items()}
    longest_source, longest_target = data.max_source_length or np.inf, data.max_target_length or np.inf
    kept = [
        (s, t) for s, t in encoded["train"] if 0 < len(s) <= longest_source and len(t) - 1 <= longest_target
    ]
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
    """Splits examples, ordered by length, into the fewest buckets whose padding is at most the given share of their positions.

    Positions are source and target symbols; each bucket is as wide as its longest source and its longest target. smallest:
    examples that a bucket must have. most: number of buckets at which padding is accepted as it is.
    """
    lengths = np.array([(len(s), len(t)) for s, t in pairs], np.int64).reshape(-1, 2)
    order = np.lexsort((lengths[:, 0], lengths[:, 1], lengths.sum(axis=1)))
    cuts = _cuts(lengths[order], smallest)
    real = lengths.sum()
    for count in range(1, most + 1):
        cost, bounds = _partition(lengths[order], cuts, count)
        if 1 - real / max(cost, 1) <= padding:
            break
    found = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        index = np.sort(order[start:end])
        width_s, width_t = np.maximum(lengths[index].max(axis=0), 1)
        source, target = (
            pad([pairs[i][0] for i in index], width_s),
            pad([pairs[i][1] for i in index], width_t),
        )
        found.append(Bucket(source, target, index))
    return found


def _cuts(lengths: np.ndarray, smallest: int) -> np.ndarray:
    """Positions between which a bucket may lie: at most 64 of equal numbers of examples, so that each has `smallest`."""
    n = len(lengths)
    pieces = max(1, min(64, n // max(smallest, 1)))
    return np.unique(np.linspace(0, n, pieces + 1).astype(np.int64))


def _partition(lengths: np.ndarray, cuts: np.ndarray, count: int) -> tuple[int, list[int]]:
    """The cheapest partition into at most `count` buckets by dynamic programming: its padded positions and its bounds."""
    pieces = len(cuts) - 1
    widest = [lengths[a:b].max(axis=0) for a, b in zip(cuts, cuts[1:], strict=False)]
    cost = np.full((pieces, pieces + 1), np.inf)
    for a in range(pieces):
        width = np.zeros(2, np.int64)
        for b in range(a, pieces):
            width = np.maximum(width, widest[b])
            cost[a, b + 1] = (cuts[b + 1] - cuts[a]) * width.sum()
    best = np.full((count + 1, pieces + 1), np.inf)
    back = np.zeros((count + 1, pieces + 1), np.int64)
    best[0, 0] = 0
    for k in range(1, count + 1):
        for b in range(1, pieces + 1):
            totals = best[k - 1, :b] + cost[:b, b]
            back[k, b] = int(np.argmin(totals))
            best[k, b] = totals[back[k, b]]
    k = int(np.argmin(best[:, pieces]))
    bounds, b = [pieces], pieces
    for level in range(k, 0, -1):
        b = int(back[level, b])
        bounds.append(b)
    return int(best[k, pieces]), [int(cuts[i]) for i in reversed(bounds)]


def padding_share(found: Sequence[Bucket]) -> float:
    """Share of source and target positions that are padding."""
    total = sum(b.source.size + b.target.size for b in found)
    real = sum(int((b.source != 0).sum() + (b.target != 0).sum()) for b in found)
    return 1 - real / max(total, 1)
