"""experiments/align.py as a user calls it, on a run that was trained to reverse its source."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attn_jax import alignment, data, study, sweep
from attn_jax import reuse as library
from attn_jax.data.alignments import Gold

ROOT = Path(__file__).resolve().parent.parent

# Every call of the script in one process: flags are parsed anew each time.
CALLS = """
import contextlib, importlib.util, io, json, sys
from absl.testing import flagsaver
from attn_jax import cli

specification = importlib.util.spec_from_file_location("align", sys.argv[1])
script = importlib.util.module_from_spec(specification)
sys.modules["align"] = script
specification.loader.exec_module(script)
answers = []
for words in json.load(sys.stdin):
    out, errors = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.run(script.main, doc=script.__doc__, argv=["align.py", *words])
        except SystemExit as end:
            answers.append([end.code or 0, out.getvalue(), errors.getvalue()])
print(json.dumps(answers))
"""

DATA = "synthetic/reverse?vocabulary=8&max_length=6&examples=1000&test_examples=60"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two trained runs, a run without attention, texts and gold links."""
    path = tmp_path_factory.mktemp("align")
    dataset = data.load(DATA, data_dir=str(path / "data"))
    changes = {"embedding.size": 32, "encoder.size": 32, "decoder.size": 64, "score": "additive"}
    changes |= {
        "optim.learning_rate": 0.01,
        "train.steps": 300,
        "train.eval_every": 300,
        "train.batch_size": 64,
        "train.select": "last",
    }
    variants = sweep.variants(dataset, changes)
    study.run(variants, seeds=[0, 1], out=str(path), corpora=study.Corpora(lambda name: dataset))
    by_seed = {json.loads((run / "config.json").read_text())["seed"]: run for run in (path / "runs").iterdir()}
    for seed, run in by_seed.items():
        run.rename(path / f"seed{seed}")
    blind = sweep.variants(dataset, {**changes, "score.name": "none", "train.steps": 1, "train.eval_every": 1})
    study.run(blind, seeds=[0], out=str(path / "other"), corpora=study.Corpora(lambda name: dataset))
    next((path / "other" / "runs").iterdir()).rename(path / "blind")

    pairs = [(example.source, example.target) for example in dataset.splits["test"]]
    sizes = [len(source.split()) for source, _ in pairs]
    lines = {
        "a.src": [source for source, _ in pairs],
        "a.trg": [target for _, target in pairs],
        "upper.trg": [target.upper() for _, target in pairs],
        "gold": [" ".join(f"{n - 1 - j}-{j}" for j in range(n)) for n in sizes],
        "gappy.src": [pairs[0][0], "", pairs[2][0], pairs[3][0]],
        "gappy.trg": [pairs[0][1], pairs[1][1], "", pairs[3][1]],
        "short.trg": [target for _, target in pairs[:-1]],
        "outside": ["0-9", *([""] * (len(pairs) - 1))],
        "wrong": ["0-0", "1=1", *([""] * (len(pairs) - 2))],
        "few": ["0-0"],
    }
    for name, rows in lines.items():
        (path / name).write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    (path / "broken.src").write_bytes(b"1 2\n\xff\n")
    return path


TEXT = ["--source=a.src", "--target=a.trg"]
RIGHT = {
    "both seeds": ["--run=seed0", "--run=seed1", *TEXT, "--gold_links=gold"],
    "input": ["--run=seed0", *TEXT, "--gold_links=gold", "--offset=input"],
    "links": ["--run=seed0", "--source=gappy.src", "--target=gappy.trg"],
    "file": ["--run=seed1", *TEXT, "--gold_links=gold", "--output=made/links", "--method=one_to_one"],
    "strict": ["--run=seed1", *TEXT, "--gold_links=gold", "--threshold=1"],
}
WRONG = {
    "run is missing": (TEXT, "--run is missing"),
    "unknown run": (["--run=seed7", *TEXT], "seed7: no finished run there (result.json is missing)"),
    "no attention": (["--run=blind", *TEXT], "--run=blind: score=none: a run without attention has no weights"),
    "nothing to align": (["--run=seed0", "--source=a.src"], "nothing to align: give --gold=alibi or bicici, or --so"),
    "gold and own text": (["--run=seed0", "--gold=alibi", *TEXT], "--gold and --source: align a published set or own"),
    "unknown gold": (["--run=seed0", "--gold=alibo"], "unknown value of --gold 'alibo': did you mean 'alibi'?"),
    "direction": (["--run=seed0", "--gold=bicici", "--manual_dir=gold_dir"], "give --source_language=de or en"),
    "language": (
        ["--run=seed0", "--gold=bicici", "--source_language=fr"],
        "unknown source language 'fr': (allowed: de",
    ),
    "no gold files": (["--run=seed0", "--gold=bicici", "--manual_dir=nowhere"], "nowhere: no such directory"),
    "own text": (["--run=seed0", *TEXT, "--source_language=de"], "--source_language is for published sets"),
    "ragged": (["--run=seed0", "--source=a.src", "--target=short.trg"], "a.src has 60 lines but short.trg has 59"),
    "outside": (["--run=seed0", *TEXT, "--gold_links=outside"], "outside:1: link 0-9 points outside its pair of"),
    "no link": (["--run=seed0", *TEXT, "--gold_links=wrong"], "wrong:2: '1=1' is no link: expected i-j (sure)"),
    "few links": (["--run=seed0", *TEXT, "--gold_links=few"], "few has 1 lines of links, but there are 60 pairs"),
    "missing file": (["--run=seed0", "--source=none.src", "--target=a.trg"], "none.src: cannot be read"),
    "broken": (["--run=seed0", "--source=broken.src", "--target=a.trg"], "broken.src:2: not valid UTF-8"),
    "twice": (["--run=seed0", "--run=./seed0", *TEXT, "--gold_links=gold"], "seed0: given 2 times"),
    "two outputs": (["--run=seed0", "--run=seed1", *TEXT], "links are written of one run, but there are 2"),
    "output": (["--run=seed0", *TEXT, "--output=data"], "--output=data: cannot be written (it is a directory)"),
    "threshold": (["--run=seed0", *TEXT, "--threshold=2"], "--threshold=2: expected"),
}


@pytest.fixture(scope="module")
def answers(place):
    """Exit code, stdout and stderr of every call."""
    calls = {**RIGHT, **{name: words for name, (words, _) in WRONG.items()}}
    # One of the wrong calls reads published files: these stand in for them.
    gold = place / "gold_dir" / "bicici_de_en_align"
    gold.mkdir(parents=True)
    for name, line in {"test.de": "ein haus\n", "test.en": "a house\n", "de-en.wa": "0-0 1-1\n"}.items():
        (gold / name).write_text(line)
    environment = {**os.environ, "ATTN_JAX_DATA": str(place / "data"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    calls = {
        name: [*words, *(["--manual_dir=gold_dir"] if name == "language" else [])] for name, words in calls.items()
    }
    process = subprocess.run(
        [sys.executable, "-c", CALLS, ROOT / "experiments" / "align.py"],
        input=json.dumps(list(calls.values())),
        capture_output=True,
        text=True,
        env=environment,
        cwd=place,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return dict(zip(calls, json.loads(process.stdout), strict=True))


def rows_of(text, start):
    """The numbers of the row that starts so."""
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    return [float(word) for word in row[len(start) :].split() if word.replace(".", "").isdigit()]


def test_a_run_that_reverses_is_aligned_in_reverse(answers, place):
    code, out, errors = answers["both seeds"]
    assert (code, errors) == (0, "")
    words = sum(len(line.split()) for line in (place / "a.src").read_text().splitlines())
    assert out.startswith(f"a.src: 60 pairs, {words} sure, 0 possible links; method argmax, offset predicted")
    found = {seed: rows_of(out, f"seed{seed} seed={seed}") for seed in (0, 1)}
    for aer, precision, recall, links, *unknown in found.values():
        # Every target word has a link, so the three figures say the same.
        assert aer < 3
        assert precision == recall == pytest.approx(100 - aer, abs=0.011)
        assert (links, unknown) == (words, [0, 0])
    mean, low, high = rows_of(out, "mean of 2 seeds, 95 % interval")
    assert mean == pytest.approx((found[0][0] + found[1][0]) / 2, abs=0.006)
    assert low <= mean <= high

    sizes = [len(line.split()) for line in (place / "a.src").read_text().splitlines()]
    # Only the middle of an odd length is on both diagonals; one word of n is drawn with probability 1/n.
    assert rows_of(out, "diagonal")[0] == pytest.approx(100 * (1 - sum(n % 2 for n in sizes) / words), abs=0.006)
    assert rows_of(out, "uniform")[0] == pytest.approx(100 * (1 - len(sizes) / words), abs=0.006)

    code, out, _ = answers["input"]
    assert code == 0
    assert rows_of(out, "seed0 seed=0")[0] > 60


def test_links_of_own_text_line_by_line(answers, place):
    code, out, errors = answers["links"]
    assert (code, errors) == (0, "")
    lines = out.split("\n")
    assert len(lines) == 5
    assert lines[1] == lines[2] == lines[4] == ""
    texts = (place / "a.src").read_text().splitlines()
    for line, text in ((lines[0], texts[0]), (lines[3], texts[3])):
        n = len(text.split())
        pairs = [tuple(map(int, link.split("-"))) for link in line.split(" ")]
        assert pairs == sorted(pairs)
        assert sum(i + j == n - 1 for i, j in pairs) >= n - 1

    code, out, _ = answers["file"]
    assert code == 0
    written = (place / "made" / "links").read_text().splitlines()
    run = library.load_run(place / "seed1")
    pairs = list(zip(texts, (place / "a.trg").read_text().splitlines(), strict=True))
    expected = run.align(pairs, method="one_to_one")
    assert [{tuple(map(int, link.split("-"))) for link in line.split()} for line in written] == expected
    gold = [
        Gold(*[frozenset(tuple(map(int, link.split("-"))) for link in line.split())] * 2)
        for line in (place / "gold").read_text().splitlines()
    ]
    aer = alignment.error(alignment.count(expected, gold))["aer"]
    assert rows_of(out, "seed1 seed=1")[0] == pytest.approx(aer, abs=0.006)


def test_a_threshold_above_all_weights_leaves_no_link(answers):
    code, out, _ = answers["strict"]
    assert code == 0
    (row,) = [line for line in out.splitlines() if line.startswith("seed1")]
    assert row.split()[2:6] == ["100.00", "nan", "0.00", "0"]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_told_in_one_line(answers, case):
    code, out, errors = answers[case]
    assert WRONG[case][1] in errors
    assert errors.startswith("align: ")
    assert (code, out, errors.count("\n")) == (2, "", 1)
