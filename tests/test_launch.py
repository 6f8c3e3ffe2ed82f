"""Programs that are trained in other processes: who gets which, and what becomes of those that die or are stopped."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest
import tiny

from attn_jax import devices, interruption, jobs, launch, pool, ray_tasks, results, storage
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER, Interrupted
from attn_jax.jobs import Job, Setting, Source
from attn_jax.launch import Event
from attn_jax.progress import Board
from attn_jax.progression import Saving

ROOT = Path(__file__).resolve().parent.parent

# -- hands, with a launcher that does nothing ---------------------------------------------------------------------


def job(name):
    return Job("out", {name: tiny.config()})


class Scripted:
    """A launcher: what happens to the jobs of each program, one word a try."""

    slots = 2

    def __init__(self, **tries):
        self.tries = {job(name).program: (name, list(words)) for name, words in tries.items()}
        self.started, self.most, self.stopped = [], 0, False
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped = True

    def start(self, todo):
        self.running.append(todo.program)
        self.started.append(self.tries[todo.program][0])
        self.most = max(self.most, len(self.running))

    def stop(self):
        self.stopped = True

    def wait(self, seconds):
        program = self.running.pop(0)
        if self.stopped:
            return [Event(program, "stopped", "at step 3")]
        what, value = self.tries[program][1].pop(0)
        if what == "signal":
            HANDLER(value, None)
            self.running.insert(0, program)
            return []
        return [Event(program, what, value)]


ENDED, DIED = ("ended", jobs.DONE), ("died", "its process was killed")


def dispatched(launcher, names):
    left = dict.fromkeys(names)

    def choose(in_hand, given_up):
        for name in left:
            if name not in given_up and job(name).program not in in_hand and launcher.tries[job(name).program][1]:
                return job(name), len(left), 0
        return None, 0, 0

    return launch.dispatch(choose, launcher, Board(2))


@pytest.fixture(autouse=True)
def clean_handler():
    yield
    HANDLER.pending = None


def test_what_dies_is_started_again_so_many_times_and_the_others_go_on(capsys):
    launcher = Scripted(a=[ENDED], b=[DIED, DIED, ENDED], c=[DIED] * (launch.RETRIES + 1), d=[ENDED])
    lost = dispatched(launcher, "abcd")
    assert sorted(launcher.started) == sorted("a" + "bbb" + "c" * (launch.RETRIES + 1) + "d")
    assert launcher.most == launcher.slots
    assert launcher.stopped
    assert lost == [f"program {job('c').program} was given up after {launch.RETRIES + 1} tries: its process was killed"]
    told = capsys.readouterr().err.splitlines()
    assert told.count(f"program {job('b').program}: its process was killed; it is started again (2 of 3 times)") == 1
    assert told.count(lost[0]) == 1
    assert len(told) == 2 + launch.RETRIES + 1, "one line each"


def test_a_mistake_is_the_studys_and_ends_it():
    launcher = Scripted(a=[("mistake", "no such file")], b=[ENDED], c=[ENDED])
    with pytest.raises(UserError, match=r"^no such file$"):
        dispatched(launcher, "abc")
    assert launcher.started == ["a", "b"]
    assert launcher.stopped
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        dispatched(Scripted(a=[("failed", "ZeroDivisionError: 1 / 0")]), "a")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_and_nothing_is_started_again(number, code):
    launcher = Scripted(a=[("signal", number), ENDED], b=[ENDED], c=[ENDED])
    with pytest.raises(Interrupted, match=r"with 2 program\(s\) saved") as stop:
        dispatched(launcher, "abc")
    assert stop.value.code == code
    assert launcher.started == ["a", "b"]


# -- values ---------------------------------------------------------------------------------------------------------


def test_a_job_and_its_setting_survive_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    todo = Job("out", {"x": tiny.config(score="dot"), "y": tiny.config()}, Saving(3, 4), MeshShape(2, 1), ("mlflow",))
    again = Job.from_json(json.loads(json.dumps(todo.to_json())))
    assert again == Job(str(tmp_path / "out"), todo.members, todo.saving, todo.mesh, todo.log_to)
    assert again.program == todo.program

    corpora = jobs.Corpora(Source("data", "~/cache", {"train": ["a", "~/b"]}))
    setting = Setting.from_json(json.loads(json.dumps(Setting.here(corpora).to_json())))
    home = os.path.expanduser("~")
    files = {"train": [f"{tmp_path}/a", f"{home}/b"]}
    assert setting.source == Source(f"{tmp_path}/data", f"{home}/cache", files)
    tuning = Setting.from_json(json.loads(json.dumps(Setting.here(corpora.without_tests()).to_json())))
    assert tuning.source == Source(f"{tmp_path}/data", f"{home}/cache", files, tests=False)
    with pytest.raises(UserError, match=r"give study\.Source"):
        Setting.here(jobs.Corpora(lambda name: tiny.dataset()))


def test_data_without_tests_is_the_same_however_it_was_made(tmp_path):
    name = "synthetic/copy?examples=20&test_examples=5"
    source = Source(data_dir=str(tmp_path))
    whole = source(name)
    alone = jobs.Corpora(source).without_tests().dataset(name)
    assert set(alone.splits) == {"train", "dev"} & set(whole.splits)
    assert alone.splits["train"] == whole.splits["train"]
    assert alone.fingerprint != whole.fingerprint
    assert jobs.Corpora(lambda name: whole).without_tests().dataset(name) == alone


@pytest.fixture
def with_cuda(monkeypatch):
    """As where JAX has its plugin for NVIDIA's GPUs."""
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(devices, "_has_cuda", lambda: True)
    yield
    jax.config.update("jax_platforms", before)


def test_gpus_that_jax_would_not_find_do_not_count(with_cuda, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for platforms, found in ((None, 2), ("cuda,cpu", 2), ("gpu", 2), ("cpu", 0), ("tpu,cpu", 0)):
        jax.config.update("jax_platforms", platforms)
        assert len(devices.visible_gpus()) == found
    jax.config.update("jax_platforms", None)
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    plugins = {line.split("==")[0] for line in metadata_names() if line.startswith("jax-cuda")}
    assert bool(devices.visible_gpus()) == bool(plugins)


def metadata_names():
    return [distribution.metadata["Name"] for distribution in importlib.metadata.distributions()]


def test_shares_of_gpus(with_cuda, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert devices.visible_gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,2")
    assert devices.visible_gpus() == ["1"]
    assert pool.device_settings(0, 4, []) == {}
    assert pool.device_settings(1, 2, ["3", "5"]) == {"CUDA_VISIBLE_DEVICES": "5"}
    settings = [pool.device_settings(worker, 4, ["3", "5"]) for worker in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in settings] == ["3", "5", "3", "5"]
    assert {one["XLA_CLIENT_MEM_FRACTION"] for one in settings} == {"0.450"}


# -- the unit of work -----------------------------------------------------------------------------------------------


def test_a_program_is_taken_once_and_not_when_another_has_its_runs(tmp_path, monkeypatch):
    """Training is replaced by a look at the lock."""
    corpora = jobs.Corpora(lambda name: tiny.dataset())
    corpus = corpora.corpus(tiny.config())
    members = {jobs.configs.run_id(tiny.config(seed=n), corpus.fingerprint): tiny.config(seed=n) for n in range(3)}
    ids = list(members)
    todo = Job(str(tmp_path), members)
    output, trained = results.Output(tmp_path), []

    def train(runs, corpus, output, name, *_):
        assert output.claim(name) is None, "it is locked"
        assert output.programs()[name] == ids, "it is written down"
        trained.append([run.seed for run in runs])
        for run_id in ids:
            for file in ("config.json", "result.json"):
                storage.write_json(output.run(run_id) / file, {})

    monkeypatch.setattr(jobs.program, "train", train)
    part = ids[1:]
    storage.write_json(output.program(results.program_id(part)) / "program.json", {"members": part})
    with output.claim(results.program_id(part)):
        assert jobs.perform(todo, corpora, Board().program("a")) == jobs.TAKEN
        assert list(output.programs().values()) == [part], "nothing is written down"
    with output.claim(todo.program):
        assert jobs.perform(todo, corpora, Board().program("a")) == jobs.TAKEN
    assert trained == []
    assert jobs.perform(todo, corpora, Board().program("a")) == jobs.DONE
    assert jobs.perform(todo, corpora, Board().program("a")) == jobs.DONE
    assert trained == [[0, 1, 2]], "what is done is not done again"

    other = jobs.Corpora(lambda name: tiny.dataset(train=9))
    with pytest.raises(UserError, match="is not that of the study"):
        jobs.perform(Job(str(tmp_path / "new"), members), other, Board().program("a"))


# -- real processes -------------------------------------------------------------------------------------------------

STUDY = [
    *("experiments/compare_scores.py", "--dataset=synthetic/reverse?examples=300&test_examples=20", "--scores=none"),
    *("--cells=rnn,gru", "--hidden_size=8", "--set=encoder=uni", "--steps=4000", "--set=train.eval_every=2000"),
    *("--seeds=2", "--set=dropout.embedding=0.1", "--checkpoint_every=50"),
]


def command(folder, out, *flags):
    return [sys.executable, *STUDY, f"--out={folder / out}", f"--data_dir={folder / 'data'}", *flags]


def started(folder, out, *flags):
    process = subprocess.Popen(
        command(folder, out, *flags),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    return process, lines


def until(process, lines, text):
    """Reads what a process says up to a line."""
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    pytest.fail("".join(lines))


def workers(out):
    """The processes that have a program of the directory in hand, by the lock that they hold."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            for link in folder.iterdir():
                path = Path(os.readlink(link))
                if path.name == ".lock" and path.parent.parent == out / "programs":
                    found[int(folder.parent.name)] = path.parent.name
        except OSError:
            continue
    return found


def with_checkpoint(process, out):
    """A worker that has saved, and its program."""
    while process.poll() is None:
        for pid, name in workers(out).items():
            saved = (out / "programs" / name / "checkpoints").glob("[0-9]*")
            if pid != process.pid and any(path.name.isdecimal() for path in saved):
                return pid, name
        time.sleep(0.05)
    pytest.fail(process.stderr.read())


def gone(pids, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a study that was trained in one process."""
    folder = tmp_path_factory.mktemp("launch")
    done = subprocess.run(command(folder, "alone"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert devices_of(folder / "alone") == {min(2, devices.cores())}
    return folder


def devices_of(out):
    """On how many devices programs of two runs were trained."""
    return {json.loads(path.read_text())["devices"] for path in out.glob("programs/*/timing.json")}


def same(folder, out):
    files = ["results.csv", *(path.relative_to(folder / "alone") for path in folder.glob("alone/runs/*/metrics.jsonl"))]
    assert len(files) == 5
    for name in files:
        assert (folder / out / name).read_bytes() == (folder / "alone" / name).read_bytes(), name


def test_subprocesses_that_are_killed_and_stopped_go_on_as_if_nothing_had_been(alone):
    out = alone / "jobs"
    process, lines = started(alone, "jobs", "--jobs=2")
    until(process, lines, ": step")
    victim, program = with_checkpoint(process, out)
    os.kill(victim, signal.SIGKILL)
    until(process, lines, "it is started again")
    assert f"program {program}: its process was killed by SIGKILL" in lines[-1]
    until(process, lines, "goes on from step")
    children = set(workers(out)) - {process.pid}
    assert children
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 75, told
    assert told.strip().split("\n")[-1].endswith("saved; the same command goes on")
    assert gone(children), "an orphan"

    process, lines = started(alone, "jobs", "--jobs=2")
    _, told = process.communicate()
    assert process.returncode == 0, told
    same(alone, "jobs")
    assert devices_of(out) == devices_of(alone / "alone")


@pytest.mark.parametrize("number", ["auto", "0", "-2"])
def test_a_number_of_cores_that_is_none_is_one_line(tmp_path, number):
    environment = os.environ | {"NPROC": number}
    done = subprocess.run(command(tmp_path, "out"), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"compare_scores: NPROC={number}: expected a number of cores above 0\n"


@pytest.mark.slow
def test_subprocesses_that_lose_their_parent_save_and_end(alone):
    out = alone / "orphans"
    process, _ = started(alone, "orphans", "--jobs=2")
    _, program = with_checkpoint(process, out)
    children = set(workers(out)) - {process.pid}
    process.kill()
    process.communicate()
    assert gone(children)
    assert any((out / "programs" / program / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_mistake_in_a_subprocess_is_one_line(alone):
    words = command(alone, "wrong", "--jobs=2", "--mesh=run=2")
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "compare_scores: --mesh=run=2,data=1: needs 2 devices, and there is 1\n"


def test_ray_with_a_worker_that_is_killed(alone):
    pytest.importorskip("ray", reason="Ray is not installed")
    out = alone / "ray"
    process, lines = started(alone, "ray", "--launcher=ray", "--cpus_per_program=1")
    until(process, lines, ": step")
    victim, program = with_checkpoint(process, out)
    os.kill(victim, signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert f"program {program}: its process was lost" in told
    same(alone, "ray")


@pytest.mark.slow
def test_ray_that_is_stopped_saves(alone):
    pytest.importorskip("ray", reason="Ray is not installed")
    out = alone / "stopped"
    process, lines = started(alone, "stopped", "--launcher=ray", "--cpus_per_program=1")
    until(process, lines, ": step")
    with_checkpoint(process, out)
    children = set(workers(out)) - {process.pid}
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130, told
    assert "saved; the same command goes on" in told
    assert gone(children)
    assert list(out.glob("programs/*/checkpoints/*"))


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed: python -m pip install ray"):
        ray_tasks.Ray(Setting(Source()), ray_tasks.Resources())


def test_a_quiet_handler_only_notes(capsys):
    handler = interruption.Handler()
    handler.quiet = True
    with pytest.raises(Interrupted), handler.deferred():
        handler(signal.SIGTERM, None)
    assert capsys.readouterr().err == ""


def test_own_text_and_other_data_have_their_own_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("x y\n")
    files = {"train": [f"{tmp_path}/a", f"{tmp_path}/b"], "test": [f"{tmp_path}/a", f"{tmp_path}/b"]}
    source = Source(str(tmp_path), str(tmp_path / "data"), files)
    assert source("parallel_text").splits["test"][0].source == "x y"
    assert len(source("synthetic/copy?examples=20&test_examples=5").splits["test"]) == 5


def test_a_ray_that_cannot_be_reached_is_one_line(monkeypatch):
    def refuse(**_):
        raise ConnectionError("nobody\nthere")

    ray = types.ModuleType("ray")
    ray.init, ray.is_initialized = refuse, lambda: False
    queues = types.ModuleType("ray.util.queue")
    queues.Queue = None
    for name, module in {"ray": ray, "ray.util": types.ModuleType("ray.util"), "ray.util.queue": queues}.items():
        monkeypatch.setitem(sys.modules, name, module)
    launcher = ray_tasks.Ray(Setting(Source()), ray_tasks.Resources("nohost:1"))
    with pytest.raises(UserError) as told:
        launcher.start(job("a"))
    assert str(told.value) == "--ray_address=nohost:1: no Ray can be reached there (nobody there)"
