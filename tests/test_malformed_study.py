"""Files that were edited or damaged, and places that cannot be written: nothing that is there is lost."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from fuzzing import BYTES, SCRIPT, Damage, command, contents, noise, retyped

import attn_jax
from attn_jax import program, results
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


def first_run(out: Path, score: str = "dot") -> Path:
    """A finished run with that score."""
    runs = sorted((out / "runs").iterdir())
    return next(run for run in runs if json.loads((run / "config.json").read_text())["score"]["name"] == score)


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


CLOSED = {
    "data": ("compare_scores", "--dataset=semantic_parsing/jobs", "--manual_dir=closed/data", "--out=out"),
    "prepared data": ("compare_scores", "--dataset=synthetic/copy", "--data_dir=closed/data", "--out=out"),
    "output": ("compare_scores", "--dataset=synthetic/copy", "--out=closed/out", "--dry_run"),
    "run": ("translate", "--run=closed/run"),
}


@pytest.mark.parametrize("case", CLOSED)
def test_a_path_below_a_directory_that_may_not_be_entered_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    monkeypatch.chdir(tmp_path)
    script, *flags = CLOSED[case]
    process = alone(str(SCRIPT.with_name(f"{script}.py")), *flags, ATTN_JAX_DATA=str(tmp_path / "prepared"))
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith(f"{script}: ")
    assert "closed/" in process.stderr
    assert "Permission denied" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
