"""Very small data sets and configurations for tests that train."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from attn_jax import config as configs
from attn_jax.cells import CELLS
from attn_jax.combinators import grid
from attn_jax.config import Config
from attn_jax.data.datasets import Dataset, Example, Info, fingerprint, pair
from attn_jax.decoder import FEEDINGS
from attn_jax.scores import NONE, SCORES

SIZES = {
    "embedding.size": 3,
    "encoder.name": "uni",
    "encoder.size": 4,
    "decoder.size": 4,
    "score.heads": 2,
    "train.batch_size": 3,
    "train.steps": 6,
    "train.eval_every": 2,
    "train.buckets": 1,
    "optim.learning_rate": 0.05,
    "init": "uniform",
    "init.scale": 0.5,
}
"""Memory and query are both 4 wide, so that every score is legal."""


def mechanisms() -> list[dict[str, Any]]:
    """Every score and every cell in few configurations, among them all directions, with and without input feeding."""
    scores, cells = [*SCORES, NONE], list(CELLS)
    directions = [{}, {}, {"encoder": "reversed"}, {"encoder": "bi", "encoder.size": 2}]
    return [
        {
            "score": scores[n % len(scores)],
            "cell": cells[n % len(cells)],
            "input_feeding": FEEDINGS[n // 2 % len(FEEDINGS)],
            **directions[n % len(directions)],
        }
        for n in range(max(len(scores), len(cells)))
    ]


def examples(count: int, seed: int, longest: int = 6) -> tuple[Example, ...]:
    """Distinct sequences of letters whose target is their reverse."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        symbols = [draw.choice("abcd") for _ in range(draw.randint(1, longest))]
        found[" ".join(symbols)] = " ".join(reversed(symbols))
    return tuple(pair(source, target) for source, target in found.items())


def dataset(
    *, train: int = 11, dev: int = 5, test: int = 7, recommended: Mapping[str, Any] | None = None, **info: Any
) -> Dataset:
    """Reversed letters; a split of size 0 is absent."""
    sizes = {"train": train, "dev": dev, "test": test}
    splits = {name: examples(size, number) for number, (name, size) in enumerate(sizes.items()) if size}
    described = {"name": "toy/letters", "citation": "none", "licence": "none", "metric": "exact_match", "url": ""}
    return Dataset(Info(**{**described, **info}, recommended=recommended or SIZES), splits, fingerprint(splits))


def with_splits(made: Dataset, **given: Sequence[tuple[str, str]]) -> Dataset:
    """The data set with some splits replaced by (source, target) pairs."""
    splits = {**made.splits, **{name: tuple(pair(*texts) for texts in pairs) for name, pairs in given.items()}}
    return dataclasses.replace(made, splits=splits, fingerprint=fingerprint(splits))


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with values at paths changed."""
    return configs.override(config, changes)


def combined(base: Config, axes: Mapping[str, Sequence[Any]]) -> list[Config]:
    """The configuration with every combination of the values of some fields."""
    return [configs.override(base, choice) for choice in grid(axes)]


def config(**changes: Any) -> Config:
    """`SIZES` with changes; `__` stands for the dot of a path."""
    return changed(Config(), {**SIZES, **{path.replace("__", "."): value for path, value in changes.items()}})
