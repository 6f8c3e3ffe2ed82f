"""How the variants of a study are told apart: the fields in which they differ, and their names.

Configurations are flat, {path: value}.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attn_jax import config as configs

# Values that name themselves; every other field is written field=value in a variant's label.
_BARE = ("model", "score.name", "cell.name", "encoder.name")


def mattering(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the fields that cannot matter to its kind of model."""
    return {path: value for path, value in flat.items() if matters(flat, path)}


def matters(flat: Mapping[str, Any], path: str) -> bool:
    """Whether a field can matter to the kind of model that a flat configuration names."""
    return configs.matters(flat.get("model", "recurrent"), path)


def differing(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths, but the seed, at which flat configurations are not all equal, as declared.

    Only those count to whose kind of model the field matters.
    """
    paths = dict.fromkeys(path for flat in flats for path in flat if path != "seed")
    return [path for path in paths if len({json.dumps(flat.get(path)) for flat in flats if matters(flat, path)}) > 1]


def telling(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths that tell variants apart: model, score and cell first, then as declared.

    A field that tells no two variants apart that are not told apart already (a size that goes with another size) is
    left out.
    """
    paths = differing(flats)
    paths.sort(key=lambda path: _BARE.index(path) if path in _BARE else len(_BARE))
    chosen: list[str] = []
    for path in paths:
        if len({key(flat, [*chosen, path]) for flat in flats}) > len({key(flat, chosen) for flat in flats}):
            chosen.append(path)
    return chosen


def names_of(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or as much of it as tells it from the others."""
    short = [path.removesuffix(".name").split(".")[-1] for path in paths]
    return [
        path.removesuffix(".name") if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)
    ]


def labels(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The shortest names that tell variants apart, e.g. "dot, lstm" or "dot, learning_rate=0.01"; see `telling`."""
    chosen = telling(flats)
    chosen = chosen or [path for path in ("score.name", "cell.name") if matters(flats[0], path)] or ["model"]
    return [
        ", ".join(
            show(flat.get(path)) if path in _BARE else f"{name}={show(flat.get(path))}"
            for path, name in zip(chosen, names_of(chosen), strict=True)
            if matters(flat, path)
        )
        for flat in flats
    ]


def key(flat: Mapping[str, Any], paths: Sequence[str]) -> str:
    """Equal for configurations that those paths do not tell apart."""
    return json.dumps([flat.get(path) if matters(flat, path) else None for path in paths])


def show(value: Any) -> str:
    """A configuration value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else "-" if value in (None, "") else str(value)
