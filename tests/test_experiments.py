"""The experiments as a user calls them."""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attn_jax.normalizers import NORMALIZERS
from attn_jax.scores import NONE, SCORES

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "experiments").glob("*.py"))
STUDIES = [name for name in SCRIPTS if "cli_flags.define(" in (ROOT / "experiments" / name).read_text("utf-8")]

FILES = {
    "good.src": b"a b\nb a\nc\n",
    "good.trg": b"x y\ny x\nz\n",
    "two_lines.trg": b"x y\ny x\n",
    "broken.trg": b"x y\ny \xff\xfe x\nz\n",
    "empty.trg": b"",
    "a_file": b"",
}
GOOD = "--files=test=good.src,good.trg"
TEXT = "--dataset=parallel_text"
COPY = "--dataset=synthetic/copy?examples=50&test_examples=10"

WRONG = {
    "unknown data set": (["--dataset=scna/simple"], "unknown data set 'scna/simple': did you mean 'scan/simple'?"),
    "unknown score": ([COPY, "--scores=dot,addtive"], "unknown score 'addtive': did you mean 'additive'?"),
    "ragged files": ([TEXT, "--files=train=good.src,two_lines.trg", GOOD], "two_lines.trg"),
    "broken UTF-8": ([TEXT, "--files=train=good.src,broken.trg", GOOD], "broken.trg:2:"),
    "missing directory": (["--dataset=semantic_parsing/jobs", "--manual_dir=nowhere"], "nowhere: no such directory"),
    "missing file": ([TEXT, "--files=train=good.src,none.trg", GOOD], "none.trg"),
    "files of a set of its own": ([COPY, GOOD], "--files are for parallel_text alone; synthetic/copy"),
    "a field that nothing uses": (
        [COPY, "--scores=dot,none", "--set=decode.beam_size=10"],
        "--set=decode.beam_size=10: has no effect on any variant",
    ),
    "a field of another schedule": ([COPY, "--set=optim.decay_factor=0.5"], "--set=optim.decay_factor=0.5: has no"),
    "endless": ([COPY, "--epochs=1e308"], "train.epochs=1e+308: more than 2147483647 steps"),
    "unknown field": ([COPY, "--set=optim.learning_rat=1"], "did you mean optim.learning_rate?"),
    "wrong type": ([COPY, "--set=train.batch_size=many"], "train.batch_size='many': expected an integer"),
    "empty split": ([TEXT, "--files=train=good.src,empty.trg", GOOD], "empty.trg: the file is empty"),
    "directory of own files": ([TEXT, "--manual_dir=.", GOOD], "--manual_dir is for data sets with files of their own"),
    "no dev split": (
        [TEXT, "--files=train=good.src,good.trg", GOOD, "--set=train.patience=2"],
        "train.patience=2: parallel_text has no dev split",
    ),
    "zero seeds": ([COPY, "--seeds=0"], "--seeds=0: expected"),
    "out is a file": ([COPY, "--scores=dot", "--out=a_file"], "--out=a_file: cannot be written"),
    "out cannot be": (
        [COPY, "--scores=dot", "--out=/proc/attn_jax/out"],
        "--out=/proc/attn_jax/out: cannot be written",
    ),
    "unknown sweep": ([COPY, "--sweep=placement"], "unknown sweep 'placement': did you mean 'placements'?"),
    "tuning without dev": (
        [TEXT, "--files=train=good.src,good.trg", GOOD, "--tune=optim.learning_rate=1,2"],
        "--tune: parallel_text has no dev split to choose by",
    ),
    "forecast of what cannot be": ([COPY, "--scores=dot", "--dry_run", "--set=decoder.size=6"], "needs equal widths"),
    "widths": ([COPY, "--scores=dot", "--set=decoder.size=6"], "score 'dot' needs equal widths"),
}


def call(directory, script, *flags):
    environment = {**os.environ, "ATTN_JAX_DATA": str(directory / "data"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    command = [sys.executable, ROOT / "experiments" / script, *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory, timeout=120)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The process of every wrong call, and what it left in its directory."""

    def one(case):
        flags, _ = WRONG[case]
        directory = tmp_path_factory.mktemp(case.replace(" ", "_"))
        for name, content in FILES.items():
            (directory / name).write_bytes(content)
        if not any(flag.startswith("--out") for flag in flags):
            flags = [*flags, "--out=out"]
        return call(directory, "compare_scores.py", *flags), {path.name for path in directory.iterdir()}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(WRONG, pool.map(one, WRONG), strict=True))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_in_one_line(answers, case):
    process, left = answers[case]
    assert WRONG[case][1] in process.stderr
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("compare_scores: ")
    assert process.returncode == 2
    assert process.stdout == ""
    assert left - {"data"} == set(FILES), "nothing is written but prepared data"


PLAN = """
import json, runpy, sys
from attn_jax import study, sweep

def run(variants, reference=(), **_):
    distinct, _ = sweep.merged(variants)
    shown = [[c.score.name, c.cell.name, c.train.epochs, c.train.steps, c.optim.learning_rate] for c in distinct]
    print(json.dumps([shown, reference]))
    sys.exit()

study.run = run
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


LEGAL = """
import runpy, sys
from attn_jax import combinators, sweep
from attn_jax.config import Config, override
from attn_jax.seq2seq import with_memory_size

runpy.run_path(sys.argv[1], run_name="experiment")
for name, function in combinators.SWEEPS.items():
    print(name, len(sweep.merged(with_memory_size(override(Config(), choice), 128) for choice in function())[0]))
"""


def plan(directory, script, *flags):
    """What the study of an experiment would train, [score, cell, epochs, steps, rate] each, and its references."""
    environment = {**os.environ, "ATTN_JAX_DATA": str(directory / "data")}
    command = [sys.executable, "-c", PLAN, ROOT / "experiments" / script, *flags, "--out=out"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_a_score_that_is_set_is_the_only_one(tmp_path):
    variants, _ = plan(tmp_path, "compare_scores.py", COPY, "--set=score=dot", "--cells=gru,lstm", "--steps=5")
    assert [variant[:2] for variant in variants] == [["dot", "gru"], ["dot", "lstm"]]
    variants, _ = plan(tmp_path, "compare_scores.py", COPY, "--steps=5")
    assert [variant[0] for variant in variants] == list(SCORES)


SWEEP = """
from attn_jax.combinators import named, values

@named
def mine():
    \"\"\"Two rates.\"\"\"
    return values("optim.learning_rate", 0.1, 0.2)
"""


def test_named_sweeps(tmp_path):
    (tmp_path / "mine.py").write_text(SWEEP)
    flags = (COPY, "--steps=5", "--load=mine.py", "--sweep=mine")
    variants, _ = plan(tmp_path, "compare_scores.py", *flags, "--sweep=placements")
    assert [(score, rate) for score, _, _, _, rate in variants] == [
        (score, rate) for rate in (0.1, 0.2) for _ in range(3) for score in ("general", "additive")
    ]
    variants, _ = plan(tmp_path, "lake_baroni_2018.py", "--dataset=length", "--load=mine.py", "--sweep=mine")
    assert [variant[-1] for variant in variants] == [0.1, 0.2]
    told = call(tmp_path, "compare_scores.py", "--load=mine.py", "--help").stdout
    assert "mine: Two rates." in told
    assert "scores: Every score, and no attention." in told


def test_every_named_sweep_is_legal_where_widths_are_equal():
    names = subprocess.run(
        [sys.executable, "-c", LEGAL, ROOT / "experiments" / "compare_scores.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    counts = dict(zip(names[::2], map(int, names[1::2]), strict=True))
    expected = {"cells_by_scores": 12, "placements": 6, "feedings": 6, "luong_2015": 7, "from_fixed_to_attention": 4}
    assert counts == expected | {"scores": len(SCORES) + 1, "mechanisms": 24}


def test_dong_and_lapata(tmp_path, manual_dir):
    script, data = "dong_lapata_2016.py", f"--manual_dir={manual_dir}"
    variants, references = plan(tmp_path, script, data, "--dataset=geo", "--sweep=optim.learning_rate=0.01,0.02")
    assert variants == [[s, "lstm", n, 0, rate] for s, n in (("dot", 90), ("none", 160)) for rate in (0.01, 0.02)]
    # Those of JOBS are not published figures but those of the checkpoint; each counts for its own data only.
    assert [(figure["dataset"], figure["value"]) for figure in references] == [
        ("semantic_parsing/geo", value) for value in (84.6, 72.9, 84.64, 73.2)
    ]
    variants, references = plan(tmp_path, script, data, "--dataset=jobs", "--epochs=2")
    assert variants == [[score, "lstm", 2, 0, 0.01] for score in ("dot", "none")]
    assert [(figure["dataset"], figure["value"]) for figure in references] == [
        ("semantic_parsing/jobs", value) for value in (88.6, 78.6)
    ]
    for flag, message in {
        "--set=score=general": "score: this experiment compares dot with none",
        "--sweep=score=dot,general": "score: this experiment compares dot with none",
        "--sweep=train.epochs=1,2": "train.epochs: the publication's epochs differ by variant",
        "--tune=score=dot,general": "score: this experiment compares dot with none",
        "--files=train=a.tsv": "unknown flag --files",
    }.items():
        process = call(tmp_path, script, data, flag, "--out=out")
        assert (process.returncode, process.stderr.count("\n")) == (2, 1)
        assert process.stderr.startswith(f"dong_lapata_2016: {message}")


def test_lake_and_baroni(tmp_path):
    script = "lake_baroni_2018.py"
    variants, references = plan(tmp_path, script, "--dataset=simple")
    expected = [("none", "lstm"), ("none", "rnn"), ("additive", "rnn")]
    assert variants == [[score, cell, 10.0, 100_000, 0.001] for score, cell in expected]
    assert [(figure["variant"]["cell.name"], figure["value"]) for figure in references] == [
        ("lstm", 99.7),
        ("rnn", 1.5),
        ("rnn", 59.7),
    ]
    variants, references = plan(tmp_path, script, "--dataset=simple", "--cells=gru,rnn", "--steps=7")
    assert variants == [[score, cell, 10.0, 7, 0.001] for score in ("none", "additive") for cell in ("gru", "rnn")]
    assert [figure["value"] for figure in references] == [99.7, 1.5, 59.7]
    for flag, message in {
        "--set=score=dot": "score: this experiment has its own",
        "--cells=tree": "--cells: unknown cell 'tree'",
    }.items():
        process = call(tmp_path, script, flag, "--out=out")
        assert (process.returncode, process.stderr.count("\n")) == (2, 1)
        assert process.stderr.startswith(f"lake_baroni_2018: {message}"), process.stderr


def test_questions_of_the_literature(tmp_path, manual_dir):
    """What is compared by itself, and that a flag takes the place of what it names."""
    data = f"--manual_dir={manual_dir}"
    variants, _ = plan(tmp_path, "bottleneck.py", data, "--dataset=multi30k/de_en")
    assert [variant[:3] for variant in variants] == [[score, "gru", 6.0] for score in ("none", "additive")]
    variants, _ = plan(tmp_path, "cells.py", data, "--cells=gru,rnn", "--steps=9")
    expected = [[score, cell] for score in ("none", "additive") for cell in ("gru", "rnn")]
    assert [variant[:2] for variant in variants] == expected * 2
    variants, _ = plan(tmp_path, "placement.py", data)
    assert len(variants) == 9 + 6 + 6, "where the context enters the cells it is not fed again"
    for count, *flags in (
        (12, "--placements=before,between"),
        (15, "--placements=after,before"),
        (12, "--input_feedings=none,context"),
        (3, "--set=input_feeding=context"),
        (4, "--sweep=placement=before,after", "--combines=tanh,add", "--set=input_feeding=none"),
    ):
        variants, _ = plan(tmp_path, "placement.py", data, *flags)
        assert len(variants) == count, flags
    variants, _ = plan(tmp_path, "normalizers.py", data, "--scores=dot")
    assert [variant[0] for variant in variants] == ["dot"] * len(NORMALIZERS)
    variants, _ = plan(tmp_path, "sigmorphon_2020_g2p.py", data, "--dataset=kor", "--hidden_size=32", "--seeds=1")
    assert len(variants) == 8 * len(SCORES)


def test_parts_of_a_grid_with_corners_left_out(tmp_path):
    flags = (COPY, "--hidden_size=4", "--seeds=1", "--out=out", "--dry_run")
    process = call(tmp_path, "placement.py", *flags, "--placements=before,between", "--combines=tanh")
    assert process.returncode == 0, process.stderr
    assert "4 variant(s), 4 group(s), 4 run(s), 0 of them done" in process.stdout
    # What is asked for by name, and nothing else, is refused by name.
    process = call(tmp_path, "placement.py", *flags, "--placements=before", "--set=input_feeding=context")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert process.stderr.startswith("placement: placement=before with input_feeding=context: ")


REVERSE = "--dataset=synthetic/reverse?vocabulary=5&max_length=5&test_max_length=11&examples=40&test_examples=6"


def test_vanishing_gradients(tmp_path):
    # At this learning rate no parameter moves: what is measured after training is what training began with.
    sizes = ("--hidden_size=4", "--steps=2", "--batch_size=4", "--learning_rate=1e-30")
    flags = (REVERSE, "--cells=rnn", "--seeds=2", *sizes, "--sentences=4", "--out=out")
    process = call(tmp_path, "vanishing_gradients.py", *flags)
    assert process.returncode == 0, process.stderr
    (path,) = (tmp_path / "out" / "curves").iterdir()
    found = json.loads(path.read_text())
    curves = {}
    for row in found["rows"]:
        curve = curves.setdefault((row["series"], row["panel"]), {})
        curve[row["x"]] = [row["low"], row["y"], row["high"]]
    for series in ("none", "additive"):
        begun = curves[series, "at initialisation"]
        assert begun.keys() >= set(range(1, 7))
        assert begun[1] == pytest.approx([1, 1, 1])
        assert all(low < y < high for x, (low, y, high) in begun.items() if x > 1)
        assert curves[series, "after training"] == begun
        # The answer to step t of a reversal is 2 t + 1 steps away.
        answers = curves[series, "after training, of the answer alone"]
        assert answers.keys() == {x for x in begun if x % 2}
        assert answers[1] == begun[1]
        assert answers[3] != begun[3]
    assert {row[0] for row in found["table"]["rows"]} == {"none", "additive"}
    assert "initial: 1 % at   trained: 1 % at   answer: 1 % at   initial: factor" in process.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Error that arrives at source symbols" in page
    assert page.count("experiments/vanishing_gradients.py") == 1


def test_vanishing_gradients_refuses_what_has_no_distance(tmp_path):
    for flag, message in {
        "--set=encoder=bi": "encoder.name: distances are known of recurrent encoders that read",
        "--sweep=model=transformer,recurrent": "model: distances are known of recurrent encoders that read",
        "--dataset=synthetic/sort": "unknown data set of this experiment 'synthetic/sort'",
        "--set=embedding=onehot": "embedding=onehot: there are no source vectors",
        "--sentences=0": "--sentences=0: expected",
        "--cells=rnm": "--cells: unknown cell 'rnm': did you mean 'rnn'?",
    }.items():
        data = () if flag.startswith("--dataset") else (REVERSE,)
        process = call(tmp_path, "vanishing_gradients.py", *data, flag, "--out=out")
        assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
        assert process.stderr.startswith(f"vanishing_gradients: {message}"), process.stderr
        assert not (tmp_path / "out").exists()


def test_a_shard_that_tries_values_leaves_the_choice_to_a_second_call(tmp_path):
    flags = (COPY, "--scores=dot", "--hidden_size=4", "--steps=2", "--seeds=1", "--out=out", "--shard=0/2")
    process = call(
        tmp_path,
        "compare_scores.py",
        *flags,
        *("--tune=optim.learning_rate=0.1,0.2", "--tune_seeds=1", "--runs_per_program=1"),
    )
    assert (process.returncode, process.stdout) == (0, "")
    assert process.stderr.endswith(
        "1 of 2 runs that are tried have no result yet and are left to other shards; when all have one, the same "
        "command trains what is chosen\n"
    )
    process = call(tmp_path, "compare_scores.py", *flags, "--dry_run")
    assert process.returncode == 2
    assert process.stderr == (
        "compare_scores: --shard=0/2 and --dry_run: give one of them; a forecast is of all programs\n"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(tmp_path, script):
    process = call(tmp_path, script, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    study = ("--dataset", "--seeds", "--out", "--set", "--sweep", "--manual_dir", "--hidden_size")
    others = {"cost.py": ("--out", "--lengths", "--scores", "--load")}
    for flag in study if script in STUDIES else others.get(script, ("--run",)):
        assert flag in process.stdout
    if script in STUDIES:
        questions = (ROOT / "README.md").read_text("utf-8").split("## Questions")[1].split("\n|")[0]
        told = re.findall(r"`(--\w+)`", questions)
        assert {"--set", "--sweep", "--tune"} <= {*told}
        assert all(f"  {flag}" in process.stdout for flag in told)
    if script == "compare_scores.py":
        (line,) = [line for line in process.stdout.splitlines() if line.strip().startswith("--scores=A,B")]
        following = process.stdout.split(line)[1].split("--")[0]
        assert all(name in line + following for name in [*SCORES, NONE])
    assert not list(tmp_path.iterdir())
