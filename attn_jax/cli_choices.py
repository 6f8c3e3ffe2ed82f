"""What the flags of a study say of configurations: fields that are set, compared or tuned.

A field has one origin: what is given twice, or set and compared, is refused by the names of the flags.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from attn_jax import combinators, config
from attn_jax.cli_flags import FLAGS, allowed_values, axis_flags
from attn_jax.cli_parsers import split_values
from attn_jax.combinators import Sweep
from attn_jax.errors import UserError, unknown

# Shortcut flag -> configuration path. `hidden_size` is no field: a study sets all sizes from it.
_SHORTCUTS = {
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "hidden_size": "hidden_size",
    "learning_rate": "optim.learning_rate",
}

# Fields with a flag of their own that does more than set them.
_RESERVED = {"seed": "--seeds", "data.dataset": "--dataset"}


def overrides(flag_values: flags.FlagValues = FLAGS) -> dict[str, str]:
    """Configuration path -> text, from the shortcut flags, then `--set`.

    `--hidden_size=H` appears under "hidden_size", which is no field; the caller decides what it sets.

    Raises:
      UserError: unknown path or name, wrong type, a field that is set twice or has its own flag, steps beside epochs.
    """
    given = _settings(flag_values)
    _check_length({path: (origin, [value]) for path, (origin, value) in given.items()})
    changes = {path: value for path, (_, value) in given.items()}
    if "train.epochs" in changes:
        # Epochs count where steps is 0; the data set's recommended configuration may have steps.
        changes.setdefault("train.steps", "0")
    return changes


def set_by(flag_values: flags.FlagValues = FLAGS) -> dict[str, str]:
    """Configuration path -> the flag that sets it, as it was given. Raises UserError as `overrides` does."""
    return {path: f"{flag}={text}" for path, (flag, text) in _settings(flag_values).items() if path != "hidden_size"}


def _settings(flag_values: flags.FlagValues) -> dict[str, tuple[str, str]]:
    """Configuration path -> the flag that sets it and the value's text."""
    given: dict[str, tuple[str, str]] = {}
    for name, path in _SHORTCUTS.items():
        if flag_values[name].value is not None:
            given[path] = f"--{name}", str(flag_values[name].value)
            if path != "hidden_size":
                _field(f"--{name}", path, [given[path][1]], flag_values)
    for path, value in flag_values["set"].value or ():
        full = _field("--set", path, [value], flag_values)
        if full in given:
            raise UserError(f"{given[full][0]} and --set={path}: {full} is set twice")
        given[full] = f"--set={path}", value
    return given


def _check_length(given: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raises UserError if steps, by the values of one flag, leave epochs, by those of another, without effect."""
    if "train.steps" in given and "train.epochs" in given:
        (steps, values), (epochs, _) = given["train.steps"], given["train.epochs"]
        if all(int(value) for value in values):
            raise UserError(f"{steps} and {epochs}: only one of them can give the length of training")


def sweeps(flag_values: flags.FlagValues = FLAGS) -> dict[str, list[str]]:
    """Configuration path -> the texts of its values, from the list flags that were given, then `--sweep=PATH=...`.

    Raises:
      UserError: unknown path or name, wrong type, a value twice, a field swept twice or both set and swept, steps
        beside epochs.
    """
    given = [(f"--{f.name}", axis, f.value) for axis, f in axis_flags(flag_values).items() if f.value is not None]
    given += [("--sweep", path, values) for path, values in _listed("sweep", flag_values)]
    fixed = _settings(flag_values)
    taken = {path: f"also set to {value}; set it or compare values of it" for path, (_, value) in fixed.items()}
    axes = _axes(given, taken, flag_values)
    _check_length(_lengths(given, flag_values))
    if "train.epochs" in axes and "train.steps" not in {*axes, *fixed}:
        axes["train.steps"] = ["0"]  # as in `overrides`
    return axes


def choices(axes: Mapping[str, Sequence[str]], flag_values: flags.FlagValues = FLAGS) -> Sweep:
    """The sweeps that `--sweep=NAME` names times every combination of the axes, see `sweeps`.

    Raises:
      UserError: unknown name, as `sweeps` for what a named sweep says, a field that another flag sets or compares.
    """
    taken = {path: f"{origin} sets it" for path, (origin, _) in _settings(flag_values).items()}
    taken |= dict.fromkeys(axes, "another flag compares values of it")
    chosen: list[Sweep] = []
    for path, name in flag_values["sweep"].value or ():
        if path:
            continue
        origin, sweep = f"--sweep={name}", _named(name)
        for field in combinators.paths(sweep):
            if field in taken:
                raise UserError(f"{origin}: this sweep chooses {field}, and {taken[field]}")
            taken[field] = f"{origin} chooses it"
            if field != "hidden_size":
                _field(origin, field, _distinct(c[field] for c in sweep if field in c), flag_values)
        chosen.append(sweep)
    own = combinators.paths(itertools.chain(*chosen))
    for one, other in (("train.steps", "train.epochs"), ("train.epochs", "train.steps")):
        if one in own and other in {*_settings(flag_values), *axes}:
            raise UserError(f"{taken[one].split()[0]}: this sweep chooses {one}, and another flag {other}; give one")
    if "train.epochs" in own and "train.steps" not in own:
        chosen.append([{"train.steps": 0}])  # as in `overrides`
    return combinators.product(*chosen, combinators.grid(axes))


def _named(name: str) -> Sweep:
    """A named sweep. Raises UserError if there is no such one, or nothing in it."""
    if name not in combinators.SWEEPS:
        raise unknown("sweep", name, combinators.SWEEPS)
    try:
        sweep = combinators.chain(combinators.SWEEPS[name]())
        if not sweep:
            raise UserError("this sweep has no variants")
    except UserError as error:
        raise UserError(f"--sweep={name}: {error}") from None
    return sweep


def tuned(flag_values: flags.FlagValues = FLAGS) -> dict[str, list[str]]:
    """Configuration path -> the texts of its values, from `--tune`. Raises UserError as `sweeps` does."""
    fixed, axes = _settings(flag_values), sweeps(flag_values)
    compared = combinators.paths(choices(axes, flag_values))
    taken = {path: f"set by {origin} already; set it or tune it" for path, (origin, _) in fixed.items()}
    taken |= dict.fromkeys(compared, "compared already; compare its values or tune it")
    given = [("--tune", path, values) for path, values in _listed("tune", flag_values)]
    found = _axes(given, taken, flag_values)
    _check_length(_lengths(given, flag_values))
    if "train.epochs" in found and "train.steps" not in {*found, *fixed, *compared}:
        found["train.steps"] = ["0"]  # as in `overrides`
    if flag_values["tune_seeds"].present and not found:
        raise UserError("--tune_seeds: nothing is tuned; name a field and its values by --tune")
    return found


def chosen(flag_values: flags.FlagValues = FLAGS) -> set[str]:
    """The fields that flags set, compare or tune. Raises UserError as `overrides`, `choices` and `tuned` do."""
    compared = combinators.paths(choices(sweeps(flag_values), flag_values))
    return {*overrides(flag_values), *compared, *tuned(flag_values)}


def _lengths(
    given: Iterable[tuple[str, str, Sequence[str]]], flag_values: flags.FlagValues
) -> dict[str, tuple[str, Sequence[str]]]:
    """What `_check_length` needs of (flag, path, values) and of the fields that are set."""
    found: dict[str, tuple[str, Sequence[str]]] = {
        path: (origin, [value]) for path, (origin, value) in _settings(flag_values).items()
    }
    for origin, path, values in given:
        found[config.resolve(path)] = f"{origin}={path}" if origin in ("--sweep", "--tune") else origin, values
    return found


def _listed(name: str, flag_values: flags.FlagValues) -> list[tuple[str, list[str]]]:
    """Path and values of every PATH=V1,V2 of a flag."""
    found = []
    for path, text in flag_values[name].value or ():
        try:
            if path:
                found.append((path, split_values(text)))
        except ValueError as error:
            raise UserError(f"--{name}={path}={text}: {error}") from None
    return found


def _axes(
    given: Iterable[tuple[str, str, list[str]]], taken: Mapping[str, str], flag_values: flags.FlagValues
) -> dict[str, list[str]]:
    """Full path -> values of (flag, path, values); taken: fields that have no room for values, and why."""
    axes: dict[str, list[str]] = {}
    for origin, path, values in given:
        full = _field(origin, path, values, flag_values)
        if full in axes:
            raise UserError(f"{origin}: the values of {path} are given twice; give them in one flag")
        if full in taken:
            raise UserError(f"{origin}: {path} is {taken[full]}")
        axes[full] = values
    return axes


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in found):
            found.append(value)
    return found


def _field(origin: str, path: str, values: Sequence[str], flag_values: flags.FlagValues) -> str:
    """The full path of a field after checking `values` for it: names, types, no two equal."""
    try:
        full = _resolve(path)
        if full in _RESERVED:
            raise UserError(f"{path} has a flag of its own: use {_RESERVED[full]}")
        for axis, flag in axis_flags(flag_values).items():
            if config.resolve(axis) == full:
                allowed = allowed_values(flag)
                for value in values:
                    if value not in allowed:
                        raise unknown(axis, value, allowed)
        parsed = [config.get(config.override(config.Config(), {full: value}), full) for value in values]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    for i, value in enumerate(parsed):
        if value in parsed[:i]:
            raise UserError(f"{origin}: {path} has the value {values[i]} twice")
    return full


def _resolve(path: str) -> str:
    """The full path of a field, or an error that names the nearest one, by its path or by its last part."""
    try:
        return config.resolve(path)
    except UserError:
        paths = [name for name, _, _ in config.fields()]
        by_end = [name for name in paths if name.rpartition(".")[2] == path.rpartition(".")[2]]
        near = by_end or difflib.get_close_matches(path, paths, n=1)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        message = f"unknown configuration field '{path}'{hint} (--helpconfig lists the fields)"
        raise UserError(message) from None
