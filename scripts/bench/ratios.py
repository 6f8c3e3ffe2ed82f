"""Medians with quartiles, of values and of paired ratios; and what a row's measurements come to."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOTED_SECONDS, NOTED_RATE = 54 * 60, 1360
"""joeynmt 2.3.0's nine epochs of row `quality`, on two cores, and the target tokens/s that it had there."""


class Spread(NamedTuple):
    """Median, lower and upper quartile."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value; quartiles interpolate between values and never leave their range."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def paired(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of over / under, repetition by repetition: noise that lasts hits both of a pair.

    One value, which does not change between repetitions (memory), is paired with every value of the other.
    """
    if len(over) != len(under):
        if 1 not in (len(over), len(under)):
            raise ValueError(f"{len(over)} and {len(under)} values are no pairs")
        count = max(len(over), len(under))
        over, under = list(over) * (count // len(over)), list(under) * (count // len(under))
    return spread([a / b for a, b in zip(over, under, strict=True)])


def values(measured: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    """A quantity of every repetition.

    padding: the share of source and target positions that are padding. peak_bytes: of the whole process.
    seconds_to_quality: as measured where there is a curve, elsewhere what was noted for joeynmt, scaled by its speed
    here and then. A/B: one kind of work by another, s being the seconds (target_tokens/s); other names: as measured.
    Raises KeyError where nothing tells of it.
    """
    if what == "padding":
        return [1 - (one["source_tokens"] + one["target_tokens"]) / one["positions"] for one in measured]
    if what == "peak_bytes":
        return [float(measured[-1]["peak_bytes"])]
    if what == "seconds_to_quality":
        noted = NOTED_SECONDS * NOTED_RATE
        return [one["seconds"] if "curve" in one else noted * one["seconds"] / one["target_tokens"] for one in measured]
    work, slash, by = what.partition("/")
    if not slash:
        return [float(one[what]) for one in measured]
    units = {"s": "seconds", "run": "runs", "sentence": "sentences"}
    return [one[work] / one[units[by]] for one in measured]


def disagreement(measured: Mapping[str, Sequence[Mapping[str, Any]]], work: str) -> str:
    """Which contestants did not do the same work as the first in some repetition, in words; empty if all did.

    Contestants that do not count the work (a matrix product has no tokens) are left out.
    """
    counting = {name: [one[work] for one in runs] for name, runs in measured.items() if runs and work in runs[0]}
    if not counting:
        return ""
    first, wanted = next(iter(counting.items()))
    wrong = [name for name, found in counting.items() if found != wanted]
    return ", ".join(f"{name} did {counting[name]} {work}, {first} {wanted}" for name in wrong)
