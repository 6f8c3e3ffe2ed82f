"""Gold word alignments: links (i, j) between word i of a source and word j of its target, both counted from 0.

A line of links reads `0-0 1-2 2p3`: `-` joins words of a sure link, `p` those of a possible one (Och and Ney 2003).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from attn_jax.data import reading
from attn_jax.data.reading import words
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

Link = tuple[int, int]


class Gold(NamedTuple):
    """The links of one pair; `possible` holds the sure ones, too."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Sentence pairs with their links. Words are what stands between ASCII spaces."""

    languages: tuple[str, str]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    links: tuple[Gold, ...]
    notes: tuple[str, ...] = ()

    def swapped(self) -> "Aligned":
        """Source and target exchanged."""
        links = tuple(
            Gold(*(frozenset((j, i) for i, j in kind) for kind in (gold.sure, gold.possible))) for gold in self.links
        )
        return Aligned(self.languages[::-1], self.targets, self.sources, links, self.notes)

    def lowered(self) -> "Aligned":
        """The texts in lower case."""
        sources, targets = (tuple(text.lower() for text in side) for side in (self.sources, self.targets))
        return dataclasses.replace(self, sources=sources, targets=targets)


STORIES = (
    ("ChatBotte", "MasterCat"),
    ("LAuberge", "TheInn"),
    ("LaBarbeBleue", "BlueBeard"),
    ("LaDerniereClasse", "TheLastLesson"),
    ("LaVision", "TheVision"),
)
OUTSIDE = (62, "12-16")
"""The pair (from 0) of the German and English set, and its link that points behind 13 English words."""


def load(name: str, files: Files) -> Aligned:
    """A published set by name.

    alibi: 522 pairs of five French short stories, French to English (Xu and Yvon 2016, LREC). bicici: 100 lower-cased
    pairs of Europarl, German to English, sure links only (Biçici 2011, thesis). Raises UserError on other names, and on
    files that are missing or malformed.
    """
    if name not in SETS:
        raise unknown("gold alignment", name, SETS)
    found = SETS[name](files)
    changed = tuple(f"{path} differs from the published file" for path in files.altered)
    return dataclasses.replace(found, notes=found.notes + changed)


def links(line: str, where: str) -> Gold:
    """The links of a line. Raises UserError, naming the place, on what is no link."""
    sure: set[Link] = set()
    possible: set[Link] = set()
    for text in words(line):
        match = re.fullmatch("([0-9]{1,9})([-p])([0-9]{1,9})", text)
        if match is None:
            raise UserError(f"{where}: '{text}' is no link: expected i-j (sure) or ipj (possible), words from 0")
        (sure if match[2] == "-" else possible).add((int(match[1]), int(match[3])))
    return Gold(frozenset(sure), frozenset(sure | possible))


def parallel(data: bytes, path: str, sources: Sequence[str], targets: Sequence[str]) -> list[Gold]:
    """The links of a file that is line-aligned with the texts.

    Raises UserError on another number of lines, and on what is no link or points outside its pair.
    """
    return _checked(reading.lines(data, path), path, sources, targets)


def _checked(rows: Sequence[str], path: str, sources: Sequence[str], targets: Sequence[str]) -> list[Gold]:
    if len(rows) != len(sources):
        raise UserError(f"{path} has {len(rows)} lines of links, but there are {len(sources)} pairs of sentences")
    found = [links(row, f"{path}:{number}") for number, row in enumerate(rows, 1)]
    for number, (gold, source, target) in enumerate(zip(found, sources, targets, strict=True), 1):
        _inside(gold, source, target, f"{path}:{number}")
    return found


def _inside(gold: Gold, source: str, target: str, where: str) -> None:
    sizes = len(words(source)), len(words(target))
    for i, j in sorted(gold.possible):
        if i >= sizes[0] or j >= sizes[1]:
            raise UserError(
                f"{where}: link {i}-{j} points outside its pair of {sizes[0]} source and {sizes[1]} target words, "
                "which are counted from 0"
            )


def _alibi(files: Files) -> Aligned:
    folder = "alibi_fr_en_align"
    sources: list[str] = []
    targets: list[str] = []
    found: list[Gold] = []
    for french, english in STORIES:
        story = f"{french}_{english}"
        names = [f"{story}/{name}.txt" for name in (f"{french}_sents", f"{english}_sents", f"ali_w2w_{story}")]
        columns = [
            reading.columns(files.read(folder, name), files.label(folder, name), 2, form)
            for name, form in zip(names, ("id<TAB>tokens", "id<TAB>tokens", "id<TAB>links"), strict=True)
        ]
        path = files.label(folder, names[2])
        ids = [[row[0] for row in rows] for rows in columns]
        if not ids[0] == ids[1] == ids[2]:
            raise UserError(f"{path}: its sentence ids are not those of the two texts beside it")
        for number, ((_, source), (_, target), (_, row)) in enumerate(zip(*columns, strict=True), 1):
            gold = links(row, f"{path}:{number}")
            _inside(gold, source, target, f"{path}:{number}")
            sources.append(source)
            targets.append(target)
            found.append(gold)
    return Aligned(("fr", "en"), tuple(sources), tuple(targets), tuple(found))


def _bicici(files: Files) -> Aligned:
    folder, names = "bicici_de_en_align", ("test.de", "test.en", "de-en.wa")
    german, english, aligned = ((files.read(folder, name), files.label(folder, name)) for name in names)
    pairs = reading.parallel(*german, *english)
    sources, targets = tuple(p.source for p in pairs), tuple(p.target for p in pairs)
    rows, path = reading.lines(*aligned), aligned[1]
    notes: tuple[str, ...] = ()
    pair, link = OUTSIDE
    if pair < len(rows) and link in words(rows[pair]):
        rows[pair] = " ".join(word for word in words(rows[pair]) if word != link)
        notes = (f"link {link} of pair {pair + 1} points outside the pair and is left out",)
    return Aligned(("de", "en"), sources, targets, tuple(_checked(rows, path, sources, targets)), notes)


SETS = {"alibi": _alibi, "bicici": _bicici}
