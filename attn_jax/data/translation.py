"""Sentence pairs: Tatoeba as selected for Anki, and the Tanaka Corpus extract small_parallel_enja."""

import hashlib
from collections.abc import Sequence

from attn_jax.data import reading
from attn_jax.data.datasets import Example, Info, Recipe, grouped, pair
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

OTHERS = ("fra", "kor", "spa", "vie")
PATTERNS: tuple[str, ...] = (
    "tatoeba/eng_<lang>",
    "tatoeba/<lang>_eng",
    "small_parallel_enja/en_ja",
    "small_parallel_enja/ja_en",
)
FORM = "English<TAB>translation"
DEV_PERCENT, TEST_PERCENT = 5, 5

TATOEBA_CITATION = (
    "Tatoeba (tatoeba.org), tab-delimited bilingual sentence pairs selected by Charles Kelly (www.manythings.org/anki)."
)
ENJA_CITATION = (
    "Tanaka, Y. (2001). Compilation of a multilingual parallel corpus. PACLING. Extract and tokenisation: "
    "github.com/odashi/small_parallel_enja."
)
RECOMMENDED = {
    "cell": "gru",
    "embedding.size": 256,
    "encoder.name": "bi",
    "encoder.size": 256,
    "decoder.size": 512,
    "bridge": "dense",
    "dropout.embedding": 0.2,
    "dropout.readout": 0.3,
    "optim.clip_norm": 1.0,
    "train.batch_size": 128,
    "train.epochs": 10.0,
}
PIECES = {"data.source_unit": "bpe", "data.target_unit": "bpe"}
PIECE_COUNT = {"fra": 8000, "spa": 8000, "vie": 2000, "kor": 2000}
WORDS = {
    "data.source_unit": "words",
    "data.target_unit": "words",
    "data.source_min_count": 2,
    "data.target_min_count": 2,
}


def names() -> list[str]:
    """Every data set of this family."""
    tatoeba = [f"tatoeba/{names}" for other in OTHERS for names in (f"eng_{other}", f"{other}_eng")]
    return [*tatoeba, "small_parallel_enja/en_ja", "small_parallel_enja/ja_en"]


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of tatoeba/<src>_<tgt> or small_parallel_enja/{en_ja,ja_en}. Raises UserError."""
    head, _, direction = name.partition("/")
    return _enja(name, direction, files) if head == "small_parallel_enja" else _tatoeba(name, direction, files)


def split_of(english: str) -> str:
    """The split of the pairs that go with an English sentence, by the first four bytes of its SHA-256 modulo 100."""
    place = int.from_bytes(hashlib.sha256(english.encode()).digest()[:4], "big") % 100
    return "dev" if place < DEV_PERCENT else "test" if place < DEV_PERCENT + TEST_PERCENT else "train"


def connected(rows: Sequence[tuple[str, str]]) -> list[str]:
    """For every pair the first English sentence, in code point order, of those that it shares sentences with.

    Pairs that have a sentence in common on either side, directly or through other pairs, are named alike: split by that
    name, no sentence of test occurs in train in either direction of translation.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for english, foreign in rows:
        # Of two roots the smaller one stays: English sentences come before all others, in code point order.
        low, high = sorted((root(("english", english)), root(("foreign", foreign))))
        parent[high] = low
    return [root(("english", english))[1] for english, _ in rows]


def _tatoeba(name: str, direction: str, files: Files) -> Recipe:
    source, _, target = direction.partition("_")
    for language in (source, target):
        if language not in ("eng", *OTHERS):
            raise unknown("language of tatoeba/<src>_<tgt>", language, ("eng", *OTHERS))
    if (source == "eng") == (target == "eng"):
        raise UserError(f"{name}: one side must be eng; e.g. tatoeba/eng_fra or tatoeba/fra_eng")
    other = target if source == "eng" else source
    file = (f"anki_{other}_eng", f"{other}.txt")
    data, path = files.read(*file), files.label(*file)

    def read() -> dict[str, Sequence[Example]]:
        splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
        rows = [(english, foreign) for english, foreign in reading.columns(data, path, 2, FORM, more=True)]
        for (english, foreign), first in zip(rows, connected(rows), strict=True):
            sides = (english, foreign) if source == "eng" else (foreign, english)
            splits[split_of(first)].append(pair(*sides))
        return {
            "train": list(dict.fromkeys(splits["train"])),
            "dev": grouped(splits["dev"]),
            "test": grouped(splits["test"]),
        }

    info = Info(
        name=name,
        citation=TATOEBA_CITATION,
        licence="CC BY 2.0 (tatoeba.org, www.manythings.org/anki)",
        metric="bleu",
        tokenize="13a",
        url="https://www.manythings.org/anki/",
        recommended=RECOMMENDED | PIECES | {"data.bpe_size": PIECE_COUNT[other]},
        notes=(
            "no standard split: dev 5 %, test 5 %, by SHA-256 of the first English sentence of all that share "
            "translations; all translations of a source are references",
        ),
    )
    return Recipe(info, read)


def _enja(name: str, direction: str, files: Files) -> Recipe:
    if direction not in ("en_ja", "ja_en"):
        raise unknown("direction of small_parallel_enja", direction, ("en_ja", "ja_en"))
    folder = "small_parallel_enja"
    paths = {split: [f"{split}.{language}" for language in direction.split("_")] for split in ("train", "dev", "test")}
    found = {
        split: [(files.read(folder, path), files.label(folder, path)) for path in both] for split, both in paths.items()
    }

    def read() -> dict[str, Sequence[Example]]:
        return {split: reading.parallel(*source, *target) for split, (source, target) in found.items()}

    info = Info(
        name=name,
        citation=ENJA_CITATION,
        licence="none stated (Tanaka Corpus extract)",
        metric="bleu",
        url="https://github.com/odashi/small_parallel_enja",
        recommended=RECOMMENDED | WORDS,
    )
    return Recipe(info, read)
