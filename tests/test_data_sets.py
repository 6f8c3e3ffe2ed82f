"""Every published set against the figures of its distributors, and the generated ones against brute force."""

import csv
import re
import unicodedata
from pathlib import Path

import pytest

from attn_jax import config
from attn_jax.data import Example, TextCodec, datasets, g2p, loading, names, reading, synthetic, translation
from attn_jax.data.datasets import Recipe
from attn_jax.data.sources import Files
from attn_jax.errors import UserError

EVERY = [full for module in dict.fromkeys(loading.FAMILIES.values()) for full in module.names()]


def recipe(name: str, manual_dir: Path | None, tmp_path: Path) -> Recipe:
    family = loading.FAMILIES[name.partition("/")[0]]
    return family.recipe(name, Files(str(manual_dir) if manual_dir else None, tmp_path))


def sizes(name: str, manual_dir: Path, tmp_path: Path) -> dict[str, int]:
    return {split: len(examples) for split, examples in recipe(name, manual_dir, tmp_path).read().items()}


MULTI30K = {"train": 29000, "dev": 1014, "test": 1000}
SIZES = {
    "semantic_parsing/geo": {"train": 600, "test": 280},
    "semantic_parsing/jobs": {"train": 500, "test": 140},
    "small_parallel_enja/en_ja": {"train": 50000, "dev": 500, "test": 500},
    "small_parallel_enja/ja_en": {"train": 50000, "dev": 500, "test": 500},
    **{
        f"{form}/{s}_{t}": MULTI30K | ({} if "cs" in (s, t) else {"test_2017": 1000})
        for form in ("multi30k", "multi30k_raw")
        for s, t in [("de", "en"), ("en", "fr"), ("cs", "de")]
    },
    **{
        f"g2p/sigmorphon2020_{language}": {"train": 3600, "dev": 450, "test": 450}
        for language in [
            "ady",
            "arm",
            "bul",
            "dut",
            "fre",
            "geo",
            "gre",
            "hun",
            "ice",
            "jpn",
            "kor",
            "rum",
            "vie",
        ]
    },
    "g2p/sigmorphon2021_eng_us": {"train": 33344, "dev": 4168, "test": 4168},
    **{
        f"g2p/sigmorphon2021_{language}": {"train": 8000, "dev": 1000, "test": 1000}
        for language in ["arm_e", "bul", "dut", "fre", "geo", "hun", "jpn_hira", "kor", "vie_hanoi"]
    },
    **{
        f"g2p/sigmorphon2021_{language}": {"train": 800, "dev": 100, "test": 100}
        for language in ["ady", "gre", "ice", "ita", "lav", "mlt_latn", "rum", "slv", "wel_sw"]
    },
    **{
        f"inflection/2017_{language}_{size}": {"train": count}
        | dict.fromkeys(("dev", "test"), 100 if language in ("basque", "welsh") else 1000)
        for language in [
            "arabic",
            "basque",
            "czech",
            "english",
            "finnish",
            "french",
            "georgian",
            "german",
            "hindi",
            "hungarian",
            "latin",
            "polish",
            "russian",
            "spanish",
            "turkish",
            "welsh",
        ]
        for size, count in [("low", 100), ("medium", 1000), ("high", 10000)]
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(manual_dir: Path, tmp_path: Path, name: str) -> None:
    assert sizes(name, manual_dir, tmp_path) == SIZES[name]


def test_every_language_is_checked() -> None:
    parts = ("g2p/sigmorphon", "inflection/2017", "semantic_parsing", "small_parallel")
    published = {name for name in EVERY if name.startswith(parts)}
    assert published <= SIZES.keys()


def test_sizes_of_2016_inflection(manual_dir: Path, tmp_path: Path) -> None:
    with (manual_dir / "MANIFEST.tsv").open(encoding="utf-8") as file:
        lines = {row["path"]: row["lines"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    languages = [
        "arabic",
        "finnish",
        "georgian",
        "german",
        "hungarian",
        "navajo",
        "russian",
        "spanish",
        "turkish",
    ]
    assert [name for name in EVERY if "/2016" in name] == [f"inflection/2016_{language}" for language in languages]
    for language in languages:
        file_name = f"sigmorphon2016_inflection/{language}-task1-{{}}.gz"
        expected = {split: int(lines[file_name.format(split)]) for split in ("train", "dev", "test")}
        assert sizes(f"inflection/2016_{language}", manual_dir, tmp_path) == expected


def test_cmudict(manual_dir: Path, tmp_path: Path) -> None:
    made = recipe("g2p/cmudict", manual_dir, tmp_path).read()
    train, dev, test = made["train"], made["dev"], made["test"]
    assert len(train) + sum(len(example.references) for example in dev) == 113438
    words = [{example.source for example in split} for split in (train, dev, test)]
    assert len(words[0]) + len(words[1]) == 106837
    assert not words[0] & words[1]
    assert not (words[0] | words[1]) & words[2]
    assert (len(test), sum(len(example.references) for example in test)) == (12000, 12753)
    assert abs(len(dev) / 106837 - 0.05) < 0.003
    assert len({phone for e in train for phone in e.target.split(" ")}) == 39
    assert {letter for e in train for letter in e.source} == {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"}


def test_hash_rules_are_what_the_notes_say() -> None:
    # First bytes by `printf %s TEXT | sha256sum`: 2e7d2c03 is 3 modulo 100, 4b227777 is 7, 72b289ec is 40.
    assert [translation.split_of(text) for text in ("c", "4", "hh")] == ["dev", "test", "train"]
    # Modulo 20 they are 3 and 0.
    assert [g2p.held_out(word) for word in ("c", "hh")] == [False, True]


TATOEBA = {
    "fra": (142787, 98659, 5),
    "spa": (118964, 102904, 0),
    "vie": (8050, 6164, 0),
    "kor": (3798, 3497, 0),
}


@pytest.mark.parametrize("language", TATOEBA)
def test_tatoeba(manual_dir: Path, tmp_path: Path, language: str) -> None:
    pairs, sentences, duplicates = TATOEBA[language]
    forth = recipe(f"tatoeba/eng_{language}", manual_dir, tmp_path).read()
    back = recipe(f"tatoeba/{language}_eng", manual_dir, tmp_path).read()
    english = [{example.source for example in forth[split]} for split in ("train", "dev", "test")]
    assert sum(map(len, english)) == len(set().union(*english)) == sentences
    count = len(forth["train"]) + sum(len(e.references) for split in ("dev", "test") for e in forth[split])
    assert count == pairs - duplicates
    for split in ("train", "dev", "test"):
        flat = [{(e.source, r) for e in forth[split] for r in e.references}]
        flat.append({(r, e.source) for e in back[split] for r in e.references})
        assert flat[0] == flat[1]
    for split in ("dev", "test"):
        assert abs(len(forth[split]) / sentences - 0.05) < 0.01
    for made in (forth, back):
        sources = [{e.source for e in made[split]} for split in ("train", "dev", "test")]
        assert len(set().union(*sources)) == sum(map(len, sources))
    assert not any("CC-BY" in r for e in forth["test"] for r in e.references)


def test_overlaps_are_told(manual_dir: Path, tmp_path: Path) -> None:
    def note(name: str) -> tuple[str, ...]:
        return datasets.overlap_notes(recipe(name, manual_dir, tmp_path).read())

    assert note("semantic_parsing/geo") == ("115 of 280 test lines also occur in train",)
    assert note("semantic_parsing/jobs") == ("80 of 140 test lines also occur in train",)
    assert note("small_parallel_enja/en_ja") == ("60 of 500 test sources also occur in train",)
    assert note("small_parallel_enja/ja_en") == ()
    assert note("multi30k/de_en") == ()


def test_multi30k_words(manual_dir: Path, tmp_path: Path) -> None:
    train = recipe("multi30k/en_de", manual_dir, tmp_path).read()["train"]
    # One English line has two spaces in a row: an empty word if the rule were split(" ") alone.
    words = [[word for e in train for word in reading.words(side(e))] for side in (source, target)]
    assert [(len(w), len(set(w))) for w in words] == [(377534, 10210), (360706, 18722)]


def test_enja_words(manual_dir: Path, tmp_path: Path) -> None:
    train = recipe("small_parallel_enja/en_ja", manual_dir, tmp_path).read()["train"]
    words = [[word for e in train for word in side(e).split(" ")] for side in (source, target)]
    assert [(len(w), len(set(w))) for w in words] == [(391047, 6634), (565618, 8774)]


def source(example: Example) -> str:
    return example.source


def target(example: Example) -> str:
    return example.target


def test_inflection_without_a_size_is_the_largest(manual_dir: Path, tmp_path: Path) -> None:
    short, whole = (recipe(f"inflection/2017_welsh{size}", manual_dir, tmp_path) for size in ("", "_high"))
    assert short.read() == whole.read()
    assert short.info.recommended == whole.info.recommended
    assert (short.info.notes, whole.info.notes) == (("train: the size high, the largest of this language",), ())


def test_pairs_that_share_a_sentence_are_connected() -> None:
    rows = [("b", "x"), ("c", "x"), ("c", "y"), ("a", "y"), ("d", "z"), ("x", "q")]
    # "x" is a foreign sentence of the first two pairs and an English one of the last: that is no connection.
    assert translation.connected(rows) == ["a", "a", "a", "a", "d", "x"]
    assert translation.connected(rows[::-1]) == ["x", "d", "a", "a", "a", "a"]


def test_inflection_columns(manual_dir: Path, tmp_path: Path) -> None:
    old = recipe("inflection/2016_german", manual_dir, tmp_path).read()["dev"]
    new = recipe("inflection/2017_german_low", manual_dir, tmp_path).read()["dev"]
    assert old[1] == datasets.pair("aalen\tpos=V;tense=PST", "geaalt")
    assert new[1] == datasets.pair("absetzen\tV;SBJV;PST;1;PL", "setzten ab")
    side = TextCodec.train([e.source for e in new], "tagged_characters")
    assert side.tokens(new[1].source) == [*"absetzen", "+V", "+SBJV", "+PST", "+1", "+PL"]
    assert side.decode(side.encode(new[1].source)) == new[1].source


def test_korean_source_is_one_symbol_a_syllable(manual_dir: Path, tmp_path: Path) -> None:
    first = recipe("g2p/sigmorphon2020_kor", manual_dir, tmp_path).read()["test"][0]
    assert first == datasets.pair("책임", "t͡ɕʰ e̞ ɡ i m")
    assert [unicodedata.name(c) for c in first.source] == ["HANGUL SYLLABLE CAEG", "HANGUL SYLLABLE IM"]


@pytest.mark.parametrize("task", ["copy", "reverse", "sort"])
def test_synthetic(tmp_path: Path, task: str) -> None:
    name = f"synthetic/{task}?vocabulary=12&min_length=2&max_length=4&examples=300&test_examples=40&seed=7"
    made = recipe(name, None, tmp_path).read()
    assert {split: len(examples) for split, examples in made.items()} == {
        "train": 300,
        "dev": 40,
        "test": 40,
        "test_long": 40,
    }
    every = [example for examples in made.values() for example in examples]
    assert len({example.source for example in every}) == len(every)
    for example in every:
        symbols = example.source.split(" ")
        by_number = sorted(symbols, key=int)
        expected = {"copy": symbols, "reverse": [*reversed(symbols)], "sort": by_number}[task]
        assert example.target.split(" ") == expected
    lengths = {split: {len(e.source.split(" ")) for e in examples} for split, examples in made.items()}
    assert lengths == {s: {2, 3, 4} for s in ("train", "dev", "test")} | {"test_long": {*range(11, 21)}}
    assert {s for e in made["train"] for s in e.source.split(" ")} == {f"{n:02d}" for n in range(12)}


def test_synthetic_seed(tmp_path: Path) -> None:
    one, same, other = (
        recipe(f"synthetic/copy?examples=50&test_examples=5&seed={seed}", None, tmp_path).read() for seed in (1, 1, 2)
    )
    assert one == same
    assert one["train"][0] != other["train"][0]
    # random.Random(1).random() gives .134, .847, .763: 3 + int(8 * .134) symbols, the first int(20 * .847).
    assert one["test"][0].source == "16 15 05 09"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("vocab=3", "unknown option of synthetic data 'vocab': did you mean 'vocabulary'"),
        ("examples=many", "examples=many: expected an integer from 1 to 10000000"),
        ("examples=-1", "examples=-1: expected an integer from 1 to 10000000"),
        ("vocabulary=0", "vocabulary=0: expected an integer from 1 to 100000"),
        ("vocabulary=100001", "vocabulary=100001: expected an integer from 1 to 100000"),
        pytest.param("vocabulary=" + "9" * 5000, "vocabulary=99999999999999999999: expected", id="5000 digits"),
        ("max_length=1001", "max_length=1001: expected an integer from 1 to 1000"),
        ("min_length=9&max_length=3", "min_length=9 is above max_length=3"),
        ("vocabulary=2&min_length=1&max_length=3", "too few distinct sequences"),
    ],
)
def test_synthetic_options_that_cannot_be(tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        recipe(f"synthetic/copy?{query}", None, tmp_path).read()
    assert synthetic.options("")["examples"] == 10000
    assert synthetic.options("seed=000&vocabulary=0000000020") == synthetic.DEFAULTS | {"seed": 0}


UNKNOWN = {
    "scan/simpel": "unknown SCAN split 'simpel': did you mean 'simple'",
    "scam/simple": "unknown data set 'scam/simple': did you mean 'scan/simple'",
    "": "unknown data set ''",
    "scan": "unknown data set 'scan'",
    "semantic_parsing/atis": "unknown semantic parsing data set 'atis'",
    "multi30k/de_eng": "unknown language of multi30k/<src>_<tgt> 'eng': did you mean 'en'",
    "multi30k/de": "unknown language of multi30k/<src>_<tgt> ''",
    "multi30k/de_de": "source and target are one language",
    "g2p/sigmorphon2020_korr": "unknown language of g2p/sigmorphon2020_<lang> 'korr': did you mean 'kor'",
    "g2p/sigmorphon2022_kor": "unknown G2P data set",
    "inflection/2017_germann_low": "did you mean 'german'",
    "inflection/2017_german_hig": "unknown size of inflection/2017_german_<size> 'hig': did you mean 'high'",
    "inflection/2016_german_high": "the 2016 edition has one size",
    "tatoeba/eng_deu": "unknown language of tatoeba",
    "tatoeba/fra_spa": "one side must be eng",
    "small_parallel_enja/en_jp": "did you mean 'en_ja'",
    "synthetic/revers": "did you mean 'reverse'",
    "ted_hrlr_translate/pt_to_em": "did you mean 'pt_to_en'",
    "wmt14_translate/de-en": "wmt14_translate/de-en: of the data sets of TFDS only ted_hrlr_translate/",
    "para_crawl/ende": "of the data sets of TFDS only ted_hrlr_translate/<config>",
    "squad": "of the data sets of TFDS only ted_hrlr_translate/<config>",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_tell_the_nearest(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=re.escape(UNKNOWN[name])) as error:
        loading.load(name, data_dir=str(tmp_path / "data"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_names_cover_every_data_set() -> None:
    patterns = [re.escape(pattern).replace("\\[_<low\\|medium\\|high>\\]", "(_<size>)?") for pattern in names()]
    forms = [re.compile(re.sub(r"<\w+>", r"\\w+", pattern)) for pattern in patterns]
    for name in EVERY:
        assert any(form.fullmatch(name) for form in forms), name
    assert len(EVERY) == len(set(EVERY)) > 100


@pytest.mark.parametrize("name", EVERY)
def test_info(manual_dir: Path, tmp_path: Path, name: str) -> None:
    info = recipe(name, manual_dir, tmp_path).info
    assert info.name == name
    assert info.metric in ("exact_match", "bleu", "wer")
    assert info.tokenize == ("13a" if name.startswith(("multi30k_raw/", "tatoeba/")) else "none")
    assert info.citation
    assert info.licence
    assert info.normalization == ("logic" if name.startswith("semantic_parsing") else "")
    changed = config.override(config.Config(), info.recommended)
    for path, value in info.recommended.items():
        assert config.get(changed, path) == value


def test_dong_and_lapata_configuration(manual_dir: Path, tmp_path: Path) -> None:
    # Section 4.2 of the paper and the released code.
    geo, jobs = (
        config.override(config.Config(), recipe(f"semantic_parsing/{n}", manual_dir, tmp_path).info.recommended)
        for n in ("geo", "jobs")
    )
    for one in (geo, jobs):
        assert (one.encoder.name, one.encoder.size, one.decoder.size, one.embedding.size) == (
            "reversed",
            150,
            150,
            150,
        )
        assert (one.optim.name, one.optim.rho, one.optim.learning_rate) == ("rmsprop", 0.95, 0.01)
        assert (one.optim.clip_norm, one.optim.clip_value, one.train.batch_size) == (0.0, 5.0, 20)
        assert (one.init.name, one.init.scale, one.loss.per, one.train.select) == (
            "uniform",
            0.08,
            "sentence",
            "last",
        )
    assert (geo.optim.decay_factor, geo.dropout.embedding, geo.dropout.readout, geo.train.epochs) == (
        0.98,
        0.5,
        0.5,
        90,
    )
    assert (jobs.optim.decay_factor, jobs.dropout.embedding, jobs.dropout.readout, jobs.train.epochs) == (
        0.985,
        0.4,
        0.4,
        95,
    )
