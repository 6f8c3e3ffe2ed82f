"""Configurations that put any two values of any two axes together: a pairwise covering array.

Most faults of a combination are faults of two values, and an array that holds every legal pair is two hundredths of a
per mille of the full product. `AXES` is the only list to which a new axis is added; values of registries come by
themselves.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tiny

from attn_jax import config as configs
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS
from attn_jax.combines import COMBINES
from attn_jax.config import Config
from attn_jax.decoder import FEEDINGS
from attn_jax.encoders import DIRECTIONS
from attn_jax.errors import UserError
from attn_jax.normalizers import NORMALIZERS
from attn_jax.readouts import READOUTS
from attn_jax.scores import NONE, SCORES
from attn_jax.seq2seq import canonical, check, with_memory_size
from attn_jax.windows import WINDOWS

AXES: dict[str, tuple[Any, ...]] = {
    "score": (*SCORES, NONE),
    "cell": ("gru", *(name for name in CELLS if name != "gru")),
    "encoder": ("uni", *(name for name in DIRECTIONS if name != "uni")),
    "layers": (1, 2),
    "bridge": ("dense", *(name for name in BRIDGES if name != "dense")),
    "normalizer": tuple(NORMALIZERS),
    "window": tuple(WINDOWS),
    "placement": configs.choices("placement"),
    "combine": tuple(COMBINES),
    "input_feeding": FEEDINGS,
    "readout": tuple(READOUTS),
}
"""Values of every axis, the plainest first: it is taken where nothing is gained by another. layers: of both sides."""

Row = tuple[Any, ...]
"""A value of each axis, in the order of AXES."""
Pair = tuple[tuple[str, Any], tuple[str, Any]]

PLAIN: dict[str, Any] = {axis: values[0] for axis, values in AXES.items()}


def config_of(row: Row) -> Config:
    """The configuration of a row, of tiny sizes at which every score, bridge and combination is legal."""
    changes = dict(zip(AXES, row, strict=True))
    layers = changes.pop("layers")
    changes |= {"encoder.layers": layers, "decoder.layers": layers, "window.width": 1, "combine.bias": True}
    return with_memory_size(tiny.config(**changes, score__size=3), 4)


@functools.cache
def legal(row: Row) -> bool:
    """Whether the configuration is no refused one, nor another one's double because some value cannot matter in it."""
    config = config_of(row)
    try:
        check(config)
    except UserError:
        return False
    kept = canonical(config)
    return all(axis == "layers" or configs.get(kept, axis) == value for axis, value in zip(AXES, row, strict=True))


def pairs_of(row: Row) -> Iterator[Pair]:
    """All pairs of values in a row."""
    return itertools.combinations(zip(AXES, row, strict=True), 2)


def all_pairs() -> list[Pair]:
    """All pairs of values of two axes, legal or not."""
    return [
        ((one, x), (other, y)) for one, other in itertools.combinations(AXES, 2) for x in AXES[one] for y in AXES[other]
    ]


def row_of(values: Mapping[str, Any]) -> Row:
    return tuple(values[axis] for axis in AXES)


def completions(pair: Pair) -> Iterator[Row]:
    """Rows with that pair and everything else plain but for up to two further axes: what legality can hang on."""
    free = [axis for axis in AXES if axis not in dict(pair)]
    seen = set()
    for axes in itertools.combinations(free, 2):
        for values in itertools.product(*(AXES[axis] for axis in axes)):
            row = row_of({**PLAIN, **dict(zip(axes, values, strict=True)), **dict(pair)})
            if row not in seen:
                seen.add(row)
                yield row


def covered(rows: Sequence[Row]) -> set[Pair]:
    return {pair for row in rows for pair in pairs_of(row)}


@functools.cache
def array(seed: int = 0) -> tuple[Row, ...]:
    """Legal rows in which every legal pair occurs: the same for the same axes and seed.

    Greedy: a row starts from a pair that is still missing; the other axes, in random order, take the value that makes
    most missing pairs, the plainest of equals. What is then refused is repaired from the last choices backwards.
    """
    draw = random.Random(seed)
    missing = dict.fromkeys(all_pairs())
    rows: list[Row] = []
    # Pairs of long axes first: they set the number of rows.
    order = sorted(missing, key=lambda pair: -len(AXES[pair[0][0]]) * len(AXES[pair[1][0]]))
    for first in order:
        if first not in missing:
            continue
        row = _grown(first, missing, draw)
        if row is None:
            del missing[first]
            continue
        rows.append(row)
        for pair in pairs_of(row):
            missing.pop(pair, None)
    return tuple(rows)


def _grown(first: Pair, missing: Mapping[Pair, None], draw: random.Random) -> Row | None:
    """A legal row with that pair and many missing ones, or None if there is no legal row with that pair."""
    base = next((row for row in completions(first) if legal(row)), None)
    if base is None:
        return None
    chosen = dict(zip(AXES, base, strict=True))
    free = [axis for axis in AXES if axis not in dict(first)]
    draw.shuffle(free)

    def gain(row: Row) -> int:
        return sum(pair in missing for pair in pairs_of(row))

    # Every change keeps the row legal; a second round takes what the first one made possible.
    for axis in [*free, *free]:
        options = sorted((row_of({**chosen, axis: value}) for value in AXES[axis]), key=gain, reverse=True)
        best = next(row for row in options if gain(row) <= gain(row_of(chosen)) or legal(row))
        if gain(best) > gain(row_of(chosen)):
            chosen = dict(zip(AXES, best, strict=True))
    return row_of(chosen)
