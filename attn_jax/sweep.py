"""Variants of a configuration."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.datasets import Dataset
from attn_jax.errors import UserError
from attn_jax.seq2seq import canonical, check, with_hidden_size


def base(dataset: Dataset, changes: Mapping[str, Any]) -> Config:
    """What a data set recommends, with changes by path; `hidden_size` sets both sides, see `with_hidden_size`."""
    fields = {path: value for path, value in changes.items() if path != "hidden_size"}
    config = configs.override(Config(), {"data.dataset": dataset.info.name, **dataset.info.recommended, **fields})
    if "hidden_size" in changes:
        # Sizes that were set one by one win over the common one.
        config = configs.override(with_hidden_size(config, int(changes["hidden_size"])), fields)
    return config


def product(base: Config, axes: Mapping[str, Sequence[Any]]) -> list[Config]:
    """Every combination of the values of some fields, the last axis changing fastest."""
    paths = list(axes)
    return [
        configs.override(base, dict(zip(paths, values, strict=True)))
        for values in itertools.product(*(axes[path] for path in paths))
    ]


def merged(variants: Iterable[Config]) -> tuple[list[Config], int]:
    """Variants in canonical form without repetitions, and how many were dropped. Raises UserError on an illegal one."""
    found: dict[Config, None] = {}
    count = 0
    for variant in variants:
        check(variant)
        found[canonical(variant)] = None
        count += 1
    if not found:
        raise UserError("the study has no variants")
    return list(found), count - len(found)


def groups(runs: Sequence[Config]) -> list[list[Config]]:
    """Runs by structure, in order of first appearance."""
    found: dict[str, list[Config]] = {}
    for run in runs:
        found.setdefault(configs.structure(run), []).append(run)
    return list(found.values())
