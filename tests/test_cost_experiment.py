"""experiments/cost.py as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A call of the script for each line of flags, in one process: flags are parsed anew each time.
CALLS = """
import contextlib, importlib.util, io, json, sys
from absl.testing import flagsaver
from attn_jax import cli

specification = importlib.util.spec_from_file_location("experiment", sys.argv[1])
script = importlib.util.module_from_spec(specification)
sys.modules["experiment"] = script
specification.loader.exec_module(script)
for line in sys.stdin:
    out, errors, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["cost.py", *json.loads(line)]
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            cli.run(script.main, doc=script.__doc__, argv=sys.argv)
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), errors.getvalue()]), flush=True)
"""

SMALL = ["--models=recurrent", "--scores=dot", "--windows=global", "--batch_size=2", "--hidden_size=4"]
SMALL += ["--vocabulary=8", "--repetitions=2", "--lengths=2,30", "--target_length=2"]
PANELS = [f"{phase}, source {growth}" for phase in ("training", "decoding") for growth in ("and target", "alone")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("cost")
    (path / "a_file").touch()
    return path


@pytest.fixture(scope="module")
def call(place):
    """Exit code, stdout and stderr of a call with these flags."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    command = [sys.executable, "-c", CALLS, ROOT / "experiments" / "cost.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=place, env=environment, **pipes) as process:

        def answer(*words):
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield answer
        process.stdin.close()


def read(place, out, name):
    return json.loads((place / out / "curves" / f"{name}.json").read_text("utf-8"))


def test_curves_of_time_and_memory_and_what_is_left_out(call, place):
    code, out, errors = call("--out=whole", *SMALL)
    assert (code, errors) == (0, "")
    assert out.endswith("whole/report.html\n")
    seconds, memory = (read(place, "whole", name) for name in ("cost-time", "cost-memory"))
    for found in (seconds, memory):
        assert [row["panel"] for row in found["rows"]] == [panel for panel in PANELS for _ in (2, 30)]
        assert [row["x"] for row in found["rows"]] == [2, 30] * 4
        assert {row["series"] for row in found["rows"]} == {"dot, lstm"}
        assert found["command"] == " ".join(["python", "cost.py", "--out=whole", *SMALL])
        assert "Left out" not in found["note"]
        (line,) = found["table"]["rows"]
        assert line[0] == "dot, lstm"
        # Two lengths have a slope without an interval.
        assert all(float(cell) for cell in line[1:])
    assert all(0 < row["low"] <= row["y"] <= row["high"] for row in seconds["rows"])
    sizes = {(row["panel"], row["x"]): row["y"] for row in memory["rows"]}
    assert sizes[PANELS[0], 2] == sizes[PANELS[1], 2], "the same program"
    assert sizes[PANELS[2], 30] - sizes[PANELS[3], 30] > 4e-6 * 2 * (30 * 30 - 2 * 30), "weights of 28 more steps"

    limit = sizes[PANELS[0], 30] - 1e-9
    code, out, errors = call("--out=part", *SMALL, f"--most_gigabytes={limit / 1e3}")
    assert (code, errors) == (0, "")
    told = f"dot, lstm: {PANELS[0]}: 30 needs {limit / 1e3:.2g} GB: left out with all that is longer"
    assert told in out.splitlines()
    found = read(place, "part", "cost-time")
    assert [row["x"] for row in found["rows"]] == [2, *[2, 30] * 3]
    assert f"as above 10 s or {limit / 1e3:g} GB: dot, lstm, {PANELS[0]} (30 needs" in found["note"]
    assert found["table"]["rows"][0][1] is None
    page = (place / "part" / "report.html").read_text("utf-8")
    assert f"dot, lstm, {PANELS[0]} (30 needs" in page


WRONG = {
    "no output": ([], "--out is missing"),
    "unwritable": (["--out=a_file"], "--out=a_file: cannot be written"),
    "falling": (["--lengths=4,2"], "--lengths=4,2: expected rising numbers from 1, each given once"),
    "twice": (["--lengths=4,4"], "--lengths=4,4: expected rising numbers from 1, each given once"),
    "no number": (["--lengths=4,x"], "--lengths=4,x: expected whole numbers separated by commas"),
    "zero": (["--lengths=0,4"], "--lengths=0,4: expected rising numbers from 1, each given once"),
    "one length": (["--lengths=4"], "--lengths=4: two lengths at least show how a cost grows"),
    "vocabulary": (["--vocabulary=4"], "--vocabulary=4: expected"),
    "unknown score": (["--scores=dott"], "unknown score 'dott': did you mean 'dot'?"),
    "unknown model": (["--models=transformr"], "unknown model 'transformr': did you mean 'transformer'?"),
    "unknown placement": (["--placements=befor"], "unknown placement 'befor': did you mean 'before'?"),
    "no such model": (["--models=transformer", "--cells=gru"], "--cells: goes with --models=recurrent"),
    "no transformer": (["--models=recurrent", "--self_windows=4"], "--self_windows: goes with --models=transformer"),
    "odd size": (["--hidden_size=5"], "hidden_size=5: must be even"),
    "heads": (["--hidden_size=6"], "transformer.size=6 with transformer.heads=4"),
    "all too slow": ([*SMALL, "--most_seconds=0"], "--most_seconds=0 and --most_gigabytes=6: not even sequences of 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_are_told_in_one_line(call, place, case):
    words, message = WRONG[case]
    given = words if case in ("no output", "unwritable") else [*words, "--out=wrong"]
    code, _, errors = call(*given)
    assert errors.startswith("cost: ")
    assert message in errors
    assert (code, errors.count("\n")) == (2, 1)
    assert not (place / "wrong" / "report.html").exists()
