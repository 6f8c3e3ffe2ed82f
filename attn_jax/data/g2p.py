"""Grapheme to phoneme: words to pronunciations, characters in, phones out."""

import hashlib
from collections.abc import Sequence

from attn_jax.data import reading, sources
from attn_jax.data.datasets import Example, Info, Recipe, grouped, pair
from attn_jax.data.sources import Files
from attn_jax.errors import unknown

PATTERNS: tuple[str, ...] = ("g2p/cmudict", "g2p/sigmorphon2020_<lang>", "g2p/sigmorphon2021_<lang>")
FORM = "word<TAB>phone phone ..."

CMUDICT_CITATION = (
    "The CMU Pronouncing Dictionary, Carnegie Mellon University. Partition g014b2b: Chen, S. F. (2003). "
    "Conditional and joint models for grapheme-to-phoneme conversion. Eurospeech; Novak, J. R., Minematsu, "
    "N. and Hirose, K. (2012). WFST-based grapheme-to-phoneme conversion. FSMNLP."
)
CITATIONS = {
    "sigmorphon2020": "Gorman, K. et al. (2020). The SIGMORPHON 2020 shared task on multilingual "
    "grapheme-to-phoneme conversion. SIGMORPHON.",
    "sigmorphon2021": "Ashby, L. F. E. et al. (2021). Results of the second SIGMORPHON shared task on "
    "multilingual grapheme-to-phoneme conversion. SIGMORPHON.",
}
LICENCES = {
    "sigmorphon2020": "none stated (the 2021 edition: CC BY-SA 3.0)",
    "sigmorphon2021": "CC BY-SA 3.0 Unported",
}
URLS = {
    "sigmorphon2020": "https://github.com/sigmorphon/2020",
    "sigmorphon2021": "https://github.com/sigmorphon/2021-task1",
}
RECOMMENDED = {
    "data.source_unit": "characters",
    "data.target_unit": "words",
    "cell": "lstm",
    "embedding.size": 128,
    "encoder.name": "bi",
    "encoder.size": 128,
    "bridge": "dense",
    "decoder.size": 256,
    "dropout.embedding": 0.2,
    "dropout.readout": 0.2,
    "optim.learning_rate": 1e-3,
}
CMUDICT = {
    "input_feeding": "attentional",
    "optim.clip_norm": 5.0,
    "train.batch_size": 256,
    "train.epochs": 20.0,
}
# Within the grid of Gorman et al. (2020), but for smaller sizes.
SIGMORPHON = {
    "loss.label_smoothing": 0.1,
    "dropout.embedding": 0.3,
    "dropout.readout": 0.3,
    "optim.learning_rate": 3e-3,
    "optim.schedule": "cosine",
    "optim.warmup_share": 0.06,
    "optim.clip_norm": 1.0,
    "train.batch_size": 64,
    "train.epochs": 30.0,
    "train.eval_every": 250,
}
DEV_PARTS = 20


def names() -> list[str]:
    """Every data set of this family."""
    years = [f"g2p/{year}_{language}" for year in CITATIONS for language in languages(year)]
    return ["g2p/cmudict", *years]


def languages(year: str) -> dict[str, dict[str, str]]:
    """The languages of a SIGMORPHON edition, each with its file of train, dev and test."""
    table: dict[str, dict[str, str]] = {}
    for path in sources.pinned(f"{year}_g2p"):
        language, _, split = path.rpartition("/")[2].removesuffix(".tsv").rpartition("_")
        table.setdefault(language, {})[split] = path
    return dict(sorted(table.items()))


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of g2p/cmudict, g2p/sigmorphon2020_<lang>, g2p/sigmorphon2021_<lang>. Raises UserError."""
    task = name.partition("/")[2]
    if task == "cmudict":
        return _cmudict(name, files)
    year, _, language = task.partition("_")
    if year not in CITATIONS:
        raise unknown("G2P data set", task, ["cmudict", "sigmorphon2020_<lang>", "sigmorphon2021_<lang>"])
    table = languages(year)
    if language not in table:
        raise unknown(f"language of g2p/{year}_<lang>", language, table)
    folder = f"{year}_g2p"
    paths = {split: table[language][split] for split in ("train", "dev", "test")}
    found = {split: (files.read(folder, path), files.label(folder, path)) for split, path in paths.items()}

    def read() -> dict[str, Sequence[Example]]:
        splits = {split: _pairs(data, path) for split, (data, path) in found.items()}
        return splits | {split: grouped(splits[split]) for split in ("dev", "test")}

    info = Info(
        name=name,
        citation=CITATIONS[year],
        licence=LICENCES[year],
        metric="wer",
        url=URLS[year],
        recommended=RECOMMENDED | SIGMORPHON,
    )
    return Recipe(info, read)


def held_out(word: str) -> bool:
    """Whether a train word of CMUdict belongs to dev: the first four bytes of its SHA-256 divide by 20."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % DEV_PARTS == 0


def _cmudict(name: str, files: Files) -> Recipe:
    found = {
        split: (
            files.read("cmudict_g014b2b", f"g014b2b.{split}"),
            files.label("cmudict_g014b2b", f"g014b2b.{split}"),
        )
        for split in ("train", "test")
    }

    def read() -> dict[str, Sequence[Example]]:
        train, test = (_pairs(*found[split]) for split in ("train", "test"))
        return {
            "train": [example for example in train if not held_out(example.source)],
            "dev": grouped(example for example in train if held_out(example.source)),
            "test": grouped(test),
        }

    info = Info(
        name=name,
        citation=CMUDICT_CITATION,
        licence="CMUdict licence (BSD style)",
        metric="wer",
        url="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
        recommended=RECOMMENDED | CMUDICT,
        notes=(
            "partition g014b2b; a word is right if any of its pronunciations matches",
            "dev: the train words whose SHA-256 (first 4 bytes) is divisible by 20, left out of train",
        ),
    )
    return Recipe(info, read)


def _pairs(data: bytes, path: str) -> list[Example]:
    return [pair(*row) for row in reading.columns(data, path, 2, FORM)]
