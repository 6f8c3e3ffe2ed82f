import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
import threading

import pytest
import tiny

from attn_jax import config as configs
from attn_jax import jobs, provenance, report, results, storage, study, sweep
from attn_jax.errors import UserError

RATES = {"learns": 0.05, "stands": 1e-30, "overflows": 1e30}
BASE = tiny.config(
    **{"score": "none", "cell": "rnn", "train.eval_every": 1, "train.patience": 2},
    **{"train.metric": "loss"},
)


def run(out, seeds=1, **options):
    axes = {"combine": ["tanh", "linear"], "optim.learning_rate": list(RATES.values())}
    corpora = study.Corpora(lambda name: tiny.dataset())
    options = {"title": "Rates", "command": "a command", **options}
    return study.run(tiny.combined(BASE, axes), seeds=range(seeds), out=str(out), corpora=corpora, **options)


def results_of(out):
    """Every run's configuration and result, by learning rate and seed."""
    found = {}
    for path in out.glob("runs/*/result.json"):
        config, result = (json.loads(path.with_name(name).read_text()) for name in ("config.json", "result.json"))
        found[config["optim"]["learning_rate"], config["seed"]] = result
    return found


def evaluations(out, result):
    lines = (out / "runs" / result["run_id"] / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == "dev"]


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").glob("**/*") if path.is_file()}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study") / "out"
    assert run(directory) == directory / "report.html"
    return directory


def test_equal_combinations_are_merged_and_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs.program, "train", lambda *args: pytest.fail("trained"))
    variants = tiny.combined(BASE, {"combine": ["tanh", "linear"], "score": ["none", "dot"]})
    distinct, dropped = sweep.merged(variants)
    assert [(v.score.name, v.combine.name) for v in distinct] == [("none", "tanh"), ("dot", "tanh"), ("dot", "linear")]
    assert dropped == 1
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run(tmp_path)
    assert "3 of 6 combinations equal another one and are left out\n" in capsys.readouterr().err


def test_files_of_a_run(out):
    found = results_of(out)
    assert set(found) == {(rate, 0) for rate in RATES.values()}
    folder = out / "runs" / found[0.05, 0]["run_id"]
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "data.json", "metrics.jsonl", "parameters", "predictions.dev.jsonl", "predictions.test.jsonl"),
        *("result.json", "tensorboard", "vocabulary.json"),
    }
    predictions = [json.loads(line) for line in (folder / "predictions.test.jsonl").read_text().splitlines()]
    examples = tiny.dataset().splits["test"]
    assert [line["source"] for line in predictions] == [example.source for example in examples]
    right = [line["prediction"] in line["references"] for line in predictions]
    assert found[0.05, 0]["metrics"]["test"]["exact_match"] == pytest.approx(100 * sum(right) / len(right))
    assert [line["target_length"] for line in predictions] == [len(e.target.split()) for e in examples]
    (program,) = (out / "programs").iterdir()
    members = json.loads((program / "program.json").read_text())["members"]
    assert members == [found[rate, 0]["run_id"] for rate in RATES.values()]
    assert {result["program"] for result in found.values()} == {program.name}
    timing = json.loads((program / "timing.json").read_text())
    assert timing["runs"] == 3
    assert timing["steps"] == BASE.train.steps
    # Of 6 steps of 3 runs, one run did all, one stopped after 3 and one in step 2, which counts.
    assert timing["masked_work"] == pytest.approx(1 - (6 + 3 + 2) / 18)
    assert timing["steps_per_second"] > 0
    assert 0 <= timing["cached_compilations"] <= timing["compilations"]
    assert timing["bytes"] > 0
    assert timing["compilations"] >= 3  # first states, steps, and dev
    data = json.loads((folder / "data.json").read_text())
    assert data == {"name": "toy/letters", "fingerprint": tiny.dataset().fingerprint}
    words = [word for example in tiny.dataset().splits["train"] for word in example.target.split()]
    kept = json.loads((out / "data" / f"{tiny.dataset().fingerprint}.json").read_text())
    assert kept == {"name": "toy/letters", "target_words": {word: words.count(word) for word in set(words)}}


def test_the_parameters_with_the_best_dev_value_are_tested(out):
    result = results_of(out)[0.05, 0]
    seen = evaluations(out, result)
    assert [line["step"] for line in seen] == [1, 2, 3, 4, 5, 6]
    best = min(seen, key=lambda line: line["loss"])
    assert (result["selected_step"], result["stopped"], result["steps"]) == (best["step"], None, 6)
    assert result["metrics"]["dev"]["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_patience(out):
    result = results_of(out)[1e-30, 0]
    assert result["stopped"] == {"reason": "no better loss in 2 evaluations", "step": 3}
    assert (result["selected_step"], result["steps"]) == (1, 3)
    assert len(evaluations(out, result)) == 3


def test_numbers_that_are_not_finite_stop_that_run_and_are_told(out):
    result = results_of(out)[1e30, 0]
    assert result["stopped"] == {"reason": "loss or gradient was not finite", "step": 1}
    page = (out / "report.html").read_text()
    assert "loss or gradient was not finite" in page
    assert "no better loss in 2 evaluations" in page


def test_results_table(out):
    with (out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:8] == ["run_id", "dataset", "score", "cell", "seed", "split", "metric", "value"]
    assert "optim.learning_rate" in lines[0]
    found = {(float(line["optim.learning_rate"]), line["split"], line["metric"]): line for line in lines}
    assert len(found) == len(lines)
    for rate in (0.05, 1e-30):
        result = results_of(out)[rate, 0]
        for split in ("dev", "test"):
            assert {metric for r, s, metric in found if (r, s) == (rate, split)} == set(result["metrics"][split])
            for metric, value in result["metrics"][split].items():
                line = found[rate, split, metric]
                assert float(line["value"]) == pytest.approx(value)
                assert (line["run_id"], line["score"], line["seed"]) == (result["run_id"], "none", "0")
    assert re.search(r"0\.05", report.table_text(out))


def test_finished_runs_are_kept_more_seeds_add_runs_and_a_broken_program_is_taken_up(out, capsys):
    before = stamps(out)
    csv_before, page = (out / "results.csv").read_bytes(), (out / "report.html").stat().st_mtime_ns
    run(out)
    assert stamps(out) == before
    assert (out / "results.csv").read_bytes() == csv_before
    assert (out / "report.html").stat().st_mtime_ns > page
    told = capsys.readouterr().err
    assert "3 of 3 runs have results already and are kept" in told
    assert "program 1" not in told

    run(out, seeds=2)
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert set(results_of(out)) == {(rate, seed) for rate in RATES.values() for seed in (0, 1)}
    assert len(list((out / "programs").iterdir())) == 2

    old = results_of(out)
    broken = old[0.05, 0]
    (out / "runs" / broken["run_id"] / "result.json").unlink()
    capsys.readouterr()
    run(out, seeds=2, runs_per_program=1)
    told = capsys.readouterr().err
    assert "5 of 6 runs have results already and are kept" in told
    assert "is trained whole, 3 runs; the results of 2 of them are there already and are not touched" in told
    assert "program 1 of 1" in told
    again = results_of(out)
    assert set(again) == set(old)
    assert len(list((out / "programs").iterdir())) == 2, "its members are those written down, whatever is asked for now"
    assert again[0.05, 0] == broken, "the same numbers"
    runs = out / "runs"
    touched = {path.relative_to(runs).parts[0] for path, stamp in stamps(out).items() if stamp != after.get(path)}
    assert touched == {broken["run_id"]}, "the finished members of the program are left as they are"
    with (out / "results.csv").open(newline="") as file:
        lines = {(line["optim.learning_rate"], line["seed"]) for line in csv.DictReader(file)}
    assert ("0.05", "0") in lines
    assert ("0.05", "1") in lines


def test_a_lone_run_that_fails_and_training_without_dev(tmp_path):
    overflowing = tiny.changed(BASE, {"optim.learning_rate": 1e30})
    study.run([overflowing], seeds=[0], out=str(tmp_path / "a"), corpora=study.Corpora(lambda name: tiny.dataset()))
    (result,) = results_of(tmp_path / "a").values()
    assert result["stopped"]["step"] == 1

    one_step = tiny.changed(BASE, {"train.steps": 1, "train.select": "best_dev"})
    corpora = study.Corpora(lambda name: tiny.dataset(dev=0))
    study.run([one_step], seeds=[0], out=str(tmp_path / "b"), corpora=corpora)
    (result,) = results_of(tmp_path / "b").values()
    assert (result["selected_step"], set(result["metrics"])) == (1, {"test"})
    # Its only dispatch is mostly compilation.
    (timing,) = (json.loads(path.read_text()) for path in (tmp_path / "b").glob("programs/*/timing.json"))
    assert [timing[name] for name in ("steps_per_second", "target_tokens_per_second", "compile_seconds")] == [None] * 3
    assert math.isfinite(result["metrics"]["test"]["loss"])


WRONG = {
    "no seeds": ({}, 0, "a study needs at least one seed"),
    "metric": ({"train.metric": "bleus"}, 1, "unknown train.metric 'bleus': did you mean 'bleu'?"),
    "length": ({"train.steps": 0, "train.epochs": 0}, 1, "nothing to train"),
    "filter": ({"data.max_source_length": 1}, 1, "no training pair is left"),
    "combination": ({"score": "none", "bridge": "zero"}, 1, "score=none with bridge=zero"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_refused_before_anything_is_written(case, tmp_path):
    changes, seeds, message = WRONG[case]
    data = tiny.with_splits(tiny.dataset(), train=[("a b", "b a"), ("c d", "d c")])
    with pytest.raises(UserError, match=re.escape(message)):
        study.run(
            [tiny.changed(BASE, changes)],
            seeds=range(seeds),
            out=str(tmp_path / "out"),
            corpora=study.Corpora(lambda name: data),
        )
    assert not (tmp_path / "out").exists()


def test_recommended_configuration_and_hidden_size():
    data = tiny.dataset(recommended={"encoder.name": "bi", "decoder.size": 4, "score": "dot"})
    config = sweep.base(data, {"hidden_size": "10", "embedding.size": 7})
    assert (config.data.dataset, config.score.name) == ("toy/letters", "dot")
    assert (config.encoder.size, config.decoder.size, config.embedding.size) == (5, 10, 7)
    assert sweep.base(data, {}).decoder.size == 4


# -- which program trains which run; training itself is replaced by writing a result ---------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The programs that were trained, each a list of (score, seed); the page is not made."""
    programs = []

    def train(members, corpus, output, *_):
        programs.append([(member.score.name, member.seed) for member in members])
        for member in members:
            fake_result(output, member)

    monkeypatch.setattr(jobs.program, "train", train)
    monkeypatch.setattr(study.report, "build", lambda path: None)
    monkeypatch.setattr(study, "POLL", 0.02)
    return programs


def fake_result(output, config):
    fingerprint = tiny.dataset().fingerprint
    run_id = configs.run_id(config, fingerprint)
    dataset = {"name": "toy/letters", "fingerprint": fingerprint, "metric": "exact_match", "sizes": {}}
    empty = {"metrics": {}, "signatures": {}, "selected_step": 1, "steps": 1, "parameters": 1, "stopped": None}
    made_by = {"versions": provenance.versions(), "git": provenance.git_commit()}
    storage.write_json(output.run(run_id) / "config.json", configs.to_dict(config))
    storage.write_json(output.run(run_id) / "result.json", {"run_id": run_id, "dataset": dataset, **empty, **made_by})


def plan_only(out, seeds, scores=("none",), **options):
    variants = tiny.combined(BASE, {"score": list(scores)})
    corpora = study.Corpora(lambda name: tiny.dataset())
    study.run(variants, seeds=range(seeds), out=str(out), corpora=corpora, **options)


def ids_of(seeds, score="none"):
    variant, *_ = sweep.merged(tiny.combined(BASE, {"score": [score]}))[0]
    return [configs.run_id(configs.override(variant, {"seed": n}), tiny.dataset().fingerprint) for n in range(seeds)]


def begin(out, *programs):
    """Programs that were written down and came to nothing."""
    output = results.Output(out)
    for members in programs:
        storage.write_json(output.program(results.program_id(members)) / "program.json", {"members": members})
    return output


def test_programs_are_parts_of_groups(tmp_path, trained):
    plan_only(tmp_path, 5, ["none", "dot"], runs_per_program=2)
    assert sorted(map(len, trained)) == [1, 1, 2, 2, 2, 2]
    assert all(len({score for score, _ in program}) == 1 for program in trained)
    every = [member for program in trained for member in program]
    assert sorted(every) == [(score, seed) for score in ("dot", "none") for seed in range(5)]


def test_of_unfinished_programs_that_share_runs_one_is_taken_up(tmp_path, trained):
    ids = ids_of(4)
    begin(tmp_path, ids[:3], ids[:2], ids[2:])
    plan_only(tmp_path, 4)
    assert trained == [[("none", 0), ("none", 1), ("none", 2)], [("none", 3)]], "no run twice"


def test_a_run_that_lost_its_configuration_is_trained_again(tmp_path, trained, capsys):
    plan_only(tmp_path, 2)
    (tmp_path / "runs" / ids_of(2)[1] / "config.json").unlink()
    plan_only(tmp_path, 2)
    assert trained == [[("none", 0), ("none", 1)]] * 2
    assert "1 of 2 runs have results already" in capsys.readouterr().err


def test_what_another_process_trains_is_left_to_it_and_waited_for(tmp_path, trained, capsys):
    first, second = ids_of(3), ids_of(3, "dot")
    output = begin(tmp_path, first)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'wb'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    lock = output.program(results.program_id(first)) / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "1\n"
        thread = threading.Thread(target=plan_only, args=(tmp_path, 3, ["none", "dot"]))
        thread.start()
        while thread.is_alive() and not (trained and all(map(output.done, second))):
            thread.join(0.05)
        thread.join(0.5)
        assert thread.is_alive(), "it waits for the other process"
        assert trained == [[("dot", seed) for seed in range(3)]]
        variant, *_ = sweep.merged(tiny.combined(BASE, {"score": ["none"]}))[0]
        for seed in (0, 1):
            fake_result(output, configs.override(variant, {"seed": seed}))
        other.kill()
    thread.join(20)
    assert trained[1:] == [[("none", seed) for seed in range(3)]], "what a killed process left is taken up"
    assert all(map(output.done, [*first, *second]))
    assert capsys.readouterr().err.count("waiting for 3 run(s) that another process trains") == 1


def test_two_calls_at_once_train_every_run_once(tmp_path, trained):
    threads = [
        threading.Thread(target=plan_only, args=(tmp_path, seeds, scores), kwargs={"runs_per_program": 2})
        for seeds, scores in ((6, ["none", "dot"]), (8, ["dot"]), (6, ["none", "dot"]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    every = [member for program in trained for member in program]
    assert sorted(every) == [("dot", seed) for seed in range(8)] + [("none", seed) for seed in range(6)]
    listed = json.loads((tmp_path / "study.json").read_text())["runs"]
    assert sorted(listed) == sorted([*ids_of(8, "dot"), *ids_of(6)])


def test_study_file_keeps_what_earlier_calls_finished_and_said(tmp_path, trained):
    figure = {"dataset": "toy/letters", "variant": {"score": "none"}, "metric": "exact_match", "source": "a book"}
    plan_only(tmp_path, 1, title="One", command="first", reference=[figure | {"value": 1.0}])
    begun = ids_of(5)[4]
    file = tmp_path / "study.json"
    storage.write_json(file, json.loads(file.read_text()) | {"runs": [*ids_of(1), begun]})
    other = figure | {"dataset": "toy/words", "value": 3.0}
    plan_only(tmp_path, 1, ["dot"], title="Two", command="second", reference=[figure | {"value": 2.0}, other])
    plan_only(tmp_path, 1, ["dot"], title="Two", command="second")
    said = json.loads(file.read_text())
    assert said["runs"] == [*ids_of(1), *ids_of(1, "dot")], "a run that an earlier call gave up is left out"
    assert (said["titles"], said["commands"]) == (["One", "Two"], ["first", "second"])
    assert said["reference"] == [figure | {"value": 2.0}, other]
    assert said["data"] == {BASE.data.dataset: tiny.dataset().fingerprint}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("study.json", "{}", r"study\.json: expected 'runs' of type list"),
        ("study.json", '{"runs": [],\n"titles": 3}', r"study\.json: expected 'titles' of type list"),
        (
            "study.json",
            '{"runs": [], "reference": [{"metric": "bleu"}]}',
            r"reference: expected 'variant' of type dict",
        ),
        ("programs/*/program.json", "[]", r"program\.json: expected 'members' of type list"),
        ("runs/*/result.json", '{"run_id": "x"}', r"result\.json: expected 'dataset\.name' of type str"),
        ("runs/*/result.json", "\n{", r"result\.json:2: not JSON \(.*\); remove it to have it made again"),
    ],
)
def test_broken_files_are_named(tmp_path, trained, name, text, message):
    plan_only(tmp_path, 1)
    begin(tmp_path, ids_of(2))
    next(tmp_path.glob(name)).write_text(text)
    with pytest.raises(UserError, match=message):
        plan_only(tmp_path, 2)


@pytest.mark.parametrize(("train", "seen"), [(11, [3, 6, 9]), (3, [1, 2, 3])])
def test_dev_is_evaluated_once_an_epoch(tmp_path, train, seen):
    # 2.75 steps an epoch, and three quarters of a step, which counts as one.
    changes = {"train.epochs": 3, "train.steps": 0, "train.eval_every": 0, "train.batch_size": 4, "train.patience": 0}
    corpora = study.Corpora(lambda name: tiny.dataset(train=train))
    study.run([tiny.changed(BASE, changes)], seeds=[0], out=str(tmp_path), corpora=corpora)
    (result,) = results_of(tmp_path).values()
    assert [line["step"] for line in evaluations(tmp_path, result)] == seen


def test_hidden_files_of_the_user_stay(tmp_path):
    for name in (".env.template", ".notes.markdown"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".cache.20261129").mkdir()
    left = tmp_path / f".report.html.x{storage.UNFINISHED}"
    left.write_text("half")
    with results.Output(tmp_path).alone():
        assert not left.exists()
    assert all((tmp_path / name).exists() for name in (".env.template", ".notes.markdown", ".cache.20261129"))


def test_attention_is_that_of_the_test_split_however_splits_are_ordered(tmp_path):
    data = tiny.dataset()
    first = tiny.with_splits(dataclasses.replace(data, splits={}), newest=[("d d", "d d"), ("d", "d")])
    data = dataclasses.replace(first, splits={**first.splits, **data.splits})
    assert next(iter(data.splits)) == "newest"
    config = tiny.config(score="dot", cell="rnn", bridge="last")
    study.run([config], seeds=[0], out=str(tmp_path), corpora=study.Corpora(lambda name: data))
    (path,) = tmp_path.glob("runs/*/attention.json")
    sources = {" ".join(example["source"]) for example in json.loads(path.read_text())["examples"]}
    assert sources <= {example.source for example in data.splits["test"]}
