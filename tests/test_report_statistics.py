"""What a section of a study says beyond means and tests: ranks, bootstrap, effects of axes, confounded choices."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import SENTENCES, Page, fake_run, write_json, write_lines
from scipy import stats as reference

from attn_jax import report, stats
from attn_jax.config import Config, override, to_dict
from attn_jax.errors import UserError
from attn_jax.report_data import Section, load
from attn_jax.report_table import bootstrap_rows, marginal_rows, rows, variance_rows

SIZES = {"embedding.size": 32, "encoder.size": 32, "decoder.size": 64}
WRONG = {"dot": (0, 1, 0), "general": (1, 2, 3), "none": (4, 5, 5)}
"""By score and seed, how many of the six outputs are wrong."""


def share(wrong: int) -> float:
    return 100 * (len(SENTENCES) - wrong) / len(SENTENCES)


def write(out: Path, changes: dict[str, Any], wrong: int) -> str:
    # A wrong output of `fake_run` is not the reference's logical form either.
    return fake_run(out, SIZES | changes, share(wrong), wrong=wrong, steps=20)


@pytest.fixture
def scores(tmp_path: Path) -> Section:
    for score, own in WRONG.items():
        for seed, wrong in enumerate(own):
            write(tmp_path, {"score": score, "seed": seed}, wrong)
    return load(tmp_path).sections[0]


def by_label(section: Section) -> dict[str, int]:
    return {variant.label: variant.index for variant in section.variants}


def test_bootstrap_of_predictions(scores: Section) -> None:
    index = by_label(scores)
    assert scores.resampled is not None
    for score, own in WRONG.items():
        interval = scores.resampled.mean(index[f"{score}"])
        assert interval is not None
        # The mean of the bootstrap is that of the table: predictions are scored as the run was.
        assert (interval.n, interval.mean) == (3, pytest.approx(sum(map(share, own)) / 3))
        assert interval.low < interval.mean < interval.high
    assert scores.best[index["dot"]] > 0.9
    assert sum(scores.best.values()) == pytest.approx(1)
    table = bootstrap_rows(scores)
    assert [row["label"] for row in table] == ["dot", "general", "none"]
    assert table[0]["difference"]["text"] == ""
    assert table[2]["difference"]["value"] == pytest.approx(-100 * 13 / 18)
    assert table[2]["difference"]["text"].startswith("-72.22 [-")


def test_table_says_what_stands_beside_the_t_test(scores: Section) -> None:
    study = load(scores.runs[0].folder.parent.parent)
    first, second, third = rows(study, study.sections[0])
    assert (first["flip"]["text"], first["effect"]["text"], first["factors"]["text"]) == ("", "", "")
    # Three pairs: 3 * 2 / 2^7 is the first smallest p below 0.05.
    assert second["flip"]["text"] == "needs 7 seeds"
    assert third["factors"]["text"] == "score.name"
    values = {v.label: v.values("test", "exact_match") for v in scores.variants}
    test = stats.paired(values["none"], values["dot"])
    assert test is not None
    assert third["effect"]["value"] == test.effect
    # By hand, differences in sixths: dot - none 4, 4, 5, so t = 13, and general - none 3, 3, 2, so t = 8; one-sided p
    # 0.0029 and 0.0077, of which six and five times are below 0.05. dot - general has t = 2.5.
    expected = {"dot": "1-2", "general": "1-2", "none": "3"}
    assert {row["label"]: row["ranks"]["text"] for row in (first, second, third)} == expected


def test_without_predictions_there_is_no_bootstrap(tmp_path: Path) -> None:
    name = write(tmp_path, {"score": "dot"}, 1)
    write(tmp_path, {"score": "general"}, 1)
    path = tmp_path / "runs" / name / "predictions.test.jsonl"
    lines = load(tmp_path).runs[0].predictions("test")
    path.unlink()
    section = load(tmp_path).sections[0]
    assert section.resampled is not None
    index = by_label(section)
    assert section.resampled.mean(index["dot"]) is None
    assert len(bootstrap_rows(section)) == 1
    write_lines(path, lines[:-1])
    told = rf"^{re.escape(str(path))}: has 5 predictions, and those of other runs have 6: remove the file"
    with pytest.raises(UserError, match=told):
        _ = load(tmp_path).sections[0].resampled
    for own in tmp_path.glob("runs/*/predictions.test.jsonl"):
        own.unlink()
    section = load(tmp_path).sections[0]
    assert (section.resampled, section.best, bootstrap_rows(section)) == (None, {}, [])


def test_effects_of_a_grid(tmp_path: Path) -> None:
    cells = list(itertools.product(("dot", "general", "concat"), ("gru", "lstm")))
    values = {}
    for (score, cell), seed in itertools.product(cells, range(3)):
        values[score, cell, seed] = (
            80.0 + (score == "dot") + 5 * (cell == "lstm") + 0.1 * seed**2 * (score == "general")
        )
        # The batch size goes with the cell.
        changes = {"score": score, "cell": cell, "seed": seed, "train.batch_size": 20 if cell == "gru" else 30}
        fake_run(tmp_path, SIZES | changes, values[score, cell, seed], steps=20)
    section = load(tmp_path).sections[0]
    found = section.effects
    assert found is not None
    assert (found.axes, found.n, found.missing) == (["score", "cell"], 3, [])
    assert section.moving_together == {"cell": ["train.batch_size"]}
    table = {(row["axis"], row["level"]): row["mean"]["value"] for row in marginal_rows(section)}
    assert len(table) == 5
    for cell in ("gru", "lstm"):
        own = [value for (_, c, _), value in values.items() if c == cell]
        assert table["cell", cell] == pytest.approx(sum(own) / len(own))
    terms = {row["name"]: row for row in variance_rows(section)}
    assert list(terms) == ["score", "cell", "score x cell", "seed", "residual"]
    assert float(terms["cell"]["eta"]["text"]) > 0.8
    assert (terms["residual"]["p"]["text"], terms["residual"]["df"]["value"]) == ("", 10)
    variants = {variant.label: variant for variant in section.variants}
    one, other = (variants[name] for name in variants if name.startswith("dot"))
    assert section.factors(one, other) == ["cell.name", "train.batch_size"]


def test_every_pair_shows_its_interval_and_whether_several_choices_differ(tmp_path: Path) -> None:
    values = {}
    for number, (score, cell) in enumerate(itertools.product(("dot", "general"), ("gru", "lstm"))):
        # The last variant lacks a seed.
        for seed in range(4 - (number == 3)):
            values[score, cell, seed] = 80.0 - 5 * number + 0.3 * seed * (number + 1) ** 2
            fake_run(
                tmp_path, SIZES | {"score": score, "cell": cell, "seed": seed}, values[score, cell, seed], steps=20
            )
    report.build(tmp_path)
    text = Page(tmp_path / "report.html").text
    matrix = text[text.index("Every pair") : text.index("If other sentences")]
    assert "\u2020: the two differ in several choices at once" in matrix
    for one, other in itertools.combinations(itertools.product(("dot", "general"), ("gru", "lstm")), 2):
        seeds = range(3 if ("general", "lstm") in (one, other) else 4)
        differences = [values[*one, seed] - values[*other, seed] for seed in seeds]
        low, high = reference.t.interval(0.95, len(seeds) - 1, np.mean(differences), reference.sem(differences))
        dagger = "\u2020" if one[0] != other[0] and one[1] != other[1] else ""
        shown = f"{np.mean(differences):+.2f}{dagger} [{low:+.2f}, {high:+.2f}] p "
        assert shown in matrix
        assert re.match(rf"(< )?[0-9.]+ {len(seeds)} seeds", matrix[matrix.index(shown) + len(shown) :])
    assert matrix.count("\u2020 [") == 4


def signature(tokenizer: str, version: str = "2.5.1") -> str:
    return f"bleu|nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:{version}"


def test_variants_that_were_scored_in_different_ways_are_not_compared(tmp_path: Path) -> None:
    # The highest figures are those of the tokeniser that splits more: no fair comparison.
    grid = list(itertools.product(("none", "13a"), ("dot", "general", "none")))
    for number, (tokenizer, score) in enumerate(grid):
        changes = SIZES | {"score": score, "data.bleu_tokenizer": tokenizer}
        for seed in range(3):
            value = 20.0 + number + 0.1 * seed * (number + 1)
            options: dict[str, Any] = {"metric": "bleu", "signature": signature(tokenizer), "steps": 20}
            fake_run(tmp_path, changes | {"seed": seed}, value, **options)
    study = load(tmp_path)
    section = study.sections[0]
    apart = {
        (a.index, b.index) for a in section.variants for b in section.variants if a is not b
    } - section.tests.keys()
    way = {v.index: v.config["data.bleu_tokenizer"] for v in section.variants}
    assert apart == {(a, b) for a in way for b in way if way[a] != way[b]}
    # Holm over the three pairs of each tokeniser, and no more.
    plain = {pair: test.plain for pair, test in section.tests.items() if pair[0] < pair[1]}
    assert len(plain) == 6
    smallest = min(plain, key=lambda pair: plain[pair] or 0)
    assert section.tests[smallest].p == pytest.approx(6 * (plain[smallest] or 0))
    table = rows(study, section)
    ways = [way[row["variant"].index] for row in table]
    assert ways in (["none"] * 3 + ["13a"] * 3, ["13a"] * 3 + ["none"] * 3)
    assert [row["best"] for row in table] == [True, False, False] * 2
    assert [bool(row["difference"]["text"]) for row in table] == [False, True, True] * 2
    assert not any(row["ranks"]["text"] for row in table)
    assert (section.ranks, section.best, section.effects) == ({}, {}, None)
    report.build(tmp_path)
    page, tex = Page(tmp_path / "report.html").text, (tmp_path / "table.tex").read_text()
    said = "The values of bleu were computed in 2 ways, which are not comparable"
    for text in (page, " ".join(report.table_text(tmp_path).split()), tex):
        assert said in text
        assert "tok:13a" in text
        assert "o the best of its scoring" in text
    assert tex.count(r"\textbf{") == 2
    assert "Effects of the axes" not in page
    # Pairs of one tokeniser differ in the score alone.
    assert "the two differ in several choices" not in page


def test_another_version_of_the_library_is_no_other_scoring(tmp_path: Path) -> None:
    for score, version in (("dot", "2.5.1"), ("general", "2.4.0")):
        for seed in range(3):
            changes, value = SIZES | {"score": score, "seed": seed}, 80.0 + (seed + 1) * len(score) % 5
            fake_run(tmp_path, changes, value, metric="bleu", signature=signature("13a", version), steps=20)
    section = load(tmp_path).sections[0]
    assert len(section.scorings) == 1
    assert len(section.tests) == 2


def test_a_list_of_variants_has_no_effects(scores: Section) -> None:
    assert scores.effects is None
    assert marginal_rows(scores) == variance_rows(scores) == []


def tuned(out: Path, rates: dict[tuple[str, str], float], *, fields: dict[str, Any] | None = None) -> Section:
    """A grid of score and schedule whose learning rate was chosen for each cell."""
    entries, names = [], []
    tried = fields or {"optim.learning_rate": [0.001, 0.01]}
    for (score, schedule), rate in rates.items():
        described = SIZES | {"score": score, "optim.schedule": schedule}
        chosen = {"optim.learning_rate": rate}
        own = [
            fake_run(out, described | chosen | {"seed": seed}, 80.0 + 5 * (score == "dot") + seed % 2, steps=20)
            for seed in range(3)
        ]
        config = to_dict(override(Config(), {"data.dataset": "semantic_parsing/jobs"} | described))
        entry = {"variant": config, "data": "f", "metric": "exact_match", "fields": tried, "choices": []}
        entries.append(entry | {"chosen": chosen, "runs": own, "choices": [{"values": chosen, "runs": []}]})
        names += own
    write_json(out / "study.json", {"runs": names, "tuning": entries})
    return load(out).sections[0]


def test_what_tuning_chose_is_no_axis_of_the_study(tmp_path: Path) -> None:
    # The rate goes with the schedule but for one cell: taken as an axis it would be adjusted for.
    rates = {(score, schedule): 0.01 for score in ("dot", "general", "none") for schedule in ("constant", "cosine")}
    rates |= {("dot", "cosine"): 0.001, ("general", "cosine"): 0.001}
    section = tuned(tmp_path, rates)
    assert section.effects is not None
    assert section.effects.axes == ["score", "schedule"]
    assert section.moving_together == {}
    variants = {variant.label: variant for variant in section.variants}
    one, other = variants["dot, schedule=constant"], variants["dot, schedule=cosine"]
    assert one.config["optim.learning_rate"] != other.config["optim.learning_rate"]
    assert section.factors(one, other) == ["optim.schedule"]


def test_variants_that_were_not_tuned_alike_differ_in_what_was_chosen(tmp_path: Path) -> None:
    tuned(tmp_path, {("dot", "constant"): 0.01, ("general", "constant"): 0.01})
    study = json.loads((tmp_path / "study.json").read_text())
    plain = fake_run(tmp_path, SIZES | {"score": "none", "optim.schedule": "constant"}, 70.0, steps=20)
    write_json(tmp_path / "study.json", study | {"runs": [*study["runs"], plain]})
    section = load(tmp_path).sections[0]
    dot, general, none = section.variants
    assert section.factors(dot, general) == ["score.name"]
    assert section.factors(dot, none) == ["score.name", "optim.learning_rate"]


def test_means_over_other_target_symbols_are_told_of(tmp_path: Path) -> None:
    for number, changes in enumerate(({"data.target_min_count": 1}, {"data.target_min_count": 5})):
        for seed in range(2):
            fake_run(tmp_path / "other", SIZES | changes | {"seed": seed}, 50.0 + number, steps=20)
            fake_run(tmp_path / "same", SIZES | {"decoder.size": 8 + number, "seed": seed}, 50.0 + number, steps=20)
    told = "Loss, perplexity and token accuracy are means over target symbols, which differ"
    for name, count in (("other", 1), ("same", 0)):
        report.build(tmp_path / name)
        assert (tmp_path / name / "report.html").read_text("utf-8").count(told) == count
        assert report.table_text(tmp_path / name).replace("\n", " ").count(told[:40]) == count
