"""Attention maps of a study: what the page steps through, and the maps that become files."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from attn_jax import plots
from attn_jax.report_data import Section, Variant
from attn_jax.report_run import Run

SENTENCES = 12
"""Attention examples on the page."""

BYTES = 2_000_000
"""Of weights of one section on the page, about; what is more is left out and said."""

SIDE_BY_SIDE = 4
"""Variants that are shown, and drawn as files, to begin with: the best."""

LEVELS = 4000
"""Steps between the lowest and the highest weight of a map: two characters of base 64 a weight."""

MISSING = 4095
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclasses.dataclass(frozen=True)
class Map:
    """Weights [N, T, S] of a run's output on a sentence."""

    variant: Variant
    run: Run
    sentence: int
    target: Sequence[str]
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps of a section's sentences; incomplete: whether heads or seeds were left out for the page's size."""

    sentences: Sequence[Sequence[str]]
    maps: Sequence[Map]
    incomplete: bool


def collect(section: Section, limit: int = BYTES) -> Maps:
    """The maps of every run that attends, as far as they fit: a seed of every variant, best first, then the next seed.

    The first seed of a variant is always there, without its heads where they do not fit.
    """
    runs: list[tuple[int, int, Variant, Run, list[dict[str, Any]]]] = []
    for rank, (variant, _) in enumerate(section.ranked):
        attending = [(run, examples) for run in variant.done if (examples := run.attention)]
        runs += [(turn, rank, variant, *found) for turn, found in enumerate(attending)]
    sentences: dict[tuple[str, ...], int] = {}
    maps: list[Map] = []
    size, incomplete = 0, False
    for turn, _, variant, run, examples in sorted(runs, key=lambda row: row[:2]):
        own = []
        for example in examples:
            source = tuple(example["source"])
            if source in sentences or len(sentences) < SENTENCES:
                number = sentences.setdefault(source, len(sentences))
                shape = (-1, len(example["target"]), len(source))
                weights = np.array(example["weights"], float).reshape(shape)
                own.append(Map(variant, run, number, example["target"], weights))
        needed = sum(2 * one.weights.size for one in own)
        if size + needed > limit:
            incomplete = True
            if turn > 0:
                continue
            own = [dataclasses.replace(one, weights=one.weights.mean(axis=0, keepdims=True)) for one in own]
            needed = sum(2 * one.weights.size for one in own)
        size += needed
        maps += own
    return Maps(list(sentences), maps, incomplete)


def to_json(maps: Maps) -> dict[str, Any]:
    """What the page's viewer reads.

    `variants`: index, label, seeds and number of heads of each, best first. `maps`: by
    "<variant>/<seed>/<sentence>" the output, and the weights as `encoded`. `shown`: variants to begin with.
    """
    variants: dict[int, dict[str, Any]] = {}
    for one in maps.maps:
        empty = {"index": one.variant.index, "label": one.variant.label, "seeds": [], "heads": 1}
        entry = variants.setdefault(one.variant.index, empty)
        if one.run.seed not in entry["seeds"]:
            entry["seeds"].append(one.run.seed)
        entry["heads"] = max(entry["heads"], one.weights.shape[0])
    return {
        "sentences": [list(sentence) for sentence in maps.sentences],
        "variants": list(variants.values()),
        "shown": [entry["index"] for entry in list(variants.values())[:SIDE_BY_SIDE]],
        "seeds": sorted({seed for entry in variants.values() for seed in entry["seeds"]}),
        "heads": max((entry["heads"] for entry in variants.values()), default=1),
        "levels": LEVELS,
        "missing": MISSING,
        "maps": {
            f"{one.variant.index}/{one.run.seed}/{one.sentence}": {"target": list(one.target)} | encoded(one.weights)
            for one in maps.maps
        },
    }


def encoded(weights: np.ndarray) -> dict[str, Any]:
    """Weights [N, T, S] as text: `heads` N, `low` and `high`, and `weights`, two characters of base 64 each.

    A weight is low + level (high - low) / LEVELS; low is at most 0 and high at least 1. A weight that is not finite has
    the level MISSING.
    """
    finite = np.isfinite(weights)
    known = weights[finite]
    low, high = min(0.0, float(known.min(initial=0.0))), max(1.0, float(known.max(initial=1.0)))
    levels = np.full(weights.shape, MISSING)
    levels[finite] = np.rint((known - low) / (high - low) * LEVELS).astype(int)
    digits = np.frombuffer(_ALPHABET, np.uint8)
    text = np.stack([digits[levels.ravel() // 64], digits[levels.ravel() % 64]], axis=1).tobytes().decode("ascii")
    return {"heads": weights.shape[0], "low": low, "high": high, "weights": text}


def panels(maps: Maps, sentence: int) -> list[tuple[str, plots.Figure]]:
    """(label, figure) of the best variants' first seeds on a sentence; of heads the mean."""
    found: dict[str, plots.Figure] = {}
    for one in maps.maps:
        if one.sentence == sentence and one.variant.label not in found and len(found) < SIDE_BY_SIDE:
            rows = one.weights.mean(axis=0).tolist()
            found[one.variant.label] = plots.attention_map(maps.sentences[sentence], one.target, rows)
    return list(found.items())
