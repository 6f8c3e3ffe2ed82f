"""Data sets by name."""

import dataclasses
import difflib
import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attn_jax.config import digest
from attn_jax.data import (
    builder,
    datasets,
    g2p,
    inflection,
    multi30k,
    parallel_text,
    reading,
    scan,
    semantic_parsing,
    synthetic,
    ted_hrlr,
    translation,
)
from attn_jax.data.datasets import Dataset, Recipe
from attn_jax.data.sources import Files
from attn_jax.errors import UserError


class Family(Protocol):
    """A module of related data sets."""

    PATTERNS: tuple[str, ...]

    def names(self) -> list[str]:
        """Every data set by its full name."""

    def recipe(self, name: str, files: Files) -> Recipe:
        """How the data set of that name is made. Raises UserError."""


FAMILIES: dict[str, Family] = {
    "scan": scan,
    "synthetic": synthetic,
    "semantic_parsing": semantic_parsing,
    "multi30k": multi30k,
    "multi30k_raw": multi30k,
    "g2p": g2p,
    "inflection": inflection,
    "tatoeba": translation,
    "small_parallel_enja": translation,
    "ted_hrlr_translate": ted_hrlr,
}


def names() -> list[str]:
    """The names of all data sets, families with many members as patterns, for help texts."""
    modules = dict.fromkeys(FAMILIES.values())
    return [pattern for module in modules for pattern in module.PATTERNS] + ["parallel_text"]


def load(
    name: str,
    *,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    files: Mapping[str, str | Sequence[str]] | None = None,
) -> Dataset:
    """The data set of that name.

    Args:
        name: e.g. `scan/simple`, `g2p/sigmorphon2020_kor`, `synthetic/reverse?vocabulary=8`, `parallel_text`.
        manual_dir: the parent of the data sets' folders, files plain or .gz; what is not there is downloaded. Not for
            `parallel_text`.
        data_dir: where prepared data and downloads are kept; by default $ATTN_JAX_DATA or
            ~/.cache/attn_jax/data.
        files: for `parallel_text` only, the files of each split (`train` and `test`, perhaps `dev` and
            others): a pair of line-aligned files, or one file of `source<TAB>target` lines.

    Raises:
        UserError: on an unknown name, on files that are missing or malformed, and on a `data_dir` that cannot
            be written.
    """
    place = Path(os.path.expanduser(data_dir)) if data_dir else builder.default_data_dir()
    if name == "parallel_text":
        if manual_dir:
            raise UserError("parallel_text: manual_dir is for the data sets with files of their own; give files alone")
        recipe, used = parallel_text.recipe(files)
        module: Any = parallel_text
    else:
        if files is not None:
            raise UserError(f"{name}: files are only for parallel_text; this data set reads its own")
        module = _family(name)
        found = Files(manual_dir or None, place / "downloads")
        recipe, used = module.recipe(name, found), found.used
        changed = tuple(f"{path} differs from the published file" for path in found.altered)
        recipe = _with_notes(recipe, changed)
    made = builder.prepared(recipe.info, _key(name, used, module), recipe.read, place)
    return described(made)


def described(made: Dataset) -> Dataset:
    """The data set with a note on a missing dev split and on the overlap of test with train and dev, if any."""
    no_dev = () if "dev" in made.splits else ("no dev split: the last parameters of a run are tested",)
    notes = made.info.notes + no_dev + datasets.overlap_notes(made.splits)
    return dataclasses.replace(made, info=dataclasses.replace(made.info, notes=notes))


def _family(name: str) -> Family:
    head, slash, _ = name.partition("/")
    if head in FAMILIES and slash:
        return FAMILIES[head]
    reason = "" if head in FAMILIES else ted_hrlr.refusal(name)
    if reason:
        raise UserError(reason)
    every = [full for module in dict.fromkeys(FAMILIES.values()) for full in module.names()] + ["parallel_text"]
    near = difflib.get_close_matches(name, every, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(f"unknown data set '{name}': {hint}(allowed: {', '.join(names())})")


def _key(name: str, used: Mapping[str, str], module: Any) -> str:
    """A hash of what a data set is made from: its name, its files' content, and the code that reads them."""
    code = [
        hashlib.sha256(inspect.getsource(part).encode()).hexdigest() for part in (module, reading, datasets, builder)
    ]
    return digest([name, dict(used), code])


def _with_notes(recipe: Recipe, notes: tuple[str, ...]) -> Recipe:
    return dataclasses.replace(recipe, info=dataclasses.replace(recipe.info, notes=recipe.info.notes + notes))
