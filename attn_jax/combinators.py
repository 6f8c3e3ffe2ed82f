"""Sweeps: lists of changes {path: value}, one a variant, and the small functions that they are made of.

A study of two axes, of which some corners are left out::

    without(
        product(values("score", "none", "dot", "additive"), values("placement", "after", "before")),
        lambda choice: choice["score.name"] == "none" and choice["placement"] != "after",
    )

What belongs together is written as it is: `[{"score": "dot", "window": "local_m"}]`. Every function returns a new list
and leaves its arguments as they are; order is kept, since the page tells variants in it. Those that make choices write
paths in full ("score" becomes "score.name"), so that a field is known under one name.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attn_jax import config
from attn_jax.errors import UserError

Choice = dict[str, Any]
"""Configuration path -> value; "hidden_size", which is no field, sets all sizes (see `sweep.base`)."""

Sweep = list[Choice]

SWEEPS: dict[str, Callable[[], Sweep]] = {}
"""The named sweeps that `--sweep=NAME` knows."""


def values(path: str, *options: Any) -> Sweep:
    """One change of a field for each value. Raises UserError on an unknown field."""
    full = _full(path)
    return [{full: option} for option in options]


def grid(axes: Mapping[str, Iterable[Any]]) -> Sweep:
    """One value of every axis {path: values}, in every combination, the last axis changing fastest."""
    return product(*(values(path, *options) for path, options in axes.items()))


def product(*sweeps: Sweep) -> Sweep:
    """A choice of every sweep, in every combination, the last sweep changing fastest; without sweeps one empty choice.

    Raises UserError if two sweeps choose the same field.
    """
    return [_joined(parts) for parts in itertools.product(*sweeps)]


def zipped(*sweeps: Sweep) -> Sweep:
    """The first choices of all sweeps together, then the second ones, ...

    Raises UserError if the sweeps are not equally long or choose the same field.
    """
    if len({len(one) for one in sweeps}) > 1:
        raise UserError(f"zipped sweeps must be equally long, not {', '.join(str(len(one)) for one in sweeps)}")
    return [_joined(parts) for parts in zip(*sweeps, strict=True)]


def chain(*sweeps: Sweep) -> Sweep:
    """The choices of one sweep after those of another. A field that a choice does not name stays as it was set."""
    return [_joined([choice]) for one in sweeps for choice in one]


def sample(sweep: Sweep, count: int, seed: int = 0) -> Sweep:
    """That many different choices, drawn at random, in the order of the sweep; all of them if there are no more.

    A function of length, count and seed alone; of one seed a larger sample holds the smaller one.
    """
    draw = random.Random(seed)
    marks = [draw.random() for _ in sweep]
    chosen = sorted(sorted(range(len(sweep)), key=marks.__getitem__)[:count])
    return [dict(sweep[place]) for place in chosen]


def without(sweep: Sweep, condition: Callable[[Choice], bool]) -> Sweep:
    """The choices of which the condition is not true."""
    return [dict(choice) for choice in sweep if not condition(choice)]


def omitting(sweep: Sweep, fields: Iterable[str]) -> Sweep:
    """The choices without some of the fields, those that are the same then only once."""
    names = set(fields)
    found: Sweep = []
    for choice in chain(sweep):
        rest = {path: value for path, value in choice.items() if path not in names}
        if rest not in found:
            found.append(rest)
    return found


def paths(sweep: Iterable[Mapping[str, Any]]) -> list[str]:
    """The fields that a sweep chooses, in order of first appearance."""
    return list(dict.fromkeys(path for choice in sweep for path in choice))


def named(function: Callable[[], Sweep]) -> Callable[[], Sweep]:
    """Makes a function without arguments a sweep that `--sweep` knows by the function's name.

    The first line of its docstring is what `--help` tells. Raises UserError if the name is taken.
    """
    name = function.__name__
    if name in SWEEPS:
        raise UserError(f"sweep '{name}' is already defined by {SWEEPS[name].__module__}")
    if not (function.__doc__ or "").strip():
        raise UserError(f"sweep '{name}' needs a docstring, whose first line --help tells")
    SWEEPS[name] = function
    return function


def described() -> dict[str, str]:
    """The named sweeps and the first lines of their docstrings."""
    return {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in SWEEPS.items()}


def _full(path: str) -> str:
    return path if path == "hidden_size" else config.resolve(path)


def _joined(parts: Sequence[Mapping[str, Any]]) -> Choice:
    joined: Choice = {}
    for part in parts:
        for path, value in part.items():
            full = _full(path)
            if full in joined:
                raise UserError(f"two sweeps that are combined both choose {full}")
            joined[full] = value
    return joined
