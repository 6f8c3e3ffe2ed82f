"""Wrong flags, texts and data sets: one line and exit code 2, or a recovery."""

import gzip
import itertools
import random
import sys
import urllib.error
from pathlib import Path

import fuzzing
import pytest
from absl import flags
from fuzzing import BYTES, SCRIPT, command, contents

from attn_jax import cli, cli_parsers, data
from attn_jax.cli_help import own_flags
from attn_jax.data import sources
from attn_jax.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the files of a study."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def words(home: Path) -> list[str]:
    """The flags of the study, whose files are there."""
    return fuzzing.study(home)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> bytes:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(sources, "download", refuse)


# -- flags ----------------------------------------------------------------------------------------------------------

COPY = "--dataset=synthetic/copy?examples=20&test_examples=5&max_length=4"
BY_PARSER = {
    flags.IntegerParser: ["x", "-1", "1.5", "", "9" * 5000],
    flags.FloatParser: ["x", "-1", "nan", "inf", ""],
    flags.BooleanParser: ["x"],
    flags.ListParser: ["x", "wandb,,x"],
    flags.EnumParser: ["", "x"],
    cli_parsers.Names: ["", "a,,b", "nothing_of_that_name", "none,none"],
    cli_parsers.Text: ["", " "],
    cli_parsers.Assignment: ["", "x", "=x", "nothing.of_that_name=1", "seed=1", "data.dataset=a", "score=nothing"],
    cli_parsers.Datasets: [
        "",
        "x",
        "scan",
        "scan/",
        "synthetic/copy?examples=x",
        "../x",
        "g2p/x_y",
        "paracrawl/x",
    ],
}


def test_a_wrong_value_of_any_flag_is_one_line(home: Path, words: list[str], tmp_path: Path) -> None:
    assert command("--help").code == 0, "which defines the flags"
    own = [flag for flag in own_flags(cli.FLAGS, str(SCRIPT)) if not flag.boolean]
    assert {"dataset", "out", "files", "set", "sweep", "scores", "seeds", "learning_rate"} <= {f.name for f in own}
    tried = 0
    for flag in own:
        kind = next(parser for parser in type(flag.parser).__mro__ if parser in BY_PARSER)
        given = {word.partition("=")[0]: word for word in (COPY, f"--out={tmp_path / 'out'}")}
        for value in BY_PARSER[kind]:
            wrong = given | {f"--{flag.name}": f"--{flag.name}={value}"}
            said = command(*wrong.values())
            assert said.complaint, (flag.name, value)
            tried += 1
    assert tried > 60
    assert not (tmp_path / "out").exists(), "nothing is written"


WRONG_CALLS = {
    "zero steps": ["--steps=0"],
    "steps beside epochs": ["--steps=1", "--epochs=1"],
    "zero width": ["--hidden_size=0"],
    "odd width for two directions": ["--hidden_size=5", "--set=encoder=bi"],
    "a field set twice": ["--set=cell=gru", "--set=cell.name=lstm"],
    "a bound": ["--set=dropout.embedding=1.5"],
    "an infinite rate": ["--set=optim.learning_rate=inf"],
    "no number": ["--set=optim.learning_rate=0x1p3"],
    "a huge integer": ["--set=train.steps=" + "9" * 5000],
    "lone surrogate": ["--set=train.metric=\udc80"],
    "files of another data set": ["--files=train=a,b"],
    "a split without files": ["--files=train="],
    "nothing left": ["--set=data.max_source_length=1", "--set=data.max_target_length=1"],
    "unknown metric": ["--set=train.metric=bleuu"],
    "flag file that is none": ["--flagfile=/dev/null/x"],
    "manual_dir that is a file": ["--manual_dir=" + __file__],
    "data_dir that is a file": ["--data_dir=" + __file__],
    "data_dir below a file": ["--data_dir=" + __file__ + "/x"],
    "out that is a file": ["--out=" + __file__],
    "out that is too long a name": ["--out=" + "x" * 300],
    "out that is no UTF-8": ["--out=\udcff"],
    "manual_dir of nobody": ["--manual_dir=~nobody_of_that_name/data"],
    "flag file that is a directory": ["--flagfile=/"],
    "flag file that is no text": ["--flagfile=" + sys.executable],
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_is_one_line(case: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--out": "--out=out", "--data_dir": f"--data_dir={home / 'data'}"}
    wrong = [word for name, word in given.items() if not any(w.startswith(f"{name}=") for w in WRONG_CALLS[case])]
    said = command(COPY, "--scores=dot", *wrong, *WRONG_CALLS[case])
    assert said.complaint
    assert not list(tmp_path.iterdir()), "nothing is written"


LOADS = {
    "missing": (None, "cannot be read"),
    "no Python": (b"class A:\n  x =\n", "line 2"),
    "no text": (b"x = 1\n\xff\xfe\n", "--load="),
    "null bytes": (b"x = 1\0\n", "--load="),
    "an exception": (b"x = 1\nraise ValueError('no\\nmore')\n", "line 2: ValueError: no more"),
    "a name that is taken": (b"from attn_jax.scores import SCORES, Dot\nSCORES.register(Dot)\n", "already defined"),
    "an import that fails": (b"import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
}


@pytest.mark.parametrize("case", LOADS)
def test_a_wrong_file_to_load_is_one_line(case: str, home: Path, words: list[str], tmp_path: Path) -> None:
    (content, message), path = LOADS[case], tmp_path / "mine.py"
    if content is not None:
        path.write_bytes(content)
    said = command(*words, f"--load={path}", f"--out={tmp_path / 'out'}")
    assert message in said.complaint
    assert str(path) in said.complaint
    assert not (tmp_path / "out").exists()


# -- text files -----------------------------------------------------------------------------------------------------

GOOD = b"a b c\nb c\nc a\n"
TEXTS = {
    "empty": (b"", "is empty"),
    "only newlines": (b"\n\n\n", "is empty"),
    "fewer lines": (b"a\nb\n", "has 3 lines but"),
    "empty line": (b"a\n\nb\n", ":2: empty line"),
    "line of spaces": (b"a\n   \nb\n", ":2: empty line"),
    "Latin-1": ("a\nb é\nc\n".encode("latin-1"), ":2: not valid UTF-8"),
    "UTF-16": ("a\nb\nc\n".encode("utf-16"), ":1: not valid UTF-8"),
    "surrogates": (b"a\n\xed\xa0\x80\nc\n", ":2: not valid UTF-8"),
    "cut in a character": ("a\nb\nç".encode()[:-1], ":3: not valid UTF-8"),
    "old Mac line ends": (b"a\rb\rc\r", "has 3 lines but"),
}
TABLES = {
    "no tab": (b"a b\n", ":1: 1 tab-separated columns"),
    "two tabs": (b"a\tb\tc\n", ":1: 3 tab-separated columns"),
    "empty source": (b"a\tb\n\tb\n", ":2: column 1 is empty"),
    "empty target": (b"a\tb\na\t\n", ":2: column 2 is empty"),
    "blank line": (b"a\tb\n\nc\td\n", ":2: 1 tab-separated columns"),
}
PACKED = {
    "no gzip": (GOOD, "cannot be read"),
    "half of it": (gzip.compress(GOOD)[:-12], "cannot be read"),
    "wrong checksum": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "cannot be read"),
    "empty file": (b"", "is empty"),
    "a damaged stream": (gzip.compress(GOOD)[:12] + b"\xff" * 20, "cannot be read"),
}


@pytest.mark.parametrize("case", [*TEXTS, *TABLES, *PACKED, "directory", "missing", "one column is a directory"])
def test_a_wrong_text_file_is_one_line(case: str, home: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / ("bad.txt" if case in {**TEXTS, **TABLES} else "bad.gz")
    good.write_bytes(GOOD)
    content, message = {**TEXTS, **TABLES, **PACKED}.get(case, (None, "cannot be read"))
    if content is not None:
        bad.write_bytes(content)
    elif case != "missing":
        bad.mkdir()
    files = str(bad) if case in TABLES else f"{bad},{good}" if case.startswith("one") else f"{good},{bad}"
    said = command(
        *("--dataset=parallel_text", f"--files=train={files}", f"--files=test={good},{good}"),
        *(f"--data_dir={home / 'data'}", f"--out={tmp_path / 'out'}"),
    )
    assert message in said.complaint
    assert str(bad) in said.complaint
    assert not (tmp_path / "out").exists()


def fuzzed_text(seeds: int, tmp_path: Path) -> int:
    """Damaged text, tables and packed text: read, or refused in one line. How many were refused."""
    text = "a b\nç d\n가 나\n".encode()
    kinds = {"x.txt": text, "x.tsv": text.replace(b" ", b"\t"), "x.gz": gzip.compress(text, mtime=0)}
    refused = 0
    for name, damage, seed in itertools.product(kinds, BYTES, range(seeds)):
        path = tmp_path / name
        path.write_bytes(damage(kinds[name], random.Random(f"{name} {damage.__name__} {seed}")))
        splits = {split: [str(path)] if name == "x.tsv" else [str(path)] * 2 for split in ("train", "test")}
        try:
            made = data.parallel_text.recipe(splits)[0].read()
            assert all(example.source and example.target for example in made["train"])
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    return refused


def test_fuzzed_text_is_read_or_refused(tmp_path: Path) -> None:
    assert fuzzed_text(50, tmp_path) > 300


@pytest.mark.slow
def test_much_fuzzed_text_is_read_or_refused(tmp_path: Path) -> None:
    assert fuzzed_text(5000, tmp_path) > 30000


# -- published data sets --------------------------------------------------------------------------------------------

FOLDERS = {
    "semantic_parsing/geo": "semantic_parsing",
    "semantic_parsing/jobs": "semantic_parsing",
    "multi30k/de_en": "multi30k",
    "multi30k_raw/fr_en": "multi30k",
    "g2p/cmudict": "cmudict_g014b2b",
    "g2p/sigmorphon2020_kor": "sigmorphon2020_g2p",
    "g2p/sigmorphon2021_geo": "sigmorphon2021_g2p",
    "inflection/2016_finnish": "sigmorphon2016_inflection",
    "inflection/2017_german_low": "conll2017_inflection",
    "tatoeba/eng_kor": "anki_kor_eng",
    "small_parallel_enja/en_ja": "small_parallel_enja",
    "scan/simple": "scan",
}
LAYOUTS = {
    "no UTF-8": ("", b"\xff\xfe\0"),
    "no columns": ("", b"one column\n"),
    "empty": ("", b""),
    "no gzip": (".gz", b"no gzip"),
    "nothing": (None, b""),
    "directories": (None, None),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wrong_layout_of_published_files_is_one_line(name: str, home: Path, tmp_path: Path, no_network: None) -> None:
    folder, told = FOLDERS[name], []
    for layout, (suffix, content) in LAYOUTS.items():
        if name == "scan/simple" and suffix is None:
            continue  # It is generated then.
        if content == b"one column\n" and name.startswith(("multi30k", "small")):
            continue  # Lines are right there.
        place = tmp_path / layout.replace(" ", "_")
        place.mkdir()
        for file in sources.pinned(folder):
            path = place / folder / f"{file}{suffix or ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir()
            elif suffix is not None:
                path.write_bytes(content)
        said = command(
            *(f"--dataset={name}", f"--manual_dir={place}", f"--out={tmp_path / 'out'}"),
            *(f"--data_dir={tmp_path / 'data'}", "--scores=dot"),
        )
        assert str(place / folder) in said.complaint or name in said.complaint
        told.append(said.complaint)
    assert len(set(told)) == len(told) >= 3
    assert not (tmp_path / "out").exists()


def test_fuzzed_prepared_data_is_made_again(home: Path, words: list[str], tmp_path: Path) -> None:
    files = {s: (str(home / f"{s}.src"), str(home / f"{s}.trg")) for s in ("train", "dev", "test")}
    made = data.load("parallel_text", files=files, data_dir=str(tmp_path))
    (folder,) = (path.parent for path in tmp_path.glob("text_pairs/*/*/dataset_info.json"))
    before = contents(folder)
    for seed, name in enumerate(sorted(before)):
        damage = BYTES[seed % len(BYTES)]
        (folder / name).write_bytes(damage(before[name], random.Random(seed)))
        assert data.load("parallel_text", files=files, data_dir=str(tmp_path)) == made, (name, damage.__name__)


@pytest.mark.slow
def test_much_fuzzed_prepared_data_is_made_again(home: Path, words: list[str], tmp_path: Path) -> None:
    files = {s: (str(home / f"{s}.src"), str(home / f"{s}.trg")) for s in ("train", "dev", "test")}
    made = data.load("parallel_text", files=files, data_dir=str(tmp_path))
    for seed in range(200):
        (folder,) = (path.parent for path in tmp_path.glob("text_pairs/*/*/dataset_info.json"))
        name, damage = random.Random(seed).choice(sorted(contents(folder))), BYTES[seed % len(BYTES)]
        (folder / name).write_bytes(damage((folder / name).read_bytes(), random.Random(seed)))
        assert data.load("parallel_text", files=files, data_dir=str(tmp_path)) == made, (name, damage.__name__, seed)
