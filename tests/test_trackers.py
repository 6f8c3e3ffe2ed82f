"""Weights & Biases and MLflow get the lines of a run's log, each once; tried with the libraries where installed."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tiny

from attn_jax import results, study, trackers
from attn_jax.errors import UserError

LINES = [
    (step, split, {"loss": 1.0 / step, "other": float(step)}) for step in (2, 4, 6, 8) for split in ("train", "dev")
]


def logged(out, upto, *, after=0, log_to=()):
    """The lines of some steps, by a process that begins at step `after` and is gone after step `upto`."""
    log = results.Output(out, log_to).begin("a_run", tiny.config(), {"name": "x", "fingerprint": "y"}, after)
    for step, split, values in LINES:
        if after < step <= upto:
            log.write(step, 0.5, split, values | ({"bad": float("nan")} if split == "dev" else {}))
    log.close()


def expected():
    return sorted((f"{split}/{name}", step, value) for step, split, values in LINES for name, value in values.items())


class Fake:
    """A tracker that remembers what it got."""

    def __init__(self, folder, config):
        self.got, self.closed = [], False
        self.config = config
        Fake.last = self

    def write(self, number, step, values):
        self.got.append((number, step, values))

    def close(self):
        self.closed = True


def test_lines_are_numbered_as_in_the_log_also_after_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "fake", Fake)
    logged(tmp_path, 6, log_to=["fake"])
    first = Fake.last
    assert [number for number, _, _ in first.got] == [1, 2, 3, 4, 5, 6]
    assert first.got[1] == (2, 2, {"dev/loss": 0.5, "dev/other": 2.0})
    assert first.closed
    assert first.config["score.name"] == tiny.config().score.name
    logged(tmp_path, 8, after=4, log_to=["fake"])
    assert [number for number, _, _ in Fake.last.got] == [5, 6, 7, 8]


def test_results_on_every_test_split_are_the_last_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "fake", Fake)
    monkeypatch.setattr(trackers, "check", lambda names: None)
    data = tiny.with_splits(tiny.dataset(), test=[("a", "b"), ("b c", "d")], test_long=[("a b c", "d d")])
    config = tiny.config(**{"train.steps": 6, "train.eval_every": 2, "train.patience": 1, "optim.learning_rate": 1e-30})
    corpora = study.Corpora(lambda name: data)
    study.run([config], seeds=[0], out=str(tmp_path), corpora=corpora, log_to=["fake"])
    (folder,) = (tmp_path / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 4, "stopped early"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "dev", "train", "dev", "test", "test_long"]
    assert [number for number, _, _ in Fake.last.got] == [1, 2, 3, 4, 5, 6]
    assert Fake.last.closed
    for (_, step, values), split in zip(Fake.last.got[-2:], ("test", "test_long"), strict=True):
        assert step == 4
        expected = {f"{split}/{name}": value for name, value in result["metrics"][split].items()}
        assert values == pytest.approx(expected | {f"{split}/selected_step": result["selected_step"]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "--log_to: unknown tracker 'wandbb': did you mean 'wandb'?"),
        ("wandb", "--log_to=wandb: it is not installed: python -m pip install wandb"),
        ("mlflow", "--log_to=mlflow: it is not installed: python -m pip install mlflow-skinny"),
    ],
)
def test_what_is_unknown_or_missing_is_told_before_anything_is_written(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    corpora = study.Corpora(lambda name: tiny.dataset())
    with pytest.raises(UserError) as told:
        study.run([tiny.config()], seeds=[0], out=str(tmp_path / "out"), corpora=corpora, log_to=[name])
    assert str(told.value).startswith(message)
    assert not (tmp_path / "out").exists()


RESUMED = """
import sys
sys.path.insert(0, {tests!r})
from test_trackers import logged
logged({out!r}, 6, log_to=[{name!r}])
logged({out!r}, 8, after=4, log_to=[{name!r}])
"""


def resumed(tmp_path, name, **environment):
    """A run that goes on from step 4 after its lines up to step 6 were sent, in a process of its own."""
    out = tmp_path / "my_study"
    code = RESUMED.format(tests=str(Path(__file__).parent), out=str(out), name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / "runs" / "a_run"


@pytest.mark.slow
def test_mlflow(tmp_path):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    store = f"sqlite:///{tmp_path}/store.db"
    resumed(tmp_path, "mlflow", MLFLOW_TRACKING_URI=store)
    found = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("my_study").experiment_id])
[run] = runs
points = [(m.key, m.step, m.value) for k in run.data.metrics for m in client.get_metric_history(run.info.run_id, k)]
print(json.dumps([run.info.run_name, run.info.status, run.data.params["score.name"], points]))
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    said = subprocess.run([sys.executable, "-c", found], env=environment, capture_output=True, text=True, check=True)
    name, status, score, points = json.loads(said.stdout.splitlines()[-1])
    assert (name, status, score) == ("a_run", "FINISHED", tiny.config().score.name)
    assert sorted(map(tuple, points)) == expected()


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    folder = resumed(tmp_path, "wandb", WANDB_MODE="offline")
    found = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2

def records(content):
    # A log as LevelDB has it: blocks of 32 KiB; checksum, length and kind of each part of a record.
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""

points = []
for path in sys.argv[1:]:
    for data in records(open(path, "rb").read()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = items.pop("_step", record.history.step.num)
            points += [(k, step, v) for k, v in items.items() if not k.startswith("_")]
print(json.dumps(points))
"""
    files = sorted(map(str, folder.glob("wandb/offline-run-*/run-a_run.wandb")))
    assert len(files) == 2, "two processes' parts of one run"
    said = subprocess.run([sys.executable, "-c", found, *files], capture_output=True, text=True, check=True)
    assert sorted(map(tuple, json.loads(said.stdout))) == expected()


def test_a_count_that_was_not_written_whole_sends_all_again(tmp_path, monkeypatch):
    sent = []
    run = types.SimpleNamespace(log=lambda values, step: sent.append(step), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **_: run, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "wandb.sent").write_text("")
    tracker = trackers.Wandb(tmp_path, {})
    tracker.write(1, 10, {"a": 1.0})
    trackers.Wandb(tmp_path, {}).write(1, 10, {"a": 1.0})
    assert sent == [10]
    assert (tmp_path / "wandb.sent").read_text() == "1"
