import csv
import json
import math
import re

import pytest
import tiny

from attn_jax import report, study, sweep
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
    return study.run(sweep.product(BASE, axes), seeds=range(seeds), out=str(out), corpora=corpora, **options)


def results(out):
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
    monkeypatch.setattr(study.program, "train", lambda *args: pytest.fail("trained"))
    variants = sweep.product(BASE, {"combine": ["tanh", "linear"], "score": ["none", "dot"]})
    distinct, dropped = sweep.merged(variants)
    assert [(v.score.name, v.combine.name) for v in distinct] == [("none", "tanh"), ("dot", "tanh"), ("dot", "linear")]
    assert dropped == 1
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run(tmp_path)
    assert "3 of 6 combinations equal another one and are left out\n" in capsys.readouterr().err


def test_files_of_a_run(out):
    found = results(out)
    assert set(found) == {(rate, 0) for rate in RATES.values()}
    folder = out / "runs" / found[0.05, 0]["run_id"]
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "parameters", "predictions.dev.jsonl", "predictions.test.jsonl"),
        *("result.json", "vocabulary.json"),
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


def test_the_parameters_with_the_best_dev_value_are_tested(out):
    result = results(out)[0.05, 0]
    seen = evaluations(out, result)
    assert [line["step"] for line in seen] == [1, 2, 3, 4, 5, 6]
    best = min(seen, key=lambda line: line["loss"])
    assert (result["selected_step"], result["stopped"], result["steps"]) == (best["step"], None, 6)
    assert result["metrics"]["dev"]["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_patience(out):
    result = results(out)[1e-30, 0]
    assert result["stopped"] == {"reason": "no better loss in 2 evaluations", "step": 3}
    assert (result["selected_step"], result["steps"]) == (1, 3)
    assert len(evaluations(out, result)) == 3


def test_numbers_that_are_not_finite_stop_that_run_and_are_told(out):
    result = results(out)[1e30, 0]
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
        result = results(out)[rate, 0]
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
    assert set(results(out)) == {(rate, seed) for rate in RATES.values() for seed in (0, 1)}
    assert len(list((out / "programs").iterdir())) == 2

    old = results(out)
    broken = old[0.05, 0]
    (out / "runs" / broken["run_id"] / "result.json").unlink()
    run(out, seeds=2, runs_per_program=1)
    again = results(out)
    assert set(again) == set(old)
    assert len(list((out / "programs").iterdir())) == 2, "its members are those written down, whatever is asked for now"
    assert again[0.05, 0] == broken, "the same numbers"
    touched = {path.parent.name for path, stamp in stamps(out).items() if stamp != after.get(path)}
    assert old[0.05, 1]["run_id"] not in touched
    with (out / "results.csv").open(newline="") as file:
        lines = {(line["optim.learning_rate"], line["seed"]) for line in csv.DictReader(file)}
    assert ("0.05", "0") in lines
    assert ("0.05", "1") in lines


def test_a_lone_run_that_fails_and_training_without_dev(tmp_path):
    overflowing = tiny.changed(BASE, {"optim.learning_rate": 1e30})
    study.run([overflowing], seeds=[0], out=str(tmp_path / "a"), corpora=study.Corpora(lambda name: tiny.dataset()))
    (result,) = results(tmp_path / "a").values()
    assert result["stopped"]["step"] == 1

    one_step = tiny.changed(BASE, {"train.steps": 1, "train.select": "best_dev"})
    corpora = study.Corpora(lambda name: tiny.dataset(dev=0))
    study.run([one_step], seeds=[0], out=str(tmp_path / "b"), corpora=corpora)
    (result,) = results(tmp_path / "b").values()
    assert (result["selected_step"], set(result["metrics"])) == (1, {"test"})
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


def test_programs_are_parts_of_groups(tmp_path, monkeypatch):
    trained = []

    def train(members, *_):
        trained.append([(member.score.name, member.seed) for member in members])

    monkeypatch.setattr(study.program, "train", train)
    monkeypatch.setattr(study.report, "build", lambda path: None)
    variants = sweep.product(BASE, {"score": ["none", "dot"]})
    corpora = study.Corpora(lambda name: tiny.dataset())
    study.run(variants, seeds=range(5), out=str(tmp_path), corpora=corpora, runs_per_program=2)
    assert sorted(map(len, trained)) == [1, 1, 2, 2, 2, 2]
    assert all(len({score for score, _ in program}) == 1 for program in trained)
    every = [member for program in trained for member in program]
    assert sorted(every) == [(score, seed) for score in ("dot", "none") for seed in range(5)]


@pytest.mark.parametrize(("train", "seen"), [(11, [3, 6, 9]), (3, [1, 2, 3])])
def test_dev_is_evaluated_once_an_epoch(tmp_path, train, seen):
    # 2.75 steps an epoch, and three quarters of a step, which counts as one.
    changes = {"train.epochs": 3, "train.steps": 0, "train.eval_every": 0, "train.batch_size": 4, "train.patience": 0}
    corpora = study.Corpora(lambda name: tiny.dataset(train=train))
    study.run([tiny.changed(BASE, changes)], seeds=[0], out=str(tmp_path), corpora=corpora)
    (result,) = results(tmp_path).values()
    assert [line["step"] for line in evaluations(tmp_path, result)] == seen
