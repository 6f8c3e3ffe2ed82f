"""Configurations that put any two values of any two axes together: a pairwise covering array.

Most faults of a combination are faults of two values, and the full product has more than a million rows. `AXES` is the
only place to which a new axis is added; values of registries come by themselves.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pytest
import tiny
from flax import nnx

from attn_jax import config as configs
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS
from attn_jax.combines import COMBINES
from attn_jax.config import Config
from attn_jax.decoder import FEEDINGS
from attn_jax.encoders import DIRECTIONS
from attn_jax.errors import UserError
from attn_jax.layers import EMBEDDINGS, Initializer
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
    "coverage": (False, True),
    "embedding": ("learned", *(name for name in EMBEDDINGS if name != "learned")),
    "embedding.tied": configs.choices("embedding.tied"),
    "residual": (False, True),
}
"""Values of every axis, the plainest first: it is taken where nothing is gained by another.

layers, residual: of both sides.
"""

Row = tuple[Any, ...]
"""A value of each axis, in the order of AXES."""
Pair = tuple[tuple[str, Any], tuple[str, Any]]

PLAIN: dict[str, Any] = {axis: values[0] for axis, values in AXES.items()}


@functools.cache
def _plain() -> Config:
    return tiny.config(window__width=1, combine__bias=True, score__size=3, embedding__size=4)


def config_of(row: Row) -> Config:
    """The configuration of a row, of tiny sizes at which every score, bridge and combination is legal."""
    changes = dict(zip(AXES, row, strict=True))
    for axis in ("layers", "residual"):
        value = changes.pop(axis)
        changes |= {f"{side}.{axis}": value for side in ("encoder", "decoder")}
    config = configs.override(_plain(), changes)
    return with_memory_size(config, config.decoder.size)


@functools.cache
def legal(row: Row) -> bool:
    """Whether the configuration is no refused one, nor another one's double because some value cannot matter in it."""
    config = config_of(row)
    kept = canonical(config)
    fields = {"layers": "decoder.layers", "residual": "decoder.residual"}
    if any(configs.get(kept, fields.get(axis, axis)) != value for axis, value in zip(AXES, row, strict=True)):
        return False
    with pytest.MonkeyPatch.context() as patch:
        # First values do not decide, and drawing them, even abstractly, takes most of the time.
        zeros = lambda self, shape, glorot, fan_in: nnx.Param(np.zeros(shape, np.float32))  # noqa: E731
        patch.setattr(Initializer, "_draw", zeros)
        try:
            check(config)
        except UserError:
            return False
    return True


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


def completions(pair: Pair, further: int = 1) -> Iterator[Row]:
    """Rows with that pair and everything else plain but for some further axes: what legality can hang on."""
    free = [axis for axis in AXES if axis not in dict(pair)]
    found = {}
    for axes in itertools.combinations(free, further):
        for values in itertools.product(*(AXES[axis] for axis in axes)):
            found[row_of({**PLAIN, **dict(zip(axes, values, strict=True)), **dict(pair)})] = None
    yield from found


def covered(rows: Sequence[Row]) -> set[Pair]:
    return {pair for row in rows for pair in pairs_of(row)}


@functools.cache
def array(seed: int = 0) -> tuple[Row, ...]:
    """Legal rows in which every legal pair occurs: the same for the same axes and seed.

    Greedy: a row starts from a pair that is still missing, and stays legal while the other axes, in random order, take
    the value that adds most missing pairs, or stay plain.
    """
    draw = random.Random(seed)
    missing = set(all_pairs())
    rows: list[Row] = []
    # Pairs of long axes first: they set the number of rows.
    for first in sorted(all_pairs(), key=lambda pair: -len(AXES[pair[0][0]]) * len(AXES[pair[1][0]])):
        if first not in missing:
            continue
        # A pair that needs more than one further change may fit into a row that has them.
        fitted = (row_of({**dict(zip(AXES, row, strict=True)), **dict(first)}) for row in rows)
        row = next(filter(legal, itertools.chain(completions(first), fitted)), None)
        if row is not None:
            row = _grown(row, [axis for axis in AXES if axis not in dict(first)], missing, draw)
            rows.append(row)
        missing -= {first, *(pairs_of(row) if row else ())}
    return tuple(rows)


def _grown(row: Row, free: list[str], missing: Set[Pair], draw: random.Random) -> Row:
    """The row with some free axes changed for the sake of missing pairs."""

    def gain(row: Row) -> int:
        return sum(pair in missing for pair in pairs_of(row))

    # Twice: the second round takes what the first one made possible.
    for axis in 2 * draw.sample(free, len(free)):
        others = [row_of({**dict(zip(AXES, row, strict=True)), axis: value}) for value in AXES[axis]]
        better = [other for other in others if gain(other) > gain(row)]
        row = next(filter(legal, sorted(better, key=gain, reverse=True)), row)
    return row


def each_value(rows: Sequence[Row]) -> list[Row]:
    """Few of the rows in which every value of every axis occurs that occurs at all."""
    missing = {item for row in rows for item in zip(AXES, row, strict=True)}
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(missing & {*zip(AXES, row, strict=True)}))
        chosen.append(best)
        missing -= {*zip(AXES, best, strict=True)}
    return chosen


def singles(axis: str, value: Any) -> Iterator[Row]:
    """Rows with that value and everything else plain but for up to one further axis."""
    for other in AXES:
        if other != axis:
            for further in AXES[other]:
                yield row_of({**PLAIN, other: further, axis: value})


@functools.cache
def sample(count: int, seed: int = 0) -> tuple[Row, ...]:
    """Legal rows drawn from the full product."""
    draw = random.Random(seed)
    rows = (tuple(draw.choice(values) for values in AXES.values()) for _ in itertools.count())
    return tuple(itertools.islice(filter(legal, rows), count))
