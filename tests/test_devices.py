import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from attn_jax import devices, jobs, processes, study
from attn_jax.config import Config
from attn_jax.devices import MeshShape, Placement
from attn_jax.errors import UserError
from attn_jax.processes import Group
from attn_jax.results import Output

TESTS = Path(__file__).resolve().parent
TOLERANCE = 1e-9
BOUND = 90.0
"""Seconds in which a process must end when another one has died: the heartbeats' time, and some."""


def environment(count):
    """Of a process with so many devices."""
    return {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }


def on_devices(count, *arguments):
    command = [sys.executable, str(TESTS / "on_devices.py"), *arguments]
    done = subprocess.run(command, env=environment(count), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def together(count, command, folder, each=()):
    """Two processes with so many devices each that train as one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(2):
        flags = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={number}"]
        with (folder / f"{number}.out").open("w") as out, (folder / f"{number}.err").open("w") as err:
            started.append(
                subprocess.Popen([sys.executable, *command, *flags], env=environment(count), stdout=out, stderr=err)
            )
    return started


def said(folder, number):
    return (folder / f"{number}.err").read_text()


def of_mesh(found, mesh):
    """The results on a mesh, by name."""
    return {name.removeprefix(f"{mesh}:"): value for name, value in found.items() if name.startswith(f"{mesh}:")}


OF_THE_MESH = {f"exact/{name}" for name in ("devices", "flops", "exchanges", "aliased")}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.startswith("exact/"):
            if name not in OF_THE_MESH:
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=TOLERANCE, atol=TOLERANCE * 1e-2, err_msg=name)


def assert_worthwhile(found):
    """The program does what it is said to do: runs learn, stop early, overflow, and differ."""
    stopped = found["exact/stopped"].tolist()
    assert "no better" in stopped[1]
    assert "not finite" in stopped[3]
    assert found["exact/active"].tolist() != [True] * 4
    assert stopped[2] == "None"
    assert np.ptp(found["selected/decoder.output.bias"][:3], axis=0).max() > 0.01


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Results on one device and on eight, and what went on from a checkpoint that the eight wrote."""
    folder = tmp_path_factory.mktemp("devices")
    meshes = "run=4+data=2,run=1,run=4"
    on_devices(8, f"--meshes={meshes}", f"--results={folder}/found.npz", f"--checkpoint={folder}/checkpoint")
    return dict(np.load(folder / "found.npz"))


def test_eight_devices_compute_what_one_does(one_process):
    alone, eight = of_mesh(one_process, "run=1"), of_mesh(one_process, "run=4+data=2")
    assert_worthwhile(alone)
    assert_same(eight, alone)
    assert (alone["exact/devices"], eight["exact/devices"]) == (1, 8)
    assert eight["exact/flops"] < alone["exact/flops"] / 6, "each device does about an eighth of the work"


def test_devices_of_different_runs_exchange_nothing(one_process):
    """Else one would wait for the others, in a loop that may end earlier than theirs."""
    four, eight = of_mesh(one_process, "run=4"), of_mesh(one_process, "run=4+data=2")
    assert four["exact/exchanges"] == 0
    assert eight["exact/exchanges"] > 0, "parts of a batch have one gradient"
    assert_same(four, of_mesh(one_process, "run=1"))


def test_states_are_written_over_the_old_ones_on_every_device(one_process):
    for mesh, parts in (("run=1", 1), ("run=4", 4), ("run=4+data=2", 4)):
        found = of_mesh(one_process, mesh)
        assert found["exact/aliased"] >= found["exact/states"] / parts, mesh


def test_a_checkpoint_of_eight_devices_goes_on_on_one(one_process):
    # In the unbroken program runs stop on the way; the third one does not.
    for mesh in ("run=1", "run=4+data=2"):
        found = of_mesh(one_process, mesh)
        for name, value in found.items():
            if name.startswith("resumed/"):
                unbroken = found[name.replace("resumed", "params")]
                np.testing.assert_allclose(value[2], unbroken[2], rtol=TOLERANCE, atol=TOLERANCE * 1e-2, err_msg=name)


def test_two_processes_train_as_one_and_end_together(one_process, tmp_path):
    command = [str(TESTS / "on_devices.py"), "--meshes=run=2+data=2", f"--results={tmp_path}/PROCESS.npz", "--forever"]
    pair = together(2, command, tmp_path)
    try:
        deadline = time.monotonic() + 300
        while "trained" not in (tmp_path / "0.out").read_text():
            assert time.monotonic() < deadline
            assert [process.poll() for process in pair] == [None, None], said(tmp_path, 0) + said(tmp_path, 1)
            time.sleep(0.2)
        pair[1].kill()
        assert pair[0].wait(BOUND) == processes.EXIT_LOST
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert "process 0 of 2: another process has ended" in said(tmp_path, 0)
    assert said(tmp_path, 0).count("\n") == 1, said(tmp_path, 0)
    assert "trained" not in (tmp_path / "1.out").read_text(), "the first process alone prints"
    alone = of_mesh(one_process, "run=1")
    alone = {name: value for name, value in alone.items() if not name.startswith("resumed/")}
    for number in range(2):
        found = of_mesh(dict(np.load(tmp_path / f"{number}.npz")), "run=2+data=2")
        assert found["exact/devices"] == 4
        assert_same(found, alone)


@pytest.mark.slow
def test_any_mesh_computes_what_one_device_does(tmp_path):
    meshes = ["run=1", "run=2", "data=2", "run=4", "run=2+data=2", "data=4", "run=2+data=4"]
    on_devices(8, f"--meshes={','.join(meshes)}", f"--results={tmp_path}/found.npz")
    found = dict(np.load(tmp_path / "found.npz"))
    for mesh in meshes[1:]:
        assert_same(of_mesh(found, mesh), of_mesh(found, "run=1"))


STUDY = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from attn_jax import cli, cli_flags, cli_study, study
cli_flags.define({{"score": lambda: ["none", "dot"]}}, datasets=["toy/letters"])
def main():
    variants = [tiny.config(score=name, train__steps=cli.FLAGS.steps) for name in ("none", "dot")]
    print(study.run(
        variants, seeds=range(cli.FLAGS.seeds), out=cli.FLAGS.out, mesh=cli.mesh(),
        saving=study.Saving(cli.FLAGS.checkpoint_every, cli.FLAGS.keep),
        corpora=study.Corpora(lambda name: tiny.dataset()), command=cli_study.command_line(),
    ))
cli.run(main, doc="A study.")
"""


def study_command(folder, *flags):
    script = folder / "a_study.py"
    script.write_text(STUDY.format(tests=str(TESTS)))
    return [str(script), "--dataset=toy/letters", "--seeds=2", *flags]


@pytest.mark.slow
def test_a_study_of_two_processes_is_that_of_one(tmp_path):
    command = study_command(tmp_path, "--steps=6")
    pair = together(2, [*command, "--mesh=run=2,data=2", f"--out={tmp_path}/two", "--batch_size=4"], tmp_path)
    assert [process.wait(300) for process in pair] == [2, 2]
    assert "batch of 3 cannot be cut in 2 equal parts" in said(tmp_path, 0)
    assert not (tmp_path / "two").exists()

    pair = together(2, [*command, f"--out={tmp_path}/two"], tmp_path)
    assert [process.wait(300) for process in pair] == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert (tmp_path / "0.out").read_text().splitlines()[-1] == f"{tmp_path}/two/report.html"
    assert "program 2 of 2" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    subprocess.run([sys.executable, *command, f"--out={tmp_path}/one"], env=environment(1), check=True)
    outputs = [Output(tmp_path / name) for name in ("one", "two")]
    ids = sorted(path.name for path in (tmp_path / "one" / "runs").iterdir())
    assert len(ids) == 4
    for run_id in ids:
        one, two = (output.result(run_id) for output in outputs)
        assert one["selected_step"] == two["selected_step"]
        for name, value in one["metrics"]["test"].items():
            assert two["metrics"]["test"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_two_processes_that_are_killed_or_stopped_go_on_as_if_nothing_had_been(tmp_path):
    command = study_command(tmp_path, "--steps=1000", "--checkpoint_every=50")

    def begin(out):
        return together(2, [*command, f"--out={tmp_path}/{out}"], tmp_path)

    def until(condition, pair):
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline
            assert [process.poll() for process in pair] == [None, None], said(tmp_path, 0) + said(tmp_path, 1)
            time.sleep(0.1)

    assert [process.wait(300) for process in begin("whole")] == [0, 0], said(tmp_path, 0)
    pair = begin("cut")
    until(lambda: [one for one in tmp_path.glob("cut/programs/*/checkpoints/*") if one.name.isdigit()], pair)
    for process in pair:
        process.kill()
    assert [process.wait() for process in pair] == [-9, -9]
    pair = begin("cut")
    until(lambda: "goes on from step" in said(tmp_path, 0), pair)
    pair[1].terminate()
    assert [process.wait(300) for process in pair] == [75, 75], said(tmp_path, 0) + said(tmp_path, 1)
    assert "which is saved" in said(tmp_path, 0)
    assert [process.wait(300) for process in begin("cut")] == [0, 0], said(tmp_path, 0)
    logs = sorted(path.relative_to(tmp_path / "whole") for path in tmp_path.glob("whole/runs/*/metrics.jsonl"))
    assert len(logs) == 4
    for log in logs:
        assert (tmp_path / "cut" / log).read_text() == (tmp_path / "whole" / log).read_text()


@pytest.mark.slow
def test_the_others_end_when_the_first_process_dies(tmp_path):
    pair = together(1, study_command(tmp_path, "--steps=100000", f"--out={tmp_path}/out"), tmp_path)
    try:
        deadline = time.monotonic() + 300
        while "  step " not in said(tmp_path, 0):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        pair[0].kill()
        assert pair[1].wait(BOUND) != 0
    finally:
        for process in pair:
            process.kill()
            process.wait()
    text = said(tmp_path, 1)
    assert "another process has ended" in text or "another task died" in text


# -- choices -----------------------------------------------------------------------------------------------------------


def test_meshes_are_parsed():
    assert MeshShape.parse("run=4,data=2") == (4, 2)
    assert MeshShape.parse("data=3") == (1, 3)
    for text in ("run", "run=0", "runs=2", "run=2,run=2", "run=-1", "4", ""):
        with pytest.raises(UserError, match=r"--mesh=.*expected run=N,data=N"):
            MeshShape.parse(text)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"--mesh=run=2,data=1: needs 2 devices, and there is 1"):
        Placement.of(4, 4, MeshShape(run=2))
    with pytest.raises(UserError, match=r"a program of 5 run\(s\) cannot be cut in 2 equal parts"):
        devices.check_program(MeshShape(run=2), 5, 4)
    with pytest.raises(UserError, match=r"a batch of 5 cannot be cut in 2 equal parts"):
        devices.check_program(MeshShape(data=2), 4, 5)


@pytest.mark.parametrize(
    ("runs", "count", "hosts", "run"), [(4, 1, 1, 1), (6, 8, 1, 6), (7, 4, 1, 1), (16, 8, 1, 8), (6, 8, 2, 2)]
)
def test_the_mesh_that_fits(runs, count, hosts, run, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    assert devices.fitting(runs) == (run, 1)


def test_a_mesh_of_a_part_of_many_hosts_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"--mesh=run=4,data=1: is 4 of the 8 devices of 2 processes; use all"):
        devices.check(MeshShape(run=4))


def test_one_device_is_left_as_it_is():
    placement = Placement.of(4, 4)
    assert placement == Placement()
    function = len
    assert placement.each_run(function) is function
    (struct,) = placement.abstract([np.zeros((4, 2), np.float32)], "run")
    assert (struct.shape, struct.sharding.device_set) == ((4, 2), {jax.devices()[0]})


def test_a_study_refuses_a_mesh_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(study.devices, "check", lambda shape: None)
    monkeypatch.setattr(jobs.program, "train", lambda *args: pytest.fail("trained"))

    def run(seeds, **changes):
        variants, corpora = [tiny.config(**changes)], study.Corpora(lambda name: tiny.dataset())
        study.run(variants, seeds=range(seeds), out=str(tmp_path / "out"), corpora=corpora, mesh=MeshShape(2, 2))

    with pytest.raises(UserError, match="a batch of 3 cannot be cut"):
        run(2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"a program of 3 run\(s\) cannot be cut in 2 equal parts"):
        run(3, train__batch_size=4)
    assert not list((tmp_path / "out" / "programs").glob("*/program.json"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None, None), r"--process_id is missing: a process of several needs --coordinator, --num_proc"),
        ((None, 2, 0, None), "--coordinator is missing"),
        (("host", 2, 0, None), r"--coordinator=host: expected HOST:PORT of process 0"),
        (("host:x", 2, 0, None), r"--coordinator=host:x: expected HOST:PORT"),
        (("host:1", 2, 2, None), r"--process_id=2: expected a number from 0 to 1"),
        (("host:1", 2, 0, "auto"), r"--distributed=auto: goes without --coordinator"),
    ],
)
def test_groups_that_make_no_sense_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Group.of(*given)


def test_groups():
    assert Group.of(None, None, None, None) is None
    assert Group.of("host:1", 2, 1, None) == Group("host:1", 2, 1)
    assert Group.of(None, None, None, "auto") == Group()


def test_one_process_decides_for_itself():
    assert processes.decided(lambda: {"a": (1, Config())}) == {"a": (1, Config())}
    assert processes.highest([3, 1]) == [3, 1]
    assert (processes.index(), processes.count(), processes.leads()) == (0, 1, True)


@pytest.mark.parametrize(
    ("environment", "before", "found"),
    [
        ({}, "pass", "True 3"),
        ({"JAX_NUM_CPU_DEVICES": "1"}, "pass", "True 1"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "pass", "True 2"),
        ({}, "jax.devices()", "False 1"),
    ],
    ids=["none", "number", "flag", "late"],
)
def test_cores_are_devices_unless_something_else_is_said(environment, before, found):
    code = f"import jax; from attn_jax import devices; {before}; print(devices.spread_over_cores(), jax.device_count())"
    plain = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")} | {
        "NPROC": "3"
    }
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=plain | environment, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"{found}\n"
