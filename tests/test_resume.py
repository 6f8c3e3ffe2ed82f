"""A study that is killed or stopped, and goes on, equals one that was left alone, bit for bit."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tensorboardX.proto import event_pb2

from attn_jax import checkpoint, program, progression, study
from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER, Interrupted
from attn_jax.progress import Console
from attn_jax.progression import Saving, Schedule
from attn_jax.storage import UNFINISHED

BASE = tiny.config(
    **{"score": "none", "train.steps": 12, "train.eval_every": 5, "train.patience": 1, "train.metric": "loss"},
    **{"dropout.embedding": 0.2, "dropout.recurrent": 0.1},
)
AXES = {"cell": ["rnn", "gru"], "optim.learning_rate": [0.05, 1e-30]}


class KilledError(Exception):
    pass


def run(out, saving=Saving(every=1)):  # noqa: B008
    corpora = study.Corpora(lambda name: tiny.dataset())
    return study.run(tiny.combined(BASE, AXES), seeds=[0], out=str(out), corpora=corpora, saving=saving)


def contents(out: Path) -> dict[str, object]:
    """All that a study leaves for good: bytes of its files, and arrays of parameters."""
    found: dict[str, object] = {"results.csv": (out / "results.csv").read_bytes()}
    for folder in sorted((out / "runs").iterdir()):
        for name in ("metrics.jsonl", "predictions.dev.jsonl", "predictions.test.jsonl", "config.json", "result.json"):
            found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
        for name, value in checkpoint.load_parameters(folder / "parameters").items():
            found[f"{folder.name}/{name}"] = np.asarray(value).tobytes()
    return found


def shown_by_tensorboard(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars of a run. An event file that says where its session starts discards earlier events from there."""
    shown: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("tensorboard/*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return shown


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    run(out, Saving())
    assert not list(out.glob("programs/*/checkpoints")), "checkpoints of finished programs are removed"
    stopped = [json.loads(path.read_text())["stopped"] for path in out.glob("runs/*/result.json")]
    assert sorted(bool(stop) for stop in stopped) == [False, False, True, True], "early stopping does not show"
    return contents(out)


@pytest.fixture
def at_dispatch(monkeypatch):
    """Makes something happen after the n-th dispatch."""

    def set_up(n, happen):
        count, before = itertools.count(1), Console.advance

        def advance(self, *args):
            before(self, *args)
            if next(count) == n:
                happen()

        monkeypatch.setattr(Console, "advance", advance)

    yield set_up
    HANDLER.pending = None


def kill():
    raise KilledError


def test_killed_and_stopped_again_and_again(alone, tmp_path, at_dispatch, monkeypatch, capsys):
    out = tmp_path / "out"
    for n in (3, 4):
        at_dispatch(n, kill)
        with pytest.raises(KilledError):
            run(out)
        monkeypatch.undo()
    # Lines after the checkpoint's step were written by the killed process; they are cut off and written again.
    log = next(path for path in out.glob("runs/*/metrics.jsonl") if path.read_text())
    with log.open("a") as file:
        file.write('{"step": 12, "split": "train"}\n{"half a li')
    # So are files that it left half written.
    (log.parent / f".predictions.test.jsonl.b06rojic{UNFINISHED}").write_text("{")
    (log.parent / "parameters.orbax-checkpoint-tmp").mkdir()
    (out / f".results.csv.x_3k2jf0{UNFINISHED}").write_text("run_id,")
    at_dispatch(1, lambda: HANDLER(signal.SIGTERM, None))
    with pytest.raises(Interrupted) as stop:
        run(out)
    assert stop.value.code == 75
    assert "is saved" in stop.value.where
    monkeypatch.undo()
    run(out)
    told = capsys.readouterr().err
    assert told.count("goes on from step") >= 2
    assert contents(out) == alone
    assert not [path for path in out.rglob("*") if "tmp" in path.name or path.name.endswith(UNFINISHED)]
    for log in out.glob("runs/*/metrics.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        logged = {
            (f"{line['split']}/{name}", line["step"]): value
            for line in lines
            for name, value in line.items()
            if name not in ("step", "epoch", "split") and value is not None
        }
        assert shown_by_tensorboard(log.parent) == pytest.approx(logged, rel=1e-6)


def test_killed_between_the_last_line_of_the_logs_and_the_results(alone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(program.outcome, "write", lambda *_: kill())
    with pytest.raises(KilledError):
        run(out)
    logs = [path.read_text() for path in out.glob("runs/*/metrics.jsonl")]
    assert any('"split": "test"' in log for log in logs)
    monkeypatch.undo()
    run(out)
    assert contents(out) == alone


def test_where_a_dispatch_ends_changes_nothing(alone, tmp_path, monkeypatch):
    # One step at a time, never saved; the lone run took as many as its clock allowed.
    monkeypatch.setattr("attn_jax.clock.DISPATCH_SECONDS", 0.0)
    run(tmp_path / "out", Saving(every=1000))
    assert contents(tmp_path / "out") == alone


def test_damaged_and_foreign_checkpoints(alone, tmp_path, at_dispatch, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("attn_jax.clock.DISPATCH_SECONDS", 0.0)
    at_dispatch(5, kill)
    with pytest.raises(KilledError):
        run(out)
    monkeypatch.undo()
    (folder,) = out.glob("programs/*/checkpoints")
    steps = sorted(folder.iterdir(), key=lambda path: int(path.name))
    assert len(steps) == 2

    for path in steps[1].rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:7])
    foreign = shutil.copytree(out, tmp_path / "foreign")
    gone = shutil.copytree(out, tmp_path / "gone")
    run(out)
    told = capsys.readouterr().err
    assert f"{steps[1]}: this checkpoint is damaged" in told
    assert f"goes on from step {steps[0].name}" in told
    assert contents(out) == alone

    (other,) = foreign.glob("programs/*/checkpoints")
    (about,) = other.glob(f"{steps[0].name}/_CHECKPOINT_METADATA")
    values = json.loads(about.read_text())
    values["custom_metadata"]["members"].reverse()
    about.write_text(json.dumps(values))
    with pytest.raises(UserError, match="program with other runs; remove the directory"):
        run(foreign)

    (none,) = gone.glob("programs/*/checkpoints")
    shutil.rmtree(none / steps[0].name / "state")
    before = sorted(path for path in none.rglob("*"))
    with pytest.raises(UserError, match="none of the checkpoints can be read; remove the directory"):
        run(gone)
    assert sorted(path for path in none.rglob("*")) == before, "nothing is overwritten"


def test_a_checkpoint_holds_what_was_so_when_it_was_begun(tmp_path):
    """It is written while training goes on, and decides what a resumed program takes for done."""
    plus_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    kept = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3)
    states = {"weights": jnp.arange(4.0)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states)
    about = {"stopped": [None, None], "step": 1}
    for step in (1, 2, 3):
        kept.save(step, states, about)
        states["weights"] = plus_one(states["weights"])
        about["stopped"][0] = {"reason": "no better", "step": step}
        about["step"] = step + 1
    kept.close()
    tree, found = kept.restore(lambda: like, lambda about: "")
    kept.close()
    assert found == {"stopped": [{"reason": "no better", "step": 2}, None], "step": 3}
    np.testing.assert_array_equal(tree["weights"], np.arange(4.0) + 2)


def test_an_output_directory_that_is_removed(tmp_path, at_dispatch):
    at_dispatch(2, lambda: shutil.rmtree(tmp_path / "out"))
    with pytest.raises(UserError, match="was removed while its program trained"):
        run(tmp_path / "out", Saving(every=1000))


@pytest.mark.parametrize(
    ("total", "every", "length"), [(100, 100, 100), (1000, 37.5, 38), (10, 2.5, 3), (7, 1, 1), (950, 312.5, 79)]
)
def test_intervals(total, every, length):
    schedule = Schedule(total, every, length)
    evaluated = {min(total, math.ceil(n * every)) for n in range(1, math.ceil(total / every) + 1)}
    step, ends = 0, []
    while step < total:
        end = schedule.end(step)
        assert step < end <= step + length
        assert not any(step < at < end for at in evaluated), "an evaluation within an interval"
        assert schedule.evaluates(end) == (end in evaluated)
        # The same from any step within: nothing but the step counts.
        ends.append(end)
        step = end
    assert ends[-1] == total
    assert evaluated <= set(ends)


ROOT = Path(__file__).resolve().parent.parent

COMMAND = [
    *("experiments/compare_scores.py", "--dataset=synthetic/reverse", "--scores=none", "--seeds=2"),
    *("--hidden_size=8", "--set=encoder=uni", "--steps=400", "--set=train.eval_every=200", "--checkpoint_every=3"),
]


def test_signals_stop_a_real_process(tmp_path):
    """SIGTERM, then Ctrl-C, then to the end; the same command each time."""
    command = [sys.executable, *COMMAND, f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'data'}"]

    def start():
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    at = 0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        process = start()
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("  step"):
                break
        process.send_signal(number)
        _, told = process.communicate()
        assert process.returncode == code, told
        last = told.strip().split("\n")[-1]
        assert "which is saved; the same command goes on" in last
        step = int(last.partition("at step ")[2].partition(" ")[0])
        assert at < step < 400
        at = step
    process = start()
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert f"goes on from step {at}\n" in told
    assert os.listdir(tmp_path / "out" / "runs")


@pytest.mark.slow
def test_memory_that_runs_out_names_the_program_and_the_setting(tmp_path):
    """In a real process that may have 6 GB, with a weight matrix of 10 GB."""
    sizes = ["--set=decoder.size=20000", "--set=encoder.size=20000"]
    flags = [word for word in COMMAND if not word.startswith("--hidden_size")]
    flags += [*sizes, "--runs_per_program=2", f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'data'}"]
    command = ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash", sys.executable, *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = ended.stderr.strip().split("\n")[-1]
    assert ended.returncode == 2, ended.stderr
    assert re.match(
        r"compare_scores: program \w+: out of memory with 2 run\(s\) together; set --runs_per_program", last
    )
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "out").glob("programs/*/program.json")), "a smaller program may take its runs"


def test_a_checkpoint_is_not_replaced_by_one_of_the_same_step(alone, tmp_path, monkeypatch):
    """However long an evaluation took, the newest checkpoint is not removed before another one is there."""
    steps, save = [], checkpoint.Checkpoints.save
    monkeypatch.setattr(progression, "SECONDS", 0.0)
    monkeypatch.setattr(
        checkpoint.Checkpoints, "save", lambda self, step, *about: (steps.append(step), save(self, step, *about))
    )
    run(tmp_path / "out", Saving())
    assert len(steps) > 4
    assert all(a < b for a, b in itertools.pairwise(steps) if b > steps[0])
    assert contents(tmp_path / "out") == alone
