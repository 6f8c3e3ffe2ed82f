"""Wrong input costs no work: one line and exit code 2, or a recovery; results that are there stay as they are."""

import errno
import gzip
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from absl import flags
from fuzzing import BYTES, SCRIPT, Damage, command, contents, noise, retyped

import attn_jax
from attn_jax import cli, cli_parsers, data, program, results
from attn_jax.cli_help import own_flags
from attn_jax.data import sources
from attn_jax.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of a study, and `out`, the study itself, finished."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def words(home: Path) -> list[str]:
    """The flags of the study."""
    found = fuzzing.study(home)
    said = command(*found, f"--out={home / 'out'}")
    assert said.code == 0, said.err
    assert len(list((home / "out" / "runs").glob("*/result.json"))) == 4
    return found


@pytest.fixture
def out(home: Path, words: list[str], tmp_path: Path) -> Path:
    """A copy of the finished study."""
    shutil.copytree(home / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> bytes:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(sources, "download", refuse)


def first_run(out: Path, score: str = "dot") -> Path:
    """A finished run with that score."""
    runs = sorted((out / "runs").iterdir())
    return next(run for run in runs if json.loads((run / "config.json").read_text())["score"]["name"] == score)


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


# -- a study's own files --------------------------------------------------------------------------------------------

EDITS: dict[str, tuple[str, str, str, str]] = {
    # case: file, text there, text instead, complaint
    "edited rate": ("config.json", '"learning_rate": 0.001', '"learning_rate": 0.002', "not the configuration of run"),
    "edited seed": ("config.json", '"seed": ', '"seed": 7', "not the configuration of run"),
    "field of another version": ("config.json", '"seed"', '"sead"', "expected 'seed' of type int"),
    "edited value": ("result.json", '"selected_step": ', '"selected_step": 1', "its checksum differs"),
    "other data": ("result.json", '"fingerprint": "', '"fingerprint": "0', "its checksum differs"),
    "deep": ("result.json", '"metrics": {', f'"metrics": {"[" * 100_000}', "not JSON"),
    "wrong kind": ("result.json", '"steps": 2', '"steps": "2"', "expected 'steps' of type int"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_run_is_noticed_and_nothing_is_overwritten(case: str, words: list[str], out: Path) -> None:
    name, old, new, message = EDITS[case]
    path = first_run(out) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    before = contents(out / "runs")
    said = command(*words, f"--out={out}")
    assert str(path) in said.complaint or str(path.with_name("config.json")) in said.complaint
    assert message in said.complaint
    with pytest.raises(UserError, match=message):
        attn_jax.load_run(path.parent)
    assert contents(out / "runs") == before
    path.write_text(text)
    assert command(*words, f"--out={out}").code == 0


def test_a_result_of_another_run_is_noticed(words: list[str], out: Path) -> None:
    one, other = first_run(out, "dot"), first_run(out, "none")
    shutil.copy(one / "result.json", other / "result.json")
    assert "not the configuration of run" in command(*words, f"--out={out}").complaint
    with pytest.raises(UserError, match="not the configuration of run"):
        attn_jax.load_run(other)


def test_an_edited_configuration_of_an_unfinished_run_is_noticed(words: list[str], out: Path) -> None:
    run = first_run(out)
    (run / "result.json").unlink()
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"seed": 0', '"seed": 5').replace('"seed": 1', '"seed": 5'))
    before = contents(out / "runs")
    assert "not the configuration of run" in command(*words, f"--out={out}").complaint
    assert contents(out / "runs") == before


@pytest.mark.parametrize("name", [".lock", "study.json", "results.csv", "report.html", "runs", "programs"])
def test_a_directory_or_file_in_the_wrong_place_is_one_line(name: str, words: list[str], out: Path) -> None:
    before = contents(out / "runs")
    if name in ("runs", "programs"):
        (out / name).rename(out.parent / "aside")
        (out / name).write_bytes(b"")
    else:
        (out / name).unlink()
        (out / name).mkdir()
    assert str(out) in command(*words, f"--out={out}").complaint
    assert contents(out / "runs" if name != "runs" else out.parent / "aside") == before


def damaged_study(
    words: list[str], out: Path, name: str, damage: Damage, seed: int, unread: tuple[str, ...] = ()
) -> bool:
    """Damages a file of a finished study; whether that is told. In any case the runs stay as they are."""
    whole = (out / name).read_bytes()
    (out / name).write_bytes(damage(whole, random.Random(f"{name.rpartition('/')[2]} {damage.__name__} {seed}")))
    before = contents(out / "runs")
    said = command(*words, f"--out={out}")
    assert contents(out / "runs") == before, (name, damage.__name__, seed)
    if said.code:
        assert str(out / name) in said.complaint or str((out / name).with_name("config.json")) in said.complaint
    (out / name).write_bytes(whole)
    return said.code != 0


READ = ("config.json", "result.json", "program.json", "timing.json", "study.json", "metrics.jsonl")
READ += ("predictions.test.jsonl", "attention.json")


def files_that_are_read(out: Path) -> list[str]:
    """One file of each name that a study reads, of a run with attention."""
    own = {path.name: path for path in first_run(out).iterdir() if path.is_file()}
    members = {path: json.loads(path.read_text())["members"] for path in out.glob("programs/*/program.json")}
    trained = next(path for path, runs in members.items() if first_run(out).name in runs)
    own |= {path.name: path for path in trained.parent.iterdir()} | {"study.json": out / "study.json"}
    return [str(own[name].relative_to(out)) for name in READ]


def test_fuzzed_files_of_a_study_cost_no_run(words: list[str], out: Path) -> None:
    told = {}
    for name in files_that_are_read(out):
        for damage in (noise, retyped):
            told[Path(name).name, damage.__name__] = damaged_study(words, out, name, damage, 1)
    assert all(told[name, "noise"] for name in READ if name != "attention.json"), told
    assert told["config.json", "retyped"]
    assert told["result.json", "retyped"]
    assert command(*words, f"--out={out}").code == 0


@pytest.mark.slow
def test_much_fuzzed_files_of_a_study_cost_no_run(words: list[str], out: Path) -> None:
    for name, damage, seed in itertools.product(files_that_are_read(out), (*BYTES, retyped), range(8)):
        damaged_study(words, out, name, damage, seed)
    assert command(*words, f"--out={out}").code == 0


# -- runs from disk -------------------------------------------------------------------------------------------------


def fuzzed_run(out: Path, seeds: int) -> dict[str, set[bool]]:
    """Damages the files that `load_run` reads; by name, whether it was refused. What is accepted is the run."""
    run = first_run(out)
    whole_run = attn_jax.load_run(run)
    names = ["config.json", "result.json", "vocabulary.json"]
    names += [str(path.relative_to(run)) for path in (run / "parameters").rglob("*") if path.is_file()]
    noticed: dict[str, set[bool]] = {}
    for name in names:
        whole, damages = (run / name).read_bytes(), (*BYTES, retyped) if name.endswith(".json") else BYTES
        for damage, seed in itertools.product(damages, range(seeds)):
            (run / name).write_bytes(damage(whole, random.Random(f"{len(whole)} {damage.__name__} {seed}")))
            try:
                loaded = attn_jax.load_run(run)
            except UserError as error:
                assert str(run) in str(error)  # noqa: PT017
                noticed.setdefault(name, set()).add(True)
            else:
                assert (loaded.config, loaded.max_length) == (whole_run.config, whole_run.max_length)
                for side in ("source", "target"):
                    assert getattr(loaded, side).to_json() == getattr(whole_run, side).to_json()
                for key, value in whole_run.params.items():
                    assert np.array_equal(loaded.params[key], value), (name, damage.__name__, seed)
                noticed.setdefault(name, set()).add(False)
        (run / name).write_bytes(whole)
    return noticed


def test_a_fuzzed_run_is_refused_or_is_the_run(out: Path) -> None:
    noticed = fuzzed_run(out, 1)
    assert {"config.json", "result.json", "vocabulary.json", "parameters/state/manifest.ocdbt"} <= noticed.keys()
    assert all(True in told for told in noticed.values()), noticed


@pytest.mark.slow
def test_a_much_fuzzed_run_is_refused_or_is_the_run(out: Path) -> None:
    fuzzed_run(out, 20)


VOCABULARIES = {
    "no object": ("[]", "expected 'source' of type dict"),
    "no length": ('{"source": {}, "target": {}}', "expected 'max_length' of type int"),
    "length 0": ('{"source": {}, "target": {}, "max_length": 0}', "must be greater than 0"),
    "no unit": ('{"source": {"lowercase": true}, "target": {}, "max_length": 9}', "unknown unit"),
    "no case": ('{"source": {"unit": "bpe"}, "target": {}, "max_length": 9}', "expected 'lowercase'"),
    "no model": ('{"source": {"unit": "bpe", "lowercase": false}, "target": {}, "max_length": 9}', "expected 'model'"),
    "no sentencepiece": (
        '{"source": {"unit": "bpe", "lowercase": false, "model": "AAAA"}, "target": {}, "max_length": 9}',
        "expected 'model', a sentencepiece model",
    ),
    "a symbol twice": (
        '{"source": {"unit": "words", "lowercase": false, "symbols": ["a", "a"]}, "target": {}, "max_length": 9}',
        "'a' occurs twice",
    ),
    "fewer symbols": (
        '{"source": {"unit": "words", "lowercase": false, "symbols": ["a"]}, '
        '"target": {"unit": "words", "lowercase": false, "symbols": ["a"]}, "max_length": 9}',
        r"'[\w.]+' is float32\[\d+(, \d+)?\], expected float32\[5(, \d+)?\]",
    ),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_wrong_vocabulary_is_one_line(case: str, out: Path) -> None:
    run, (text, message) = first_run(out), VOCABULARIES[case]
    (run / "vocabulary.json").write_text(text)
    with pytest.raises(UserError, match="not the vocabulary that the run was trained with"):
        attn_jax.load_run(run)
    result = json.loads((run / "result.json").read_text())
    del result["vocabulary"], result["checksum"]  # as results of other versions, which do not tell
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=message):
        attn_jax.load_run(run)


def test_parameters_of_another_run_are_named(out: Path) -> None:
    one, other = first_run(out, "dot"), first_run(out, "none")
    shutil.rmtree(other / "parameters")
    shutil.copytree(one / "parameters", other / "parameters")
    with pytest.raises(UserError, match=r"parameters: 'decoder\.[\w.]+' is (none of the model's|float32)"):
        attn_jax.load_run(other)


# -- places that cannot be written ----------------------------------------------------------------------------------

LOAD = """
import sys, attn_jax
run = attn_jax.load_run(sys.argv[1])
print(run.config.score.name, [output.text for output in run.decode(["a b c", "d"])])
"""


def alone(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own; of root's powers only that of owning files."""
    drop = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 and shutil.which("setpriv") else []
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", **variables}
    command = [*drop, sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def read_only(folder: Path, *, writable: bool = False) -> None:
    """Takes the right to write from everything below a folder, or gives it back."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200 if writable else path.stat().st_mode & ~0o222)


def test_a_run_is_loaded_from_a_read_only_copy_without_its_data(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(first_run(out), copy)
    expected = [output.text for output in attn_jax.load_run(copy).decode(["a b c", "d"])]
    before = contents(copy)
    read_only(copy)
    process = alone("-c", LOAD, str(copy))
    read_only(copy, writable=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"dot {expected}\n"
    assert contents(copy) == before


def test_a_read_only_output_directory_is_one_line(words: list[str], out: Path) -> None:
    before = contents(out)
    read_only(out)
    process = alone(str(SCRIPT), *words, "--seeds=3", f"--out={out}")
    read_only(out, writable=True)
    expected = f"compare_scores: --out={out}: cannot be written (Permission denied)\n"
    assert (process.returncode, process.stderr) == (2, expected)
    assert contents(out) == before


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Calls a script with no room for files of more than 2 kB: what is written beyond fails as on a full disk."""


def after_training(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Lets something happen when a program is trained and tested, and nothing is written yet."""
    test = program._test

    def acting(*args: Any, **options: Any) -> Any:
        found = test(*args, **options)
        action()
        return found

    monkeypatch.setattr(program, "_test", acting)


@pytest.fixture
def disk() -> Iterator[Callable[[str], None]]:
    """Makes the disk "full", where no file can grow beyond 2 kB, or "free" again."""
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    limits = {"full": (2000, free[1]), "free": free}
    yield lambda state: resource.setrlimit(resource.RLIMIT_FSIZE, limits[state])
    resource.setrlimit(resource.RLIMIT_FSIZE, free)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, disk: Callable[[str], None]
) -> None:
    # Of its files only those of the parameters are large: there is no attention.
    more = [*words, "--scores=none", "--seeds=3", f"--out={out}"]
    before = contents(out / "runs")
    with monkeypatch.context() as patch:
        after_training(patch, lambda: disk("full"))
        said = command(*more)
        disk("free")
    assert "/parameters: the parameters cannot be written (File too large)" in said.complaint
    assert {name: contents(out / "runs")[name] for name in before} == before, "finished runs are as they were"
    assert len(list(out.glob("runs/*/result.json"))) == 4
    said = command(*more)
    assert said.code == 0, said.err
    assert len(list(out.glob("runs/*/result.json"))) == 5
    assert {name: contents(out / "runs")[name] for name in before} == before
    left = [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    assert {path.name for path in left} <= {".lock"}, "nothing half written is left"


def test_a_full_disk_for_prepared_data_is_one_line(words: list[str], tmp_path: Path) -> None:
    process = alone("-c", LIMITED, str(SCRIPT), *words, f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}")
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith(f"compare_scores: --data_dir={tmp_path / 'data'}: cannot be written (")
    assert "File too large" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_full_is_one_line(words: list[str], out: Path) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, str(SCRIPT), *words, f"--out={out}"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    *_, last = process.stderr.splitlines()
    assert process.returncode == 2
    assert last == "compare_scores: the output: cannot be written (No space left on device); once it can, go on"


def test_an_output_directory_that_is_removed_in_mid_run_is_one_line(
    words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*words, "--scores=dot", "--seeds=3", f"--out={out}"]
    with monkeypatch.context() as patch:
        after_training(patch, lambda: shutil.rmtree(out))
        assert "was removed while the run was trained; start the command again" in command(*more).complaint
    assert not list(out.glob("runs/*/result.json")), "no result without the rest"


@pytest.mark.parametrize("name", ["study.json", "results.csv", "report.html"])
def test_what_cannot_be_replaced_is_named(
    name: str, words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, replace = contents(out / "runs"), os.replace

    def failing(source: str, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(results.os, "replace", failing)
    message = f"{out / name}: cannot be written (No space left on device); once it can, the same command goes on"
    assert command(*words, f"--out={out}").complaint == message
    assert contents(out / "runs") == before
    assert not list(out.glob(f".{name}.*"))
