"""The page: charts and maps against hand-computed figures, over result files made with known numbers."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_study import SENTENCES, VALUES, Page, decoded, fake_run, three_scores, write_json, write_lines

from attn_jax import breakdown, plots, report, report_maps
from attn_jax.breakdown import length_bins
from attn_jax.report_data import load
from attn_jax.results import Output


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return three_scores(tmp_path / "jobs")


def test_page_is_whole_and_refers_to_nothing_outside(out: Path) -> None:
    report.build(out)
    seen = Page(out / "report.html")
    assert [address for address in seen.addresses if not address.startswith("#")] == ["data:,"]
    assert len(seen.places) == len(set(seen.places))
    assert set(seen.places) == set(seen.figures)
    assert {place.split("-", 1)[1] for place in seen.places} == {
        "forest", "train-loss", "dev-loss", "dev-exact_match", "length", "output-length", "word-frequency", "cost",
        "time", "size", "sharpness",
    }  # fmt: skip
    for piece in ("Scores on JOBS", "compare --scores=none,dot", "0123abc", "cpu (2 cores)", "jax 0.10.2"):
        assert piece in seen.text
    assert "memory, MB a run" in seen.text
    for piece in ("norm:logic", "80 of 140 test lines", "Dong & Lapata (2016)", "Published, dot: 87.10"):
        assert piece in seen.text
    before = (out / "report.html").read_bytes(), (out / "results.csv").read_bytes()
    report.build(out)
    assert before == ((out / "report.html").read_bytes(), (out / "results.csv").read_bytes())


def test_figures_are_valid_plotly(out: Path) -> None:
    import plotly.graph_objects as go

    report.build(out)
    for figure in Page(out / "report.html").figures.values():
        go.Figure(figure)  # raises ValueError on a property that does not exist


def test_maps_are_those_of_the_runs_on_the_same_sentences(out: Path) -> None:
    report.build(out)
    seen = Page(out / "report.html")
    assert "No attention: none." in seen.text
    shown, variants = seen.maps["s0"], load(out).sections[0].variants[1:]
    assert shown["sentences"] == [source.split() for source, _ in SENTENCES[:5]]
    assert {v["index"]: (v["label"], v["seeds"], v["heads"]) for v in shown["variants"]} == {
        1: ("dot", [0, 1, 2], 1),
        2: ("general", [0, 1, 2], 1),
    }
    assert len(shown["maps"]) == 2 * 3 * 5
    for variant in variants:
        for run in variant.runs:
            stored = json.loads((run.folder / "attention.json").read_text())["examples"]
            for number, example in enumerate(stored):
                found = shown["maps"][f"{variant.index}/{run.seed}/{number}"]
                assert found["target"] == example["target"]
                weights = decoded(found, len(example["source"]))
                np.testing.assert_allclose(weights, [example["weights"]], atol=1.3e-4)


def test_heads_are_kept_until_the_page_would_be_too_long(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_run(tmp_path, {"score": "multihead", "seed": seed}, 90.0)
        fake_run(tmp_path, {"score": "dot", "seed": seed}, 80.0)
    section = load(tmp_path).sections[0]

    def kept(limit: int) -> tuple[list[tuple[str, int, int]], bool]:
        found = report_maps.collect(section, limit)
        return list(dict.fromkeys((m.variant.label, m.run.seed, len(m.weights)) for m in found.maps)), found.incomplete

    multihead, dot = ("multihead", 2), ("dot", 1)
    size = sum(2 * len(source.split()) * len(target.split()) for source, target in SENTENCES[:5])
    everything = [(name, seed, heads) for seed in (0, 1) for name, heads in (multihead, dot)]
    assert kept(6 * size) == (everything, False)
    # The second seed of the score with heads does not fit, that of the other one does.
    assert kept(4 * size) == ([("multihead", 0, 2), ("dot", 0, 1), ("dot", 1, 1)], True)
    assert kept(0) == ([("multihead", 0, 1), ("dot", 0, 1)], True)
    (one, *_) = report_maps.collect(section, 0).maps
    example = json.loads((one.run.folder / "attention.json").read_text())["examples"][0]
    np.testing.assert_allclose(one.weights[0], np.mean(example["weights"], axis=0))


def test_weights_outside_0_to_1_and_missing_ones_come_back() -> None:
    weights = np.array([[[-0.5, 0.25, 2.0], [np.nan, 1.0, np.inf]]])
    found = {"target": ["a", "b"]} | report_maps.encoded(weights)
    assert found["low"] == -0.5
    assert found["high"] == 2.0
    finite = np.where(np.isfinite(weights), weights, np.nan)
    np.testing.assert_allclose(decoded(found, 3), finite, atol=2.5 / 4000 / 2)


def test_a_large_study_makes_a_page_of_some_megabytes(tmp_path: Path) -> None:
    # 24 variants on 12 sentences of 30 symbols, with five heads.
    source, target, rng = [f"s{i}" for i in range(30)], [f"t{i}" for i in range(30)], np.random.default_rng(0)
    weights = np.round(rng.dirichlet(np.full(30, 0.3), size=(5, 30)), 4).tolist()
    for number in range(24):
        name = fake_run(tmp_path, {"optim.learning_rate": 0.001 * (number + 1)}, 60.0 + number)
        examples = [{"source": [f"{k}", *source[1:]], "target": target, "weights": weights} for k in range(12)]
        write_json(tmp_path / "runs" / name / "attention.json", {"examples": examples})
    report.build(tmp_path)
    assert len(Page(tmp_path / "report.html").maps["s0"]["maps"]) == 24 * 12
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_text_of_the_data_cannot_become_markup(out: Path) -> None:
    report.build(out)
    seen = Page(out / "report.html")
    assert seen.tags.count("script") == 4
    assert "b" not in seen.tags
    assert "show <unk> & </script><b>$0</b>" in seen.text


def test_only_score_none_has_no_attention_part(tmp_path: Path) -> None:
    fake_run(tmp_path, {"score": "none"}, 70.0)
    report.build(tmp_path)
    assert "Attention on" not in Page(tmp_path / "report.html").text


def test_curves_are_mean_and_range_over_seeds(out: Path) -> None:
    report.build(out)
    figure = Page(out / "report.html").figures["s0-dev-exact_match"]
    line = next(trace for trace in figure["data"] if trace.get("name") == "dot")
    low, high = [trace["y"] for trace in figure["data"] if trace["legendgroup"] == "1" and "name" not in trace]
    growth = 1 - np.exp(-np.array([100, 200, 300, 400]) / 90)
    np.testing.assert_allclose(line["x"], [100, 200, 300, 400])
    np.testing.assert_allclose(line["y"], np.mean(VALUES["dot"]) * growth)
    np.testing.assert_allclose(low, min(VALUES["dot"]) * growth)
    np.testing.assert_allclose(high, max(VALUES["dot"]) * growth)


def test_long_curves_are_averaged_over_equal_stretches() -> None:
    seeds = [{step: float(step + offset) for step in range(1, 1001)} for offset in (0, 10)]
    figure = plots.curves([("a", 0, seeds)], "loss", points=100)
    line = figure["data"][-1]
    assert 90 <= len(line["x"]) <= 101
    np.testing.assert_allclose(line["y"], np.array(line["x"]) + 5, atol=0.06)
    assert sum(trace.get("fill") == "tonexty" for trace in figure["data"]) == 1


def test_a_seed_that_stopped_keeps_its_last_value_in_the_mean_and_the_band(tmp_path: Path) -> None:
    growth = 1 - np.exp(-np.array([100, 200, 300, 400]) / 90)
    stop = {"reason": "no better exact_match in 1 evaluations", "step": 200}
    fake_run(tmp_path, {"seed": 0}, 40.0, steps=200, stopped=stop)
    fake_run(tmp_path, {"seed": 1}, 80.0, steps=400)
    report.build(tmp_path)
    seen = Page(tmp_path / "report.html")
    low, high, line = seen.figures["s0-dev-exact_match"]["data"]
    stopped, whole = 40.0 * growth[[0, 1, 1, 1]], 80.0 * growth
    np.testing.assert_allclose(line["y"], (stopped + whole) / 2)
    np.testing.assert_allclose(low["y"], stopped)
    np.testing.assert_allclose(high["y"], whole)
    assert [row[2:] for row in line["customdata"]] == [[2, 2], [2, 2], [1, 2], [1, 2]]
    assert "a seed that stopped before others of its variant keeps its last value" in seen.text


def test_without_early_stopping_nothing_is_said_of_it(out: Path) -> None:
    report.build(out)
    assert "keeps its last value" not in Page(out / "report.html").text


def test_quality_by_length_is_the_share_of_right_sentences(tmp_path: Path) -> None:
    # Three sentences have 4 words; two of them are wrong with one of the two seeds: 4 of 6 are right.
    fake_run(tmp_path, {"seed": 0}, 83.3, wrong=0)
    fake_run(tmp_path, {"seed": 1}, 66.7, wrong=2)
    report.build(tmp_path)
    (line,) = Page(tmp_path / "report.html").figures["s0-length"]["data"]
    assert line["x"] == ["1", "4", "7", "8"]
    assert line["customdata"] == [1, 3, 1, 1]
    assert line["y"] == pytest.approx([100.0, 400 / 6, 100.0, 100.0])


def test_quality_by_length_on_every_test_split(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_run(tmp_path, {"seed": seed}, 100.0, wrong=0, long=2 * seed)
    report.build(tmp_path)
    seen = Page(tmp_path / "report.html")
    (line,) = seen.figures["s0-length-test_long"]["data"]
    assert line["x"] == ["2", "8", "14", "16"]
    assert line["y"] == pytest.approx([100.0, 400 / 6, 100.0, 100.0])
    assert "Quality by source length, test_long exact_match on test_long; the sentences" in seen.text
    assert set(seen.figures["s0-length"]["data"][0]["y"]) == {100.0}
    assert "s0-length-dev" not in seen.figures


def test_quality_by_output_length(out: Path) -> None:
    # The first sentence, one of three whose reference has 11 words, is wrong with every seed.
    report.build(out)
    line = next(t for t in Page(out / "report.html").figures["s0-output-length"]["data"] if t["name"] == "dot")
    assert dict(zip(line["x"], line["customdata"], strict=True)) == {"4": 2, "11": 3, "17": 1}
    assert line["y"] == pytest.approx([100.0, 200 / 3, 100.0])


def test_effective_number_of_positions() -> None:
    from scipy.stats import entropy

    rows = np.array([[0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0], [0.5, 0.2, 0.3, 0], [0, 0, 0, 0], [-2.0, 2.0, 0, 0]])
    assert breakdown.attended(rows[None]) == pytest.approx([4, 1, np.exp(entropy(rows[2])), 2])


def test_sharpness_is_a_mean_over_the_rows_of_a_run(out: Path) -> None:
    report.build(out)
    lines = Page(out / "report.html").figures["s0-sharpness"]["data"]
    for variant in load(out).sections[0].variants[1:]:
        (seeds,) = [t for t in lines if t["name"] == variant.label and "customdata" in t]
        for run in variant.runs:
            rows = [row for one in run.attention for head in one["weights"] for row in head]
            value = seeds["x"][seeds["customdata"].index(run.seed)]
            assert value == pytest.approx(np.mean([np.exp(entropy_of(row)) for row in rows]))


def entropy_of(row: list[float]) -> float:
    """In nats, of weights that sum to one only as far as they are written."""
    shares = [weight / sum(row) for weight in row if weight]
    return -sum(share * np.log(share) for share in shares)


def test_word_f1_by_frequency(tmp_path: Path) -> None:
    matches = breakdown.pooled([("a a b x", "a b b c"), ("c", "c new")], {"a": 3, "b": 4, "c": 12})
    bins = dict(zip([breakdown.range_name(*ends) for ends in breakdown.FREQUENCY_BINS], matches.f1(), strict=True))
    # a: 1 match, 2 words out, 1 in the reference; b: 1, 1, 2; c: 1, 1, 2; never seen: 0, 1 (x), 1 (new).
    assert bins == {
        "0": 0.0, "1": None, "2": None, "3": pytest.approx(200 / 3), "4": pytest.approx(200 / 3), "5-9": None,
        "10-99": pytest.approx(200 / 3), "100-999": None, "1000+": None,
    }  # fmt: skip


def test_quality_by_word_frequency_is_of_the_training_targets(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_run(tmp_path, {"seed": seed}, 80.0, wrong=seed)
    report.build(tmp_path)
    assert "s0-word-frequency" not in Page(tmp_path / "report.html").figures
    Output(tmp_path).keep_words("semantic_parsing/jobs", "f", [target for _, target in SENTENCES])
    report.build(tmp_path)
    (line,) = Page(tmp_path / "report.html").figures["s0-word-frequency"]["data"]
    assert line["x"] == ["1", "2", "5-9", "10-99"]
    # Of the one wrong output of two runs " , job" is too much: in the bins 5-9 (comma and job stand 6 times).
    counts = Counter(word for _, target in SENTENCES for word in target.split())
    in_bin = {name: [w for w in counts if test(counts[w])] for name, test in (
        ("1", lambda n: n == 1), ("2", lambda n: n == 2), ("5-9", lambda n: 5 <= n < 10), ("10-99", lambda n: n >= 10)
    )}  # fmt: skip
    assert line["customdata"] == [sum(counts[word] for word in in_bin[name]) for name in line["x"]]
    wanted = []
    for name in line["x"]:
        total = 2 * sum(counts[word] for word in in_bin[name])
        wrong = sum(word in in_bin[name] for word in (",", "job"))
        wanted.append(200 * total / (2 * total + wrong))
    assert line["y"] == pytest.approx(wanted)
    assert min(wanted) < 100


def test_quality_by_length_is_scored_as_the_table_is(tmp_path: Path) -> None:
    # A missing closing bracket is right under norm:logic, which the stored signature names.
    name = fake_run(tmp_path, {}, 100.0, wrong=0)
    path = tmp_path / "runs" / name / "predictions.test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [line | {"prediction": line["prediction"].removesuffix(" )")} for line in lines])
    report.build(tmp_path)
    assert set(Page(tmp_path / "report.html").figures["s0-length"]["data"][0]["y"]) == {100.0}


@pytest.mark.parametrize("lengths", [[3], [5, 5, 5], list(range(1, 100)), [1] * 50 + [2, 3, 9], [1, 2, 3, 4, 100]])
def test_length_bins_cover_every_length_once(lengths: list[int]) -> None:
    bins = length_bins(lengths)
    assert len(bins) <= 8
    assert [sum(low <= length <= high for low, high in bins) for length in lengths] == [1] * len(lengths)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(bins))


def test_many_variants_and_two_data_sets(tmp_path: Path) -> None:
    for number in range(14):
        fake_run(tmp_path, {"optim.learning_rate": 0.001 * (number + 1)}, 60.0 + number)
    for score in ("dot", "none"):
        fake_run(tmp_path, {"data.dataset": "scan/simple", "score": score}, 99.0)
    report.build(tmp_path)
    study = load(tmp_path)
    assert {section.dataset: len(section.variants) for section in study.sections} == {
        "semantic_parsing/jobs": 14,
        "scan/simple": 2,
    }
    assert len({plots.style(index) for index in range(14)}) == 14
    for section in study.sections:
        assert "learning_rate" not in section.variants[0].label or section.dataset == "semantic_parsing/jobs"
    seen = Page(tmp_path / "report.html")
    assert {place.split("-")[0] for place in seen.places} == {"s0", "s1"}
    assert report.table_text(tmp_path).count("exact_match (test)") == 2
