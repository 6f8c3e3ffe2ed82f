"""A tuned study from its first run to its page: what is right is known, and nothing of test reaches the choice."""

import csv
import json
import re
import shutil

import pytest
import tiny

from attn_jax import config as configs
from attn_jax import data, program, report, storage, study, tuning
from attn_jax.errors import UserError

BASE = tiny.config(
    **{"score": "none", "cell": "rnn", "train.metric": "loss", "train.steps": 4, "train.eval_every": 4},
    **{"combine.name": "tanh"},
)
RATES = [1e-9, 0.05]
DATA = tiny.dataset()
OTHER_TEST = tiny.with_splits(DATA, test=[("c c c", "d d"), ("a", "b b b b")])


def described(changes):
    return tiny.combined(configs.override(BASE, changes), {"score": ["none", "dot"]})


def tune(out, dataset=DATA, rates=RATES, seeds=2, options=None, **axes):
    corpora = study.Corpora(lambda name: dataset)
    candidates = tuning.candidates(described, {"optim.learning_rate": rates, **axes}, corpora, 2)
    return tuning.run(
        candidates, seeds=range(seeds), out=str(out), corpora=corpora, title="T", command="tune", **(options or {})
    )


def results_of(out):
    """Result by (score, rate, seed)."""
    found = {}
    for path in out.glob("runs/*/result.json"):
        config, result = (json.loads(path.with_name(name).read_text()) for name in ("config.json", "result.json"))
        found[config["score"]["name"], config["optim"]["learning_rate"], config["seed"]] = result
    return found


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").glob("**/*") if path.is_file()}


def said(out):
    return json.loads((out / "study.json").read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tuning") / "out"
    assert tune(directory) == directory / "report.html"
    return directory


SEEDS = [tuning.FIRST_SEED, tuning.FIRST_SEED + 1]


def test_every_choice_is_tried_and_the_better_one_trained_anew(out):
    tried = {(score, rate, seed) for score in ("none", "dot") for rate in RATES for seed in SEEDS}
    reported = {(score, 0.05, seed) for score in ("none", "dot") for seed in (0, 1)}
    found = results_of(out)
    assert set(found) == tried | reported
    for score in ("none", "dot"):
        means = [sum(found[score, rate, seed]["metrics"]["dev"]["loss"] for seed in SEEDS) / 2 for rate in RATES]
        assert means[1] < means[0] - 0.05, "a rate of 1e-9 learns nothing"
    assert [entry["chosen"] for entry in said(out)["tuning"]] == [{"optim.learning_rate": 0.05}] * 2


def test_what_is_tried_never_sees_test(out):
    for (_, _, seed), result in results_of(out).items():
        folder = out / "runs" / result["run_id"]
        splits = {"dev"} if seed in SEEDS else {"test", "dev"}
        assert set(result["metrics"]) == set(result["dataset"]["sizes"]) - {"train"} == splits
        assert {path.name for path in folder.glob("predictions.*")} == {f"predictions.{name}.jsonl" for name in splits}
    one, other = (study.Corpora(lambda name, d=d: d).without_tests().corpus(BASE) for d in (DATA, OTHER_TEST))
    assert set(one.encoded) == set(one.dataset.splits) == {"train", "dev"}
    assert one.fingerprint == other.fingerprint == data.datasets.fingerprint(one.dataset.splits)


def test_tables_have_the_reported_runs_and_labels_without_the_choice(out):
    for name, seeds, splits in (("results", {"0", "1"}, {"test", "dev"}), ("tuning", set(map(str, SEEDS)), {"dev"})):
        with (out / f"{name}.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert {line["seed"] for line in lines} == seeds
        assert {line["split"] for line in lines} == splits
    loaded = report.load(out)
    (section,) = loaded.sections
    assert [variant.label for variant in section.variants] == ["none", "dot"]
    assert (len(loaded.runs), len(loaded.tried), loaded.others) == (4, 8, 0)
    text, page = report.table_text(out), (out / "report.html").read_text()
    assert text.count("learning_rate=0.05") == 2
    assert text.count("learning_rate is the highest tried") == 2
    for words in ("Tuning", "the same 2 choices with 2 seed(s) each", "without the test data", "highest tried"):
        assert words in page
    assert [one.label for one in section.tuned] == ["none", "dot"]


def test_repeating_does_nothing_and_more_seeds_train_the_chosen(out, monkeypatch, capsys):
    before, file = stamps(out), (out / "study.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(program, "train", lambda *args: pytest.fail("trained"))
        tune(out)
    assert (stamps(out), (out / "study.json").read_bytes()) == (before, file)
    capsys.readouterr()
    tune(out, seeds=3)
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert {seed for _, _, seed in results_of(out)} == {0, 1, 2, *SEEDS}
    assert "8 of 8 runs have results already" in capsys.readouterr().err
    tune(out, seeds=1)
    (section,) = report.load(out).sections
    assert [len(variant.done) for variant in section.variants] == [3, 3], "what is finished stays on the page"


def test_other_test_data_leave_what_was_tried(out, capsys):
    before = results_of(out)
    tune(out, OTHER_TEST)
    told = capsys.readouterr().err
    assert "8 of 8 runs have results already and are kept" in told
    after = results_of(out)
    assert {key: after[key] for key in before if key[2] in SEEDS} == {
        key: result for key, result in before.items() if key[2] in SEEDS
    }
    now = [one for one in report.load(out).sections if not one.earlier]
    assert [sorted(run.seed for run in variant.runs) for one in now for variant in one.variants] == [[0, 1]] * 2
    assert len(now[0].tuned) == 2


def test_a_lost_result_is_trained_again_to_the_same_numbers(out):
    result = results_of(out)["dot", 1e-9, SEEDS[0]]
    (out / "runs" / result["run_id"] / "result.json").unlink()
    tune(out)
    assert results_of(out)["dot", 1e-9, SEEDS[0]] == result


def test_a_later_grid_keeps_what_is_finished_and_tells_of_the_new_choice_alone(tmp_path, monkeypatch):
    """Training is replaced by writing a loss that is lowest at the middle of the rates."""
    wanted = 0.01

    def train(members, corpus, output, *_):
        for member in members:
            run_id = configs.run_id(member, corpus.fingerprint)
            loss = abs(member.optim.learning_rate - wanted)
            metrics = {split: {"loss": loss, "exact_match": 1.0} for split in corpus.encoded if split != "train"}
            about = {"name": "toy/letters", "fingerprint": corpus.fingerprint, "metric": "exact_match", "sizes": {}}
            result = {"run_id": run_id, "dataset": about, "metrics": metrics, "signatures": {}, "selected_step": 1}
            result |= {"steps": 1, "parameters": 1, "stopped": None, "versions": {}, "git": ""}
            storage.write_json(output.run(run_id) / "config.json", configs.to_dict(member))
            storage.write_json(output.run(run_id) / "result.json", result)

    monkeypatch.setattr(program, "train", train)
    tune(tmp_path, rates=[0.1, 0.05], cell=["rnn", "gru"])
    old = stamps(tmp_path)
    assert [entry["chosen"] for entry in said(tmp_path)["tuning"]] == [
        {"optim.learning_rate": 0.05, "cell.name": "rnn"}
    ] * 2
    wanted = 0.02
    tune(tmp_path, rates=[0.1, 0.05, 0.02, 0.001], cell=["rnn", "gru"])
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in old} == old
    loaded = report.load(tmp_path)
    (section,) = loaded.sections
    assert {run.config["optim.learning_rate"] for run in section.runs} == {0.02}
    assert loaded.others == 4, "what the first grid led to"
    assert "learning_rate is the" not in report.table_text(tmp_path), "no edge"
    study.run(described({}), seeds=[0], out=str(tmp_path), corpora=study.Corpora(lambda name: DATA))
    (section,) = report.load(tmp_path).sections
    assert [variant.label for variant in section.variants] == ["none, tuned", "dot, tuned", "none", "dot"]


def test_a_field_that_does_not_matter_to_a_variant():
    corpora = study.Corpora(lambda name: DATA)
    found = tuning.candidates(described, {"combine": ["tanh", "linear"]}, corpora, 1)
    assert [[values for values, _ in one.choices] for one in found.variants] == [
        [{"combine.name": "tanh"}],
        [{"combine.name": "tanh"}, {"combine.name": "linear"}],
    ]
    again = tuning.candidates(lambda c: [*described(c), *described(c)], {"combine": ["tanh", "linear"]}, corpora, 1)
    assert (again.dropped, again.variants) == (2, found.variants)


@pytest.mark.parametrize(
    ("axes", "dataset", "message"),
    [
        ({"optim.learning_rate": RATES}, tiny.dataset(dev=0), "has no dev split to choose by"),
        ({"train.metric": ["loss", "bleu"]}, DATA, "--tune: train.metric changes what values on dev mean"),
        ({"window.width": [2, 3]}, DATA, "--tune: there is nothing to choose: the values of window.width"),
        ({"decoder.size": [4, 5]}, DATA, "score 'dot' needs equal widths"),
        ({"optim.learning_rate": [-1.0, 0.1]}, DATA, "optim.learning_rate=-1.0: must be greater than 0"),
    ],
)
def test_mistakes(axes, dataset, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tuning.candidates(described, axes, study.Corpora(lambda name: dataset), 1)


def test_seeds_of_what_is_tried_are_not_reported(tmp_path):
    corpora = study.Corpora(lambda name: DATA)
    candidates = tuning.candidates(described, {"optim.learning_rate": RATES}, corpora, 1)
    with pytest.raises(UserError, match="trained with seeds below 1000000"):
        tuning.run(candidates, seeds=[0, tuning.FIRST_SEED], out=str(tmp_path / "out"), corpora=corpora)
    assert not (tmp_path / "out").exists()


def shard(out, index):
    return tune(out, options={"runs_per_program": 2, "shard": study.Shard(index, 2)})


def collect(parts, merged):
    for part in parts:
        for name in ("runs", "programs"):
            shutil.copytree(part / name, merged / name, dirs_exist_ok=True)
    return merged


LACKING = (
    "4 of 8 runs that are tried have no result yet and are left to other shards; when all have one, the same command"
)


def test_shards_try_and_then_train_what_is_chosen_by_all(tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole"
    tune(whole, options={"runs_per_program": 2})
    capsys.readouterr()
    parts = [tmp_path / f"part{index}" for index in range(2)]
    for index, part in enumerate(parts):
        assert not shard(part, index).exists()
        told = capsys.readouterr().err
        assert told.count("no result yet") == told.count(LACKING) == 1
        assert "chosen on dev" not in told
        assert {seed for _, _, seed in results_of(part)} == set(SEEDS)
    tried = collect(parts, tmp_path / "tried")
    seconds = [shutil.copytree(tried, tmp_path / f"second{index}") for index in range(2)]
    for index, part in enumerate(seconds):
        assert shard(part, index).exists()
        told = capsys.readouterr().err
        assert told.count("chosen on dev: learning_rate=0.05") == 2
        assert "2 of 4 runs have no result yet: the table and the page are of the others" in told
        assert len(results_of(part)) == 8 + 2
    monkeypatch.setattr(program, "train", lambda *args: pytest.fail("trained"))
    merged = collect(seconds, tmp_path / "merged")
    tune(merged, options={"runs_per_program": 2})
    for name in ("results.csv", "tuning.csv"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()
    assert said(merged)["tuning"] == said(whole)["tuning"]


def test_the_last_shard_of_a_common_directory_goes_on(tmp_path, capsys):
    assert not shard(tmp_path, 0).exists()
    assert LACKING in capsys.readouterr().err
    assert shard(tmp_path, 1).exists()
    assert len(results_of(tmp_path)) == 8 + 2
    assert [entry["chosen"] for entry in said(tmp_path)["tuning"]] == [{"optim.learning_rate": 0.05}] * 2
    shard(tmp_path, 0)
    assert "no result yet" not in capsys.readouterr().err.split("chosen on dev")[-1]
    reported = {key for key in results_of(tmp_path) if key[2] not in SEEDS}
    assert reported == {(score, 0.05, seed) for score in ("none", "dot") for seed in (0, 1)}


@pytest.mark.parametrize(
    ("given", "path", "values", "comparable"),
    [
        ({}, "data.target_unit", ["words", "characters"], False),
        ({}, "data.target_min_count", [1, 2], False),
        ({}, "data.source_min_count", [1, 2], True),
        ({"data.target_unit": "bpe"}, "data.bpe_size", [12, 14], False),
        ({"data.source_unit": "bpe"}, "data.bpe_size", [12, 14], True),
    ],
)
def test_values_a_target_symbol_are_not_compared_between_other_symbols(given, path, values, comparable):
    def by_loss(changes):
        return [tiny.changed(one, {"train.metric": "loss", **given, **changes}) for one in described({})]

    corpora = study.Corpora(lambda name: DATA)
    if comparable:
        assert len(tuning.candidates(by_loss, {path: values}, corpora, 1).variants[0].choices) == 2
        return
    with pytest.raises(UserError, match=f"--tune: {path} changes the target symbols, of which loss is a mean"):
        tuning.candidates(by_loss, {path: values}, corpora, 1)


@pytest.mark.parametrize(
    "change", [lambda entry: entry.update(choices=[]), lambda entry: entry["choices"][0]["values"].clear()]
)
def test_a_study_whose_choices_were_edited_is_told_of(tmp_path, change):
    tune(tmp_path / "out")
    path = tmp_path / "out" / "study.json"
    value = json.loads(path.read_text())
    change(value["tuning"][0])
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"study\.json: tuning: expected 'choices' with a value for each of 'fields'"):
        report.load(tmp_path / "out")


def test_symbols_that_all_choices_have_are_comparable():
    def by_loss(changes):
        return [tiny.changed(one, {"train.metric": "loss", **changes}) for one in described({})]

    axes = {"data.target_min_count": [2], "optim.learning_rate": RATES}
    found = tuning.candidates(by_loss, axes, study.Corpora(lambda name: DATA), 1)
    assert all(len(one.choices) == len(RATES) for one in found.variants)
