"""A forecast against what the study then does."""

import json
import re
import sys
import types

import jax
import pytest
import tiny

from attn_jax import config as configs
from attn_jax import devices, forecast, jobs, program, results, seq2seq, storage, study, tuning
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.forecast import Room
from attn_jax.planning import Cut
from attn_jax.pool import Local
from attn_jax.ray_tasks import Resources

BASE = tiny.config(score="none", cell="rnn", bridge="last", train__metric="loss")
DATA = tiny.dataset()
AXES = {"score": ["none", "dot"], "combine": ["tanh", "linear"], "optim.learning_rate": [0.1, 0.2]}


@pytest.fixture
def programs(monkeypatch):
    """The programs that are trained, by id; training is replaced by writing results, timing by a known speed."""
    trained = {}

    def train(members, corpus, output, name, *_):
        trained[name] = len(members)
        for member in members:
            about = {"name": "toy/letters", "fingerprint": corpus.fingerprint, "metric": "loss", "sizes": {}}
            metrics = {split: {"loss": member.optim.learning_rate} for split in corpus.encoded if split != "train"}
            run_id = configs.run_id(member, corpus.fingerprint)
            result = {"run_id": run_id, "dataset": about, "metrics": metrics, "signatures": {}, "selected_step": 1}
            result |= {"steps": 1, "parameters": 1, "stopped": None, "versions": {}, "git": ""}
            storage.write_json(output.run(run_id) / "config.json", configs.to_dict(member))
            storage.write_json(output.run(run_id) / "result.json", result)

    monkeypatch.setattr(program, "train", train)
    monkeypatch.setattr(forecast, "timed", lambda runs, corpus, mesh: forecast.Speed(0.5, 10.0))
    return trained


def corpora():
    return study.Corpora(lambda name: DATA)


def lines(capsys, head):
    """The rows of the tables whose first column has that title, as lists of cells."""
    rows, inside = [], False
    for line in capsys.readouterr().out.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] in ("variant", "program"):
            inside = cells[0] == head
        elif not line.strip():
            continue
        elif inside and len(cells) > 3 and "─" not in line:
            rows.append(cells)
        elif "─" not in line:
            inside = False
    return rows


def test_the_same_programs_as_the_study_and_nothing_written(tmp_path, capsys, programs):
    out = tmp_path / "out"
    variants, options = tiny.combined(BASE, AXES), {"out": str(out), "corpora": corpora(), "runs_per_program": 4}
    forecast.of_study(variants, seeds=range(3), **options)
    assert not out.exists()
    told = capsys.readouterr().out
    assert "6 variant(s), 3 group(s), 18 run(s), 0 of them done; 6 program(s) to train" in told
    assert "2 combination(s) equal another one and are left out" in told
    ids = set(re.findall(r"\b[0-9a-f]{12}\b", told))
    study.run(variants, seeds=range(3), **options)
    assert ids == set(programs)
    assert sum(programs.values()) == 18

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    forecast.of_study(variants, seeds=range(4), **options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    told = capsys.readouterr().out
    assert "24 run(s), 18 of them done; 3 program(s) to train" in told
    forecast.of_study(variants, seeds=range(3), **options)
    assert "0 program(s) to train\n\nnothing to train; nothing was written" in capsys.readouterr().out
    programs.clear()
    study.run(variants, seeds=range(4), **options)
    assert set(programs) == set(re.findall(r"\b[0-9a-f]{12}\b", told))


def test_a_program_that_was_begun(tmp_path, capsys, programs):
    options = {"seeds": [0, 1], "out": str(tmp_path), "corpora": corpora()}
    members = study.Members.of([BASE], [0, 1], corpora()).runs
    folder = results.Output(tmp_path).program(results.program_id(list(members)))
    storage.write_json(folder / "program.json", {"members": list(members)})
    (folder / "checkpoints" / "2").mkdir(parents=True)
    (folder / "checkpoints" / "4").mkdir()
    forecast.of_study([BASE], **options)
    told = capsys.readouterr().out
    assert re.search(rf"none, rnn +0-1 +2 +1 +{folder.name} +from step 4 +2 ", told)
    # Two of six steps, one evaluation: 2 runs x 0.5 s x (2 steps + (7 + 5 + 1 x 5) sentences / 3 a batch).
    expected = forecast.COMPILATIONS * 10 + 2 * 0.5 * (2 + forecast.SEARCH * 17 / 3)
    assert f"about {expected:.0f} s, one program after another" in told


def test_speeds_that_the_directory_knows_are_not_timed(tmp_path, capsys, programs, monkeypatch):
    options = {"out": str(tmp_path), "corpora": corpora()}
    study.run([BASE], seeds=[0, 1], **options)
    (name,) = programs
    timing = {"runs": 2, "target_tokens_per_second": 1.0, "steps_per_second": 0.25, "compile_seconds": 8.0}
    storage.write_json(tmp_path / "programs" / name / "timing.json", timing)
    monkeypatch.setattr(forecast, "timed", lambda *args: pytest.fail("timed"))
    longer = tiny.changed(BASE, {"train.steps": 60, "train.eval_every": 60, "optim.learning_rate": 0.3})
    forecast.of_study([longer], seeds=[0], **options)
    # One run takes half of the seconds that two took.
    expected = forecast.COMPILATIONS * 8 + 2.0 * (60 + forecast.SEARCH * 17 / 3)
    assert f"about {forecast.clock(expected)}, one program" in capsys.readouterr().out


def test_parameters_are_those_of_the_model():
    for changes in ({}, {"score": "additive", "cell": "lstm"}, {"model": "transformer", "transformer.heads": 2}):
        config = tiny.changed(BASE, changes)
        corpus = corpora().corpus(config)
        model = seq2seq.build(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
        made = jax.jit(model.init)(jax.random.key(0))
        assert forecast.parameters(config, corpus) == sum(value.size for value in made.values())


def test_multiplications_against_a_count_by_hand():
    """Of a plain tanh RNN without attention; sources and targets of mean length."""
    config = tiny.changed(BASE, {"encoder.size": 4, "embedding.size": 3})
    corpus = corpora().corpus(config)
    pairs = corpus.encoded["train"]
    source = -(-sum(len(s) for s, _ in pairs) // len(pairs))
    target = -(-sum(len(t) for _, t in pairs) // len(pairs))
    batch, size, width, words = config.train.batch_size, 4, 3, len(corpus.target.vocabulary)
    encoder, decoder = source * (width * size + size * size), target * (width * size + size * size)
    forward = batch * (encoder + decoder + target * size * words)
    counted = forecast.multiplications(config, corpus)
    # Of each product the gradient has two; some of those of the output are done again, and none of the embeddings.
    assert 2.9 * forward < counted < 3.6 * forward
    twice = forecast.multiplications(tiny.changed(config, {"train.batch_size": 2 * batch}), corpus)
    assert twice == 2 * counted
    assert forecast.multiplications(tiny.changed(config, {"precision": "bfloat16"}), corpus) == counted


def test_a_tuned_study(tmp_path, capsys, programs):
    out = tmp_path / "out"

    def variants(changes):
        return tiny.combined(configs.override(BASE, changes), {"score": ["none", "dot"]})

    candidates = tuning.candidates(variants, {"optim.learning_rate": [0.2, 0.1, 0.3]}, corpora(), 2)
    options = {"seeds": range(4), "out": str(out), "corpora": corpora(), "runs_per_program": 5}
    forecast.of_tuning(candidates, **options)
    assert not out.exists()
    told = capsys.readouterr().out
    first, then = told.split("Then, as if the first choice of every variant were taken:")
    assert "6 variant(s), 2 group(s), 12 run(s), 0 of them done; 4 program(s) to train" in first
    assert "2 variant(s), 2 group(s), 8 run(s), 0 of them done; 2 program(s) to train" in then
    tuning.run(candidates, **options)
    assert sorted(programs.values()) == [3, 3, 3, 3, 4, 4]
    assert set(re.findall(r"\b[0-9a-f]{12}\b", first)) < set(programs)
    capsys.readouterr()
    forecast.of_tuning(candidates, **options)
    told = capsys.readouterr().out
    assert "Then, with what was chosen:" in told
    assert told.count("0 program(s) to train") == 2


@pytest.fixture
def two_cores(monkeypatch):
    """A machine without GPUs, and data that other processes could load."""
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    monkeypatch.setattr(devices, "visible_gpus", list)
    monkeypatch.setattr(jobs.data, "load", lambda *_, **__: DATA)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return study.Corpora(study.Source())


def test_programs_at_a_time_share_the_cores(two_cores, monkeypatch):
    whole = [(60.0, 1.0), (30.0, 1.0), (30.0, 1.0), (20.0, 1.0)]
    assert Room.of(Local(), None).seconds(whole) == 140
    assert Room.of(Local(2), None).seconds(whole) == 80, "handed out in their order: 60 + 20 beside 30 + 30"
    assert Room.of(Local(8), None).seconds(whole) == 70, "eight places, and work for two cores"
    assert Room.of(Local(2), None).seconds([(s, 2.0) for s, _ in whole]) == 140, "each keeps both cores busy"
    assert Room.of(Local(2), None).seconds([(s, 1.5) for s, _ in whole]) == 105
    assert Room.of(Local(2), None).seconds([]) == 0
    assert Room.of(Resources(), None).slots == 2
    assert Room.of(Resources(cpus=2), None).slots == 1
    assert Room.of(Resources("head:1"), None) == Room(
        1, 2, "one program after another; Ray trains as many at a time as the cluster has room for"
    )
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0", "1", "2"])
    assert Room.of(Local(8), None).slots == 3
    assert Room.of(Resources(cpus=0.1, gpus=0.5), None).slots == 3


def test_jobs_are_in_the_estimate(tmp_path, capsys, programs, two_cores):
    variants, options = tiny.combined(BASE, AXES), {"out": str(tmp_path), "runs_per_program": 3, "corpora": two_cores}

    def told(**more):
        forecast.of_study(variants, seeds=range(3), **options, **more)
        output = capsys.readouterr().out
        assert "6 program(s) to train" in output
        return output

    # Six equal programs of 2 x 10 s to compile, 3 runs x 0.5 s x (6 steps + 17 sentences / 3 a batch).
    each = forecast.COMPILATIONS * 10 + 3 * 0.5 * (6 + forecast.SEARCH * 17 / 3)
    assert f"about {forecast.clock(6 * each)}, one program after another (" in told()
    assert f"about {forecast.clock(3 * each)}, 2 programs at a time on 2 core(s) (" in told(launcher=Local(2))
    assert f"about {forecast.clock(3 * each)}, 4 programs at a time on 2 core(s) (" in told(launcher=Local(4))


def test_programs_beside_others_are_timed_as_they_will_be(tmp_path, monkeypatch):
    """On all cores, as a lone one is; on one GPU where there are any."""
    for gpus, count, mesh in (([], 2, None), (["0", "1"], 2, MeshShape()), (["0", "1"], 1, None)):
        monkeypatch.setattr(devices, "visible_gpus", lambda gpus=gpus: gpus)
        assert forecast._Teller(forecast._looked_at(str(tmp_path)), Cut(0), Local(count)).mesh == mesh
    assert forecast._Teller(forecast._looked_at(str(tmp_path)), Cut(0), Resources(gpus=0)).mesh is None
    assert forecast._Teller(forecast._looked_at(str(tmp_path)), Cut(0), Resources(gpus=0.5)).mesh == MeshShape()


def test_steps_are_timed_with_the_cores_that_they_keep_busy():
    speed = forecast.timed([BASE], corpora().corpus(BASE))
    assert 0 < speed.cores < 1.05 * devices.available_cores()


def test_what_is_missing_is_told_as_the_study_tells_it(tmp_path, two_cores, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = {"seeds": [0], "out": str(tmp_path / "out"), "corpora": two_cores}
    candidates = tuning.candidates(
        lambda changes: [configs.override(BASE, changes)], {"optim.learning_rate": [0.2, 0.1]}, two_cores, 1
    )
    for call, wanted in (
        (forecast.of_study, [BASE]),
        (forecast.of_tuning, candidates),
        (study.run, [BASE]),
        (tuning.run, candidates),
    ):
        with pytest.raises(UserError, match="--launcher=ray: Ray is not installed"):
            call(wanted, launcher=Resources(), **options)
        with pytest.raises(UserError, match="--log_to: unknown tracker 'wandbb'"):
            call(wanted, log_to=["wandbb"], **options)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_those_of_the_study(tmp_path):
    wrong = tiny.changed(BASE, {"bridge": "zero"})
    with pytest.raises(UserError, match="score=none with bridge=zero"):
        forecast.of_study([wrong], seeds=[0], out=str(tmp_path), corpora=corpora())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        forecast.of_study([BASE], seeds=[0], out=str(file), corpora=corpora())


@pytest.mark.parametrize("change", [{"runs": 0}, {"steps_per_second": "x"}])
def test_a_damaged_timing_is_one_line(tmp_path, two_cores, change):
    study.run([BASE], seeds=[0], out=str(tmp_path), corpora=two_cores)
    (path,) = tmp_path.glob("programs/*/timing.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"timing\.json: expected '(runs|steps_per_second)' of"):
        forecast.of_study([BASE], seeds=[0, 1], out=str(tmp_path), corpora=two_cores)


def test_a_mesh_of_other_machines_is_not_looked_for_here(tmp_path, two_cores, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    count = jax.device_count() + 1
    options = {"seeds": range(count), "out": str(tmp_path / "out"), "corpora": two_cores, "mesh": MeshShape(count)}
    with pytest.raises(UserError, match=f"needs {count} devices"):
        forecast.of_study([BASE], **options)
    forecast.of_study([BASE], launcher=Resources(), **options)
    told = capsys.readouterr().out
    assert f"{count} run(s)" in told
    assert "on the devices that are here and not on the mesh" in told
