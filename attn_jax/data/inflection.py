"""Morphological inflection: a lemma and tags to the inflected form (SIGMORPHON 2016 and 2017, task 1).

The source is "lemma<TAB>tag;tag;...": read it with the unit `tagged_characters`, one symbol a character and
one a tag.
"""

from collections.abc import Sequence

from attn_jax.data import reading, sources
from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

PATTERNS: tuple[str, ...] = ("inflection/2016_<lang>", "inflection/2017_<lang>[_<low|medium|high>]")
FOLDERS = {"2016": "sigmorphon2016_inflection", "2017": "conll2017_inflection"}
SIZES = ("low", "medium", "high")
"""Of train, by 2017; without one in the name the largest that the language has."""

CITATIONS = {
    "2016": "Cotterell, R., Kirov, C., Sylak-Glassman, J., Yarowsky, D., Eisner, J. and Hulden, M. (2016). "
    "The SIGMORPHON 2016 shared task: Morphological reinflection. SIGMORPHON.",
    "2017": "Cotterell, R. et al. (2017). CoNLL-SIGMORPHON 2017 shared task: Universal morphological "
    "reinflection in 52 languages. CoNLL.",
}
URLS = {
    "2016": "https://github.com/ryancotterell/sigmorphon2016",
    "2017": "https://github.com/sigmorphon/conll2017",
}
# GRU and additive attention as in MED (Kann and Schuetze 2016); sizes and optimiser are not MED's.
RECOMMENDED = {
    "data.source_unit": "tagged_characters",
    "data.target_unit": "characters",
    "cell": "gru",
    "embedding.size": 128,
    "encoder.name": "bi",
    "encoder.size": 64,
    "decoder.size": 128,
    "score": "additive",
    "dropout.embedding": 0.2,
    "dropout.readout": 0.2,
    "optim.clip_norm": 1.0,
    "train.batch_size": 64,
}
EPOCHS = {"2016": 20.0, "high": 20.0, "medium": 100.0, "low": 300.0}


def names() -> list[str]:
    """Every data set of this family, those of 2017 with their size."""
    return [f"inflection/2016_{language}" for language in languages("2016")] + [
        f"inflection/2017_{language}_{size}" for language in languages("2017") for size in SIZES
    ]


def languages(year: str) -> list[str]:
    """The languages of an edition."""
    return sorted({path.partition("-")[0] for path in sources.pinned(FOLDERS[year])})


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of inflection/2016_<lang> and inflection/2017_<lang>[_<size>]. Raises UserError."""
    year, _, rest = name.partition("/")[2].partition("_")
    if year not in FOLDERS:
        raise unknown("inflection edition", year, FOLDERS)
    language, _, size = rest.partition("_")
    if language not in languages(year):
        raise unknown(f"language of inflection/{year}_<lang>", language, languages(year))
    notes: tuple[str, ...] = ()
    if year == "2017" and not size:
        have = sources.pinned(FOLDERS[year])
        size = next(
            size for size in reversed(SIZES) if any(path.startswith(f"{language}-train-{size}") for path in have)
        )
        notes = (f"train: the size {size}, the largest of this language",)
    if year == "2017" and size not in SIZES:
        raise unknown(f"size of inflection/2017_{language}_<size>", size, SIZES)
    if year == "2016" and size:
        raise UserError(f"{name}: the 2016 edition has one size; write inflection/2016_{language}")
    paths = {
        "2016": {split: f"{language}-task1-{split}" for split in ("train", "dev", "test")},
        "2017": {
            "train": f"{language}-train-{size}",
            "dev": f"{language}-dev",
            "test": f"{language}-uncovered-test",
        },
    }[year]
    folder = FOLDERS[year]
    found = {split: (files.read(folder, path), files.label(folder, path)) for split, path in paths.items()}
    row = _row_2016 if year == "2016" else _row_2017
    form = "lemma<TAB>feature=value,...<TAB>form" if year == "2016" else "lemma<TAB>form<TAB>TAG;TAG;..."

    def read() -> dict[str, Sequence[Example]]:
        return {split: [row(*r) for r in reading.columns(data, path, 3, form)] for split, (data, path) in found.items()}

    info = Info(
        name=name,
        citation=CITATIONS[year],
        licence="none stated (derived from Wiktionary, CC BY-SA)",
        metric="exact_match",
        url=URLS[year],
        recommended=RECOMMENDED | {"train.epochs": EPOCHS[year if year == "2016" else size]},
        notes=notes,
    )
    return Recipe(info, read)


def _row_2016(lemma: str, features: str, form: str) -> Example:
    return pair(f"{lemma}\t{features.replace(',', ';')}", form)


def _row_2017(lemma: str, form: str, tags: str) -> Example:
    return pair(f"{lemma}\t{tags}", form)
