"""What every data set is: splits of text pairs, and what must be known to use and to cite them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attn_jax.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One source text and its accepted targets.

    `target` is what training sees; `references` (at least one, the first is `target`) is what evaluation
    accepts.
    """

    source: str
    target: str
    references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Info:
    """The description of a data set.

    `metric`: loss, perplexity, token_accuracy, exact_match, bleu, chrf, wer or per. `recommended`:
    configuration overrides by path. `normalization`: "" or "logic", what exact match does to both sides
    before comparing. `notes`: what a report must say beside a figure, e.g. which partition was read.
    """

    name: str
    citation: str
    licence: str
    metric: str
    url: str
    recommended: Mapping[str, Any]
    normalization: str = ""
    tokenize: str = "none"
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits by name, and their fingerprint.

    There is always `train` and `test`, `dev` for most, and further test splits for some, e.g. `test_2017`.
    `fingerprint` is a hash of the texts of all splits; it does not depend on where the files lay.
    """

    info: Info
    splits: Mapping[str, tuple[Example, ...]]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is made: its description, and the function that reads or generates its splits."""

    info: Info
    read: Callable[[], Mapping[str, Sequence[Example]]]


def pair(source: str, target: str) -> Example:
    """The example with one reference."""
    return Example(source, target, (target,))


def grouped(pairs: Iterable[Example]) -> tuple[Example, ...]:
    """One example a distinct source with all its distinct targets as references, in order of appearance."""
    references: dict[str, dict[str, None]] = {}
    for example in pairs:
        references.setdefault(example.source, {}).update(dict.fromkeys(example.references))
    return tuple(Example(source, next(iter(targets)), tuple(targets)) for source, targets in references.items())


def fingerprint(splits: Mapping[str, Sequence[Example]]) -> str:
    """A hash of the names and texts of all splits, in order; unambiguous, since no text holds a newline."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(f"{name}\n{len(splits[name])}\n".encode())
        for example in splits[name]:
            fields = (example.source, str(len(example.references)), *example.references)
            digest.update(("\n".join(fields) + "\n").encode())
    return digest.hexdigest()[:16]


def validate(name: str, splits: Mapping[str, Sequence[Example]]) -> None:
    """Raises UserError when a split is empty or an example has an empty side."""
    for split, examples in splits.items():
        if not examples:
            raise UserError(f"{name}: split {split} is empty; every split needs at least one example")
        for number, example in enumerate(examples, 1):
            if not example.source or not all(example.references):
                side = "target" if example.source else "source"
                raise UserError(f"{name}: example {number} of split {split} has an empty {side}; remove the pair")


def overlap_notes(splits: Mapping[str, Sequence[Example]]) -> tuple[str, ...]:
    """How many test examples, or else test sources, are also in train, and how many test examples in dev.

    Of none there is nothing to say.
    """
    train, test, notes = splits["train"], splits["test"], []
    if pairs := _shared(train, test):
        notes.append(f"{pairs} of {len(test)} test lines also occur in train")
    else:
        sources = {example.source for example in train}
        if shared := sum(example.source in sources for example in test):
            notes.append(f"{shared} of {len(test)} test sources also occur in train")
    if pairs := _shared(splits.get("dev", ()), test):
        notes.append(f"{pairs} of {len(test)} test lines also occur in dev, by which parameters are chosen")
    return tuple(notes)


def _shared(examples: Sequence[Example], test: Sequence[Example]) -> int:
    """How many test examples are among others, by one of their references."""
    seen = {(example.source, example.target) for example in examples}
    return sum(any((e.source, reference) in seen for reference in e.references) for e in test)
