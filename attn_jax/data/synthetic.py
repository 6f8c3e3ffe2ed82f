"""Copy, reverse, sort: sequences of symbols whose target is a function of the source, with a longer test set.

Options are part of the name, e.g. `synthetic/reverse?vocabulary=20&max_length=8`. All sequences of a data set
are distinct, so that no test sequence occurs in train.
"""

import random
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

TASKS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda symbols: symbols[::-1],
    "sort": sorted,
}
DEFAULTS = {
    "vocabulary": 20,
    "min_length": 3,
    "max_length": 10,
    "test_min_length": 11,
    "test_max_length": 20,
    "examples": 10000,
    "test_examples": 1000,
    "seed": 1,
}
LIMITS = {key: 1_000 for key in DEFAULTS if "length" in key} | {
    "vocabulary": 100_000,
    "examples": 10_000_000,
    "test_examples": 1_000_000,
    "seed": 2**32 - 1,
}
PATTERNS: tuple[str, ...] = tuple(f"synthetic/{task}" for task in TASKS)
RECOMMENDED = {
    "data.source_unit": "words",
    "data.target_unit": "words",
    "cell": "gru",
    "embedding.size": 64,
    "encoder.name": "bi",
    "encoder.size": 64,
    "decoder.size": 128,
    "optim.learning_rate": 3e-3,
    "train.batch_size": 128,
    "train.epochs": 20.0,
}


def names() -> list[str]:
    """Every data set of this family, without options."""
    return list(PATTERNS)


def options(query: str) -> dict[str, int]:
    """The options of a name's query with their defaults. Raises UserError."""
    values = dict(DEFAULTS)
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in DEFAULTS:
            raise unknown("option of synthetic data", key, DEFAULTS)
        least, most = int(key != "seed"), LIMITS[key]
        # Python refuses to read numbers of thousands of digits: their length is looked at first.
        digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
        if not text.isascii() or not text.isdigit() or len(digits) > len(str(most)) or not least <= int(text) <= most:
            raise UserError(f"synthetic data: {key}={text[:20]}: expected an integer from {least} to {most}")
        values[key] = int(text)
    for low, high in (("min_length", "max_length"), ("test_min_length", "test_max_length")):
        if values[low] > values[high]:
            raise UserError(f"synthetic data: {low}={values[low]} is above {high}={values[high]}")
    return values


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of synthetic/{copy,reverse,sort}[?option=value&...]. Raises UserError."""
    task, _, query = name.partition("/")[2].partition("?")
    if task not in TASKS:
        raise unknown("synthetic task", task, TASKS)
    values = options(query)

    def read() -> dict[str, Sequence[Example]]:
        sequences = Sequences(values["vocabulary"], values["seed"])
        few, lengths = values["test_examples"], (values["min_length"], values["max_length"])
        longer = (values["test_min_length"], values["test_max_length"])
        plan = {
            "test": (few, *lengths),
            "dev": (few, *lengths),
            "test_long": (few, *longer),
            "train": (values["examples"], *lengths),
        }
        drawn = {split: [sequences.draw(low, high) for _ in range(count)] for split, (count, low, high) in plan.items()}
        return {
            split: [pair(" ".join(symbols), " ".join(TASKS[task](symbols))) for symbols in drawn[split]]
            for split in ("train", "dev", "test", "test_long")
        }

    info = Info(
        name=name,
        citation="Generated.",
        licence="none needed: generated",
        metric="exact_match",
        url="",
        recommended=RECOMMENDED,
        notes=(
            f"{values['vocabulary']} symbols, lengths {values['min_length']} to {values['max_length']}; "
            f"test_long: {values['test_min_length']} to {values['test_max_length']}; no sequence occurs "
            "twice",
        ),
    )
    return Recipe(info, read)


class Sequences:
    """Distinct random sequences: the length uniform in a range, then every symbol uniform."""

    def __init__(self, vocabulary: int, seed: int):
        # Only `random()` is promised to give the same numbers in every version of Python.
        self.random = random.Random(seed).random
        width = len(str(vocabulary - 1))
        self.symbols = [f"{number:0{width}d}" for number in range(vocabulary)]
        self.seen: set[tuple[str, ...]] = set()

    def draw(self, low: int, high: int) -> list[str]:
        """A sequence that was not drawn before. Raises UserError when a thousand draws find none."""
        for _ in range(1000):
            length = low + int(self.random() * (high - low + 1))
            sequence = tuple(self.symbols[int(self.random() * len(self.symbols))] for _ in range(length))
            if sequence not in self.seen:
                self.seen.add(sequence)
                return list(sequence)
        raise UserError(
            f"synthetic data: {len(self.symbols)} symbols and lengths {low} to {high} give too few distinct "
            "sequences; raise vocabulary or max_length, or lower examples"
        )
