"""What tuning found about one variant: every choice with its results on dev, and what follows from them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from attn_jax import config as configs
from attn_jax.metrics import higher_is_better


@dataclasses.dataclass(frozen=True)
class Tried:
    """A choice {path: value} and the dev metric of its runs, one a seed; None: not there (yet), or not finite."""

    values: Mapping[str, Any]
    results: Sequence[float | None]

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None unless every run has a value."""
        known = [value for value in self.results if value is not None and math.isfinite(value)]
        return sum(known) / len(known) if known and len(known) == len(self.results) else None


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One variant. fields: what was tuned, {path: values}. choices: those that differ for the variant, as tried.

    chosen: the values that were taken; None while tuning is not finished.
    """

    label: str
    metric: str
    fields: Mapping[str, Sequence[Any]]
    choices: Sequence[Tried]
    chosen: Mapping[str, Any] | None = None

    @property
    def ranked(self) -> list[Tried]:
        """Choices, best mean first; of equal ones the first that was given. Those with a run without a value last."""
        sign = -1 if higher_is_better(self.metric) else 1
        return sorted(self.choices, key=lambda one: math.inf if one.mean is None else sign * one.mean)

    @property
    def taken(self) -> Tried | None:
        """The choice that was taken."""
        return next((one for one in self.choices if one.values == self.chosen), None)

    @property
    def runner_up(self) -> Tried | None:
        """The best of the choices that were not taken; None without another one that has a mean."""
        return next((one for one in self.ranked if one.values != self.chosen and one.mean is not None), None)

    @property
    def margin(self) -> float | None:
        """By how much the taken choice is better than the runner-up, in units of the metric."""
        taken, other = self.taken, self.runner_up
        if taken is None or taken.mean is None or other is None or other.mean is None:
            return None
        return (taken.mean - other.mean) * (1 if higher_is_better(self.metric) else -1)

    @property
    def seeds(self) -> int:
        """Runs of a choice."""
        return max(len(one.results) for one in self.choices)

    @property
    def all_choices(self) -> int:
        """Choices that were asked for; more than those tried where a field does not matter to the variant."""
        return math.prod(len(values) for values in self.fields.values())

    @property
    def idle(self) -> list[str]:
        """Fields whose values make no difference to the variant."""
        seen = {path: {repr(one.values[path]) for one in self.choices} for path in self.fields}
        return [path for path, values in self.fields.items() if len(values) > 1 and len(seen[path]) == 1]

    @property
    def edges(self) -> dict[str, str]:
        """{path: "lowest" or "highest"} of numbers at which the grid ends, so that a better one may lie beyond.

        The bounds of the field itself, such as a dropout rate of 0, are no such edges.
        """
        table = {path: field.metadata for path, field, _ in configs.fields()}
        found = {}
        for path, values in self.fields.items():
            value = (self.chosen or {}).get(path)
            numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
            if value is None or path in self.idle or len(numbers) < len(values) or len(numbers) < 2:
                continue
            if value == min(numbers) and value > 0:
                found[path] = "lowest"
            elif value == max(numbers) and value < table[path]["upper"]:
                found[path] = "highest"
        return found


def short(path: str) -> str:
    """A field by the last part of its path where that can mean no other one: learning_rate, but dropout.embedding."""
    names = [name.removesuffix(".name") for name, _, _ in configs.fields()]
    path = path.removesuffix(".name")
    end = path.rpartition(".")[2]
    meant = [name for name in names if end in (name, name.rpartition(".")[2])]
    return end if meant == [path] else path


def show_choice(values: Mapping[str, Any]) -> str:
    """A choice as it is written on a command line, but for what `short` leaves out."""
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values.values()]
    return ", ".join(f"{short(path)}={text}" for path, text in zip(values, texts, strict=True))
