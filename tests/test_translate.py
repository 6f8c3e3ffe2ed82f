"""experiments/translate.py as a user calls it."""

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import attn_jax
from attn_jax import study

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "experiments" / "translate.py")]
ENVIRONMENT = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}

TEXT = b"a b\n\nc zz a\r\n  \nd\nb b a c"
SENTENCES = {0: "a b", 2: "c zz a", 4: "d", 5: "b b a c"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two seeds of a tiny study, and a run without attention."""
    out = tmp_path_factory.mktemp("study")
    variants = [tiny.config(score=score, cell="rnn", decode__max_length=5) for score in ("dot", "none")]
    study.run(variants, seeds=[0, 1], out=str(out), corpora=study.Corpora(lambda name: tiny.dataset()))
    found = {"dot": [], "none": []}
    for folder in sorted((out / "runs").iterdir()):
        found[attn_jax.load_run(folder).config.score.name].append(folder)
    return found


def call(*flags, text=b"", cwd=None):
    return subprocess.run([*COMMAND, *flags], input=text, capture_output=True, env=ENVIRONMENT, cwd=cwd, timeout=120)


def test_lines_in_lines_out(folders, tmp_path):
    runs = [attn_jax.load_run(folder) for folder in folders["dot"]]
    both = [f"--run={folder}" for folder in folders["dot"]]
    (tmp_path / "source").write_bytes(b"\xef\xbb\xbf" + TEXT)
    files = [f"--input={tmp_path}/source", f"--output={tmp_path}/target", f"--weights={tmp_path}/weights"]
    beams = {"beam_size": 3, "length_penalty": "gnmt", "alpha": 1.0, "max_length": 4}
    calls = {
        "plain": (both[0], "--unk_replace"),
        "n best": (*both, *files, "--n_best=2", *(f"--{name}={value}" for name, value in beams.items())),
        "samples": (both[1], "--temperature=0.9", "--seed=4", "--n_best=2", "--batch_size=1"),
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = dict(zip(calls, pool.map(lambda flags: call(*flags, text=TEXT), calls.values()), strict=True))
    assert [(process.returncode, process.stderr) for process in done.values()] == [(0, b"")] * 3

    numbers, texts = list(SENTENCES), list(SENTENCES.values())
    expected = dict(zip(numbers, runs[0].decode(texts, unk_replace=True), strict=True))
    assert done["plain"].stdout.decode() == "".join(f"{expected[n].text if n in expected else ''}\n" for n in range(6))

    assert done["n best"].stdout == b""
    found = attn_jax.ensemble(runs).decode(texts, n_best=2, **beams)
    rows = [row.split(" ||| ") for row in (tmp_path / "target").read_text().splitlines()]
    wanted = {n: [o.text for o in outputs] for n, outputs in zip(numbers, found, strict=True)}
    assert [row[:2] for row in rows] == [[str(n), text] for n in range(6) for text in wanted.get(n, [""])]
    numbers_shown = np.array([row[2:] for row in rows if int(row[0]) in SENTENCES], float)
    np.testing.assert_allclose(
        numbers_shown, [(o.score, o.log_probability) for outputs in found for o in outputs], rtol=1e-4
    )
    shown = [json.loads(line) for line in (tmp_path / "weights").read_text().splitlines()]
    assert [(one["line"] - 1, one["rank"]) for one in shown] == [(n, rank) for n in numbers for rank in (1, 2)]
    for one, output in zip(shown, (o for outputs in found for o in outputs), strict=True):
        assert (one["source"], one["target"]) == (output.source, output.tokens)
        np.testing.assert_allclose(one["weights"], output.weights, atol=1e-4)

    translator = attn_jax.ensemble(runs[1:]).translator(name="sample", temperature=0.9, seed=4)
    wanted = translator(texts, n_best=2, numbers=numbers)
    rows = [row.split(" ||| ") for row in done["samples"].stdout.decode().splitlines()]
    drawn = [row[1] for row in rows if int(row[0]) in SENTENCES]
    assert drawn == [output.text for outputs in wanted for output in outputs]


def test_a_line_is_answered_before_the_next_one_comes(folders):
    flags = [*COMMAND, f"--run={folders['none'][0]}"]
    with subprocess.Popen(flags, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        for line in (b"a b\n", b"\n", b"c\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_wrong_use_is_told_in_one_line(folders, tmp_path):
    (tmp_path / "broken").write_bytes(b"a b\nc \xff\n")
    (tmp_path / "good").write_bytes(b"a\n")
    run, none = f"--run={folders['dot'][0]}", f"--run={folders['none'][0]}"
    wrong = {
        (run, "--input=broken", "--output=out"): "broken:2: not valid UTF-8 (byte 0xff)",
        (run, "--input=missing"): "missing: cannot be read (No such file or directory)",
        (run, "--input=good", "--output=no/out"): "no/out: cannot be written (No such file or directory)",
        (none, "--weights=w"): "--weights with score=none",
        (none, "--unk_replace"): "unk_replace with score=none",
        (run, "--sample", "--beam_size=2"): "decode.beam_size belongs to decode=beam, and the search is sample",
        (run, "--run=nowhere"): "nowhere: no finished run there",
        ("--beam_size=2",): "--run is missing: OUT/runs/ID, or an exported file; may be repeated\n",
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda flags: call(*flags, text=b"a \xff\n", cwd=tmp_path), wrong))
    for process, message in zip(done, wrong.values(), strict=True):
        assert process.stderr.decode().startswith(f"translate: {message}")
        assert (process.returncode, process.stdout, process.stderr.count(b"\n")) == (2, b"", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "good"}, "nothing is written"
    late = call(run, text=b"a\n" * 20000 + b"\xff\n")
    assert late.stderr.decode().startswith("translate: standard input:20001: not valid UTF-8")
    assert (late.returncode, late.stdout.count(b"\n") < 20000) == (2, True)


def test_help_is_quick_and_lists_the_flags():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert process.returncode == 0
    assert all(f"--{name}=" in process.stdout for name in ("run", "beam_size", "n_best", "weights", "temperature"))
    assert " jax\n" not in process.stderr, "help needs no JAX"
