"""The report against hand-computed figures, over result files made here with known numbers."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import VALUES, Page, fake_run, three_scores, write_json
from scipy import stats as reference

from attn_jax import report
from attn_jax.config import Config, override, to_dict
from attn_jax.errors import UserError
from attn_jax.report_data import load
from attn_jax.report_labels import labels
from attn_jax.report_table import rows, signed
from attn_jax.storage import read_lines


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return three_scores(tmp_path / "jobs")


def read_csv(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- results.csv --------------------------------------------------------------------------------------------


def test_results_csv(out: Path) -> None:
    report.build(out)
    first = (out / "results.csv").read_text(encoding="utf-8").split("\n")[0]
    assert first == (
        "run_id,dataset,score,cell,seed,split,metric,value,encoder,bridge,combine,input_feeding,fingerprint"
    )
    lines = read_csv(out)
    found = {
        (line["score"], int(line["seed"])): float(line["value"])
        for line in lines
        if (line["split"], line["metric"]) == ("test", "exact_match")
    }
    assert found == {(score, seed): v for score, values in VALUES.items() for seed, v in enumerate(values)}
    assert len(lines) == 9 * 4
    assert {line["cell"] for line in lines} == {"lstm"}
    assert {line["encoder"] for line in lines} == {"bi"}


def test_results_csv_has_every_field_that_differs(tmp_path: Path) -> None:
    fake_run(tmp_path, {"optim.learning_rate": 0.001}, 70.0)
    fake_run(tmp_path, {"optim.learning_rate": 0.01, "decoder.size": 32, "bridge": "last"}, 71.0)
    report.build(tmp_path)
    lines = [line for line in read_csv(tmp_path) if line["split"] == "test" and line["metric"] == "exact_match"]
    assert list(lines[0])[8:] == [
        "encoder", "bridge", "combine", "input_feeding", "fingerprint", "decoder.size", "optim.learning_rate",
    ]  # fmt: skip
    assert {(line["value"], line["bridge"], line["decoder.size"], line["optim.learning_rate"]) for line in lines} == {
        ("70.0", "dense", "128", "0.001"),
        ("71.0", "last", "32", "0.01"),
    }


# -- the table ----------------------------------------------------------------------------------------------


def test_rows_against_scipy(out: Path) -> None:
    study = load(out)
    table = rows(study, study.sections[0])
    assert [row["label"] for row in table] == ["dot", "general", "none"]
    best, worst = VALUES["dot"], VALUES["none"]
    assert table[0]["mean"]["value"] == pytest.approx(np.mean(best))
    low, high = reference.t.interval(0.95, 2, np.mean(worst), reference.sem(worst))
    assert table[2]["interval"]["text"] == f"{low:.2f} to {high:.2f}"
    assert table[2]["difference"]["value"] == pytest.approx(np.mean(worst) - np.mean(best))
    # Holm over the three pairs: general-none has the smallest p, dot-none the second.
    plain = [reference.ttest_rel(worst, other).pvalue for other in (VALUES["general"], best)]
    assert 3 * plain[0] < 2 * plain[1]
    assert table[2]["p"]["value"] == pytest.approx(2 * plain[1])
    assert table[0]["p"]["value"] is None
    assert table[0]["published"]["text"] == "87.10"
    # Of one run; three train together.
    assert [row["speed"]["value"] for row in table] == [pytest.approx(v / 3) for v in (8000, 7500, 9000)]
    assert table[2]["parameters"]["text"] == "123,456"
    assert table[0]["others"]["token_accuracy (test)"]["value"] == pytest.approx(97.5)
    dev = table[0]["others"]["exact_match (dev)"]
    assert dev["value"] == pytest.approx(np.mean(best) + 1)
    low, high = reference.t.interval(0.95, 2, np.mean(best) + 1, reference.sem(best))
    assert dev["interval"] == f"{low:.2f} to {high:.2f}"
    report.build(out)
    assert f"{dev['text']} {dev['interval']}" in Page(out / "report.html").text


def test_table_text(out: Path) -> None:
    text = report.table_text(out)
    lines = [line.split() for line in text.split("\n") if line.strip().startswith(("dot", "general", "none"))]
    assert [line[:2] for line in lines] == [["dot", "86.67"], ["general", "85.93"], ["none", "78.57"]]
    assert "exact_match (test)" in text
    assert "87.10" in text


def test_console_table_has_the_difference_and_its_interval_and_cuts_nothing(out: Path) -> None:
    test = load(out).sections[0].tests[0, 1]
    best, worst = VALUES["dot"], VALUES["none"]
    interval = reference.ttest_rel(worst, best).confidence_interval()
    assert (test.low, test.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    shown = f"{test.difference:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    for width in (120, 40):
        text = report.table_text(out, width)
        assert shown in text
        assert "…" not in text
        assert re.search(r"^ *variant ", text, re.MULTILINE)
    assert text.count("semantic_parsing/jobs") == 1


def test_long_labels_are_folded_and_figures_are_not(tmp_path: Path) -> None:
    for rate, size in ((0.001, 12), (0.01, 24)):
        for feeding in ("none", "attentional"):
            changes = {"optim.learning_rate": rate, "decoder.size": size, "input_feeding": feeding, "score": "none"}
            for seed in (0, 1):
                fake_run(tmp_path, changes | {"seed": seed}, 70.0 + 100 * rate + seed * (feeding == "none") / 7)
    text = report.table_text(tmp_path, 90)
    for row in rows(study := load(tmp_path), study.sections[0]):
        for column in ("mean", "interval", "difference", "parameters"):
            assert row[column]["text"] in text


def test_no_negative_zero() -> None:
    assert [signed(value) for value in (-0.001, 0.0, 0.004, -0.006, 1.5)] == [
        "+0.00",
        "+0.00",
        "+0.00",
        "-0.01",
        "+1.50",
    ]


def test_lower_is_better_sorts_the_other_way(tmp_path: Path) -> None:
    for score, value in (("dot", 47.0), ("none", 60.0)):
        fake_run(tmp_path, {"score": score}, value, metric="wer")
    study = load(tmp_path)
    assert [row["label"] for row in rows(study, study.sections[0])] == ["dot", "none"]


def test_one_seed_has_no_interval_and_no_test(tmp_path: Path) -> None:
    for score, value in (("dot", 88.0), ("none", 79.0)):
        fake_run(tmp_path, {"score": score}, value)
    report.build(tmp_path)
    study = load(tmp_path)
    for row in rows(study, study.sections[0]):
        assert row["interval"]["text"] == row["p"]["text"] == ""
    text = Page(tmp_path / "report.html").text
    assert "Intervals need at least two seeds of a variant. Tests need at least two seeds that both" in text
    assert "t-intervals" not in text


def test_one_variant_has_an_interval_and_no_test(tmp_path: Path) -> None:
    for seed, value in enumerate((88.0, 79.0)):
        fake_run(tmp_path, {"seed": seed}, value)
    report.build(tmp_path)
    text = Page(tmp_path / "report.html").text
    assert "Means over seeds with 95 % Student t-intervals" in text
    assert "need at least two seeds" not in text
    assert "mean difference by seed" not in text


def test_the_page_names_the_variant_that_others_are_compared_with(out: Path) -> None:
    report.build(out)
    text = Page(out / "report.html").text
    assert "first row" not in text
    # In the main table and in the bootstrap's.
    assert text.count(" to dot ") == 2
    assert '"To dot", the best mean: mean difference by seed with the 95 % interval of that comparison alone' in text
    assert "Holm-corrected over 3 pairs of variants, so that an interval without 0 may stand beside a p" in text


def test_a_published_figure_stands_beside_its_own_data_set(tmp_path: Path) -> None:
    figure = {"dataset": "semantic_parsing/geo", "variant": {"score": "dot"}, "metric": "exact_match", "value": 84.6}
    names = [
        fake_run(tmp_path, {"score": "dot", "data.dataset": f"semantic_parsing/{name}"}, 80.0)
        for name in ("geo", "jobs")
    ]
    titles = ["Paper on GEO", "Paper on JOBS"]
    write_json(tmp_path / "study.json", {"runs": names, "reference": [figure], "titles": titles})
    study = load(tmp_path)
    assert study.title == "Paper on GEO; Paper on JOBS"
    shown = {section.title: rows(study, section)[0]["published"]["text"] for section in study.sections}
    assert shown == {"semantic_parsing/geo": "84.60", "semantic_parsing/jobs": ""}


def test_runs_on_other_data_of_the_same_name_are_never_pooled(tmp_path: Path) -> None:
    names = [fake_run(tmp_path, {"seed": seed}, 10.0, fingerprint="0123456789") for seed in (0, 1)]
    names += [fake_run(tmp_path, {"seed": seed}, 90.0 + seed, fingerprint="abcdefabcd") for seed in (0, 1, 2)]
    names += [fake_run(tmp_path, {"seed": 3}, None, fingerprint="abcdefabcd", done=False)]
    write_json(tmp_path / "study.json", {"runs": names, "data": {"semantic_parsing/jobs": "abcdefabcd"}})
    report.build(tmp_path)
    study = load(tmp_path)
    found = [(s.title, rows(study, s)[0]["n"]["text"], rows(study, s)[0]["mean"]["text"]) for s in study.sections]
    assert found == [
        ("semantic_parsing/jobs (data abcdefab)", "3/4", "91.00"),
        ("semantic_parsing/jobs (earlier data 01234567)", "2/2", "10.00"),
    ]
    seen = Page(tmp_path / "report.html")
    assert seen.text.count("The study's last command found other data under this name") == 1
    lines = [line for line in read_csv(tmp_path) if (line["split"], line["metric"]) == ("test", "exact_match")]
    assert {(line["fingerprint"], line["seed"]) for line in lines} == {
        *(("0123456789", seed) for seed in "01"), *(("abcdefabcd", seed) for seed in "012"),
    }  # fmt: skip


def test_a_speed_that_is_not_known_is_left_out(out: Path) -> None:
    path = out / "programs" / "p-dot" / "timing.json"
    nothing = {"compile_seconds": None, "steps_per_second": None, "target_tokens_per_second": None}
    write_json(path, json.loads(path.read_text()) | nothing)
    report.build(out)
    study = load(out)
    assert [row["speed"]["text"] for row in rows(study, study.sections[0])] == ["", "2,500", "3,000"]
    figure = Page(out / "report.html").figures["s0-cost"]
    assert [(trace["name"], trace["x"]) for trace in figure["data"]] == [("general", [2500.0]), ("none", [3000.0])]


def test_labels() -> None:
    def flats(*changes: dict[str, Any]) -> list[dict[str, Any]]:
        from attn_jax.config import flatten

        return [flatten(to_dict(override(Config(), change))) for change in changes]

    assert labels(flats({"score": "dot"}, {"score": "none"})) == ["dot", "none"]
    assert labels(flats({})) == ["general, lstm"]
    # Epochs go with the score and tell nothing more apart.
    assert labels(flats({"score": "dot", "train.epochs": 90}, {"score": "none", "train.epochs": 160})) == [
        "dot",
        "none",
    ]
    assert labels(flats({"cell": "gru"}, {"cell": "lstm"}, {"cell": "gru", "score": "dot"})) == [
        "general, gru",
        "general, lstm",
        "dot, gru",
    ]
    assert labels(flats({"optim.learning_rate": 0.1}, {"optim.learning_rate": 0.2})) == [
        "learning_rate=0.1",
        "learning_rate=0.2",
    ]
    both = [{"encoder.size": a, "decoder.size": b} for a in (1, 2) for b in (1, 2)]
    assert labels(flats(*both))[1] == "encoder.size=1, decoder.size=2"
    # What matters to the other kind of model alone tells nothing of a variant.
    mixed = [{"score": "dot"}, {"score": "none"}, {"model": "transformer", "transformer.size": 8}]
    assert labels(flats(*mixed)) == ["recurrent, dot", "recurrent, none", "transformer"]
    assert labels(flats(mixed[0], mixed[2])) == ["recurrent", "transformer"]
    assert labels(flats(mixed[2])) == ["transformer"]
    sizes = [{"model": "transformer", "transformer.size": size} for size in (4, 8)]
    assert labels(flats(mixed[0], *sizes)) == ["recurrent", "transformer, size=4", "transformer, size=8"]


# -- runs that did not finish -------------------------------------------------------------------------------


def test_failed_and_unfinished_runs_are_named(out: Path) -> None:
    stop = {"reason": "loss or gradient was not finite", "step": 137}
    names = [
        fake_run(out, {"score": "dot", "seed": 3}, 20.0, stopped=stop),
        fake_run(out, {"score": "dot", "seed": 4}, 12.0, done=False, steps=240),
    ]
    study = json.loads((out / "study.json").read_text())
    write_json(out / "study.json", study | {"runs": [*study["runs"], *names, "feedfacefeed"]})
    report.build(out)
    table = rows(load(out), load(out).sections[0])
    assert {row["label"]: (row["n"]["text"], row["failed"]["text"]) for row in table} == {
        "dot": ("4/5", "1"),
        "general": ("3/3", ""),
        "none": ("3/3", ""),
    }
    assert table[-1]["mean"]["value"] == pytest.approx(np.mean([*VALUES["dot"], 20.0]))
    assert names[1] not in {line["run_id"] for line in read_csv(out)}
    text = Page(out / "report.html").text
    assert "2 runs failed or unfinished A run that failed was tested with its last good parameters" in text
    assert f"dot, seed 3 ( {names[0]} ): failed at step 137: loss or gradient was not finite" in text
    assert f"dot, seed 4 ( {names[1]} ): unfinished, last record at step 240" in text
    assert "10 of 11 runs done" in text
    assert "1 run of the study not started" in text
    told = "1 unfinished run(s) left out; 1 run(s) failed, and count with their last good parameters"
    assert told in report.table_text(out)
    assert "failed" in (out / "table.md").read_text().split("| ---", 1)[0]


def test_early_stopping_is_no_trouble(tmp_path: Path) -> None:
    for seed, step in enumerate((300, 240, 400)):
        stop = {"reason": "no better exact_match in 2 evaluations", "step": step} if step < 400 else None
        fake_run(tmp_path, {"seed": seed}, 80.0 + seed, stopped=stop, steps=step)
    report.build(tmp_path)
    seen = Page(tmp_path / "report.html")
    assert "failed" not in seen.text
    assert "Early stopping ended 2 of 3 runs, between steps 240 and 300." in seen.text
    assert "stopped at step 240: no better exact_match in 2 evaluations" in seen.text
    assert not [classes for classes in seen.classes if "bad" in classes.split()]
    text = report.table_text(tmp_path)
    assert "2 run(s) ended by early stopping" in text
    assert "failed" not in text


def test_nothing_finished_yet(tmp_path: Path) -> None:
    fake_run(tmp_path, {}, 12.0, done=False)
    report.build(tmp_path)
    assert read_csv(tmp_path) == []
    assert "0 of 1 runs done" in Page(tmp_path / "report.html").text


def test_runs_outside_the_study_are_left_out_and_said(out: Path) -> None:
    other = fake_run(out, {"score": "concat"}, 99.0)
    report.build(out)
    assert other not in {line["run_id"] for line in read_csv(out)}
    assert "1 other run in this directory is not part of the study" in Page(out / "report.html").text
    (out / "study.json").unlink()
    report.build(out)
    assert other in {line["run_id"] for line in read_csv(out)}


# -- files that are wrong -----------------------------------------------------------------------------------


def test_wrong_files_are_one_line(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs found"):
        report.build(tmp_path / "nothing")
    folder = next(path for path in sorted((out / "runs").iterdir()))
    lines = (folder / "metrics.jsonl").read_text().split("\n")
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", *lines[2:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON"):
        report.build(out)
    (folder / "result.json").write_text('{"metrics":\n !}')
    with pytest.raises(UserError, match=r"result\.json:2: not JSON"):
        report.build(out)
    assert not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("runs/*/config.json", '{"data": {}}', r"config\.json: expected 'data\.dataset' of type str"),
        ("runs/*/result.json", "{}", r"result\.json: expected 'run_id' of type str"),
        ("runs/*/metrics.jsonl", '{"split": "dev"}\n', r"metrics\.jsonl:1: expected 'step' of type int"),
        ("runs/*/predictions.test.jsonl", "3\n", r"jsonl:1: expected 'source_length' of type int"),
        ("runs/*/attention.json", '{"examples": [{}]}', r"attention\.json: expected 'source' of type list"),
        ("programs/*/program.json", "{}", r"program\.json: expected 'members' of type list"),
        ("programs/*/timing.json", '{"runs": 2}', r"timing\.json: expected 'target_tokens_per_second' of type float"),
    ],
)
def test_files_without_what_they_must_hold_are_one_line(out: Path, name: str, text: str, message: str) -> None:
    for path in out.glob(name):  # the page does not read every run's attention
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        report.build(out)


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path, {"step": int}) == [{"step": 1}, {"step": 2}]


def test_a_file_that_cannot_be_replaced_is_one_line_and_leaves_nothing_behind(out: Path) -> None:
    (out / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html: cannot be written"):
        report.build(out)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
