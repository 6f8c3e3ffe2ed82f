"""The data of a row: the corpus as this package has it, and the very same batches and sentences as files for peers.

In a folder: `steps.npz` has the sequences of every training step, one after another, with their lengths; `steps.en`,
`steps.de` the same sentences as lines of tokens; `test.*` the test split; `vocabulary.en`, `vocabulary.de` the symbols
after the four that every vocabulary has (here <pad>, <s>, </s>, <unk>); `weights.npz` parameters.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import attn_jax
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, encode
from attn_jax.data.datasets import Dataset, Info, fingerprint, pair
from attn_jax.training import Trainer

SPECIAL = 4
"""Symbols that every vocabulary starts with."""

SIDES = ("en", "de")


def load(row: Mapping[str, Any]) -> tuple[Config, Corpus]:
    """The configuration and the corpus of a row. Raises UserError if the data are not there."""
    made = numbers(row["symbols"], row["length"]) if row["data"] == "numbers" else None
    dataset = made or attn_jax.load(row["data"], manual_dir=row.get("manual_dir"))
    config = attn_jax.configure(dataset, {**row["changes"], "precision": row.get("precision", "float32")})
    return config, encode(dataset, config)


def numbers(symbols: int, length: int) -> Dataset:
    """Random sequences of equal lengths, end-of-sentence included, over a vocabulary of exactly so many symbols."""
    draw, words = random.Random(0), [str(n) for n in range(symbols - SPECIAL)]
    need = -(-len(words) // (length - 1))

    def side() -> list[str]:
        """Every word in turn, then words at random."""
        every = words + draw.choices(words, k=(need + 640) * (length - 1) - len(words))
        draw.shuffle(every)
        return [" ".join(every[n : n + length - 1]) for n in range(0, len(every), length - 1)]

    # Sources have no end-of-sentence: one more word makes the two equally long.
    sources = [f"{text} {draw.choice(words)}" for text in side()]
    pairs = [pair(source, target) for source, target in zip(sources, side(), strict=True)]
    splits = {"train": tuple(pairs), "test": tuple(pairs[:64])}
    info = Info("benchmark/numbers", "none", "none", "exact_match", "", recommended={})
    return Dataset(info, splits, fingerprint(splits))


def batch(trainer: Trainer, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples of a step of the first run: padded sources and targets, and their numbers in the training split."""
    bucket = trainer.buckets[int(trainer.plan.buckets(step, 1)[0])]
    chosen = trainer.plan.indices(trainer.config.seed, step, 1)[0]
    return bucket.source[chosen], bucket.target[chosen], bucket.index[chosen]


def lengths(ids: np.ndarray) -> np.ndarray:
    """True lengths of padded sequences."""
    return (ids != 0).sum(axis=1)


def write_steps(folder: Path, trainer: Trainer, steps: int) -> None:
    """The batches of the first steps, as ids and as text."""
    flat: dict[str, list[np.ndarray]] = {"source": [], "target": [], "source_lengths": [], "target_lengths": []}
    texts: list[list[str]] = [[], []]
    examples = trainer.corpus.dataset.splits["train"]
    for step in range(steps):
        source, target, index = batch(trainer, step)
        for name, ids in (("source", source), ("target", target)):
            flat[name].append(ids[ids != 0])
            flat[f"{name}_lengths"].append(lengths(ids))
        for number in index:
            for side, text in enumerate(_tokens(trainer.corpus, examples[int(number)])):
                texts[side].append(text)
    np.savez(folder / "steps.npz", **{name: np.concatenate(parts) for name, parts in flat.items()})  # type: ignore[arg-type]
    _write_lines(folder, "steps", texts)


def write_test(folder: Path, corpus: Corpus, count: int) -> None:
    """The first test sentences, as text and their sources as ids."""
    examples = corpus.dataset.splits["test"][:count]
    sources = [source for source, _ in corpus.encoded["test"][:count]]
    np.savez(folder / "test.npz", ids=np.concatenate(sources), lengths=np.array([len(ids) for ids in sources]))  # type: ignore[arg-type]
    both = [_tokens(corpus, example) for example in examples]
    _write_lines(folder, "test", [[texts[side] for texts in both] for side in (0, 1)])


def write_vocabularies(folder: Path, corpus: Corpus) -> None:
    """The symbols of both sides."""
    codecs = (corpus.source, corpus.target)
    _write_lines(folder, "vocabulary", [list(codec.vocabulary.symbols[SPECIAL:]) for codec in codecs])


def _tokens(corpus: Corpus, example: Any) -> tuple[str, str]:
    return " ".join(corpus.source.tokens(example.source)), " ".join(corpus.target.tokens(example.target))


def _write_lines(folder: Path, stem: str, sides: Sequence[Sequence[str]]) -> None:
    for name, lines in zip(SIDES, sides, strict=True):
        (folder / f"{stem}.{name}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
