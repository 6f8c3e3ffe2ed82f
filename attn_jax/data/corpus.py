"""A data set as numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attn_jax.config import Config
from attn_jax.data.buckets import Pairs
from attn_jax.data.datasets import Dataset, Example
from attn_jax.data.text import EOS, TextCodec
from attn_jax.errors import UserError


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

    encoded = {name: _pairs(examples, source, target) for name, examples in dataset.splits.items()}
    longest_source, longest_target = data.max_source_length or np.inf, data.max_target_length or np.inf
    kept = [(s, t) for s, t in encoded["train"] if 0 < len(s) <= longest_source and len(t) - 1 <= longest_target]
    if not kept:
        raise UserError(
            f"{dataset.info.name}: no training pair is left with data.max_source_length={data.max_source_length} "
            f"and data.max_target_length={data.max_target_length}"
        )
    left_out = len(encoded["train"]) - len(kept)
    return Corpus(dataset, source, target, {**encoded, "train": kept}, left_out)


def encode_split(dataset: Dataset, split: str, source: TextCodec, target: TextCodec) -> Corpus:
    """One split alone, in vocabularies that are there already."""
    return Corpus(dataset, source, target, {split: _pairs(dataset.splits[split], source, target)}, 0)


def _pairs(examples: Sequence[Example], source: TextCodec, target: TextCodec) -> list[tuple[list[int], list[int]]]:
    return [(source.encode(e.source), [*target.encode(e.target), EOS]) for e in examples]
