"""Very small data sets and configurations for tests that train."""

import random
from collections.abc import Mapping
from typing import Any

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.datasets import Dataset, Example, Info, fingerprint, pair

SIZES = {
    "embedding.size": 3,
    "encoder.name": "bi",
    "encoder.size": 2,
    "decoder.size": 4,
    "train.batch_size": 3,
    "train.steps": 6,
    "train.eval_every": 2,
    "train.buckets": 1,
    "optim.learning_rate": 0.05,
}
"""Memory and query are both 4 wide, so that every score is legal."""


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


def config(**changes: Any) -> Config:
    """`SIZES` with changes; `__` stands for the dot of a path."""
    return configs.override(Config(), {**SIZES, **{path.replace("__", "."): v for path, v in changes.items()}})
