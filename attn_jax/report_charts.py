"""The charts of a data set's results: what the page shows and `figures/` holds."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from attn_jax import breakdown, metrics, plots, report_table, stats
from attn_jax.report_data import Section, Study, Variant
from attn_jax.report_run import Run
from attn_jax.stats import Summary


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure with its title and what must be known to read it; `name` is its own among those of its section."""

    name: str
    title: str
    note: str
    figure: plots.Figure


def charts(study: Study, section: Section) -> list[Chart]:
    """Every chart of a section but the attention maps."""
    ranked = [(variant, summary) for variant, summary in section.ranked if summary is not None]
    by_frequency = _by_frequency(study, section)
    return [
        *([_forest(section, ranked)] if ranked else []),
        *_curves(section),
        *(chart for split in section.tested for chart in _by_lengths(section, split)),
        *([by_frequency] if by_frequency else []),
        *_sharpness(section),
        *_costs(study, section, ranked),
    ]


def slug(section: Section) -> str:
    """A section's title as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", section.title).strip("-")


def _main_title(section: Section) -> str:
    return f"{section.metric} ({section.split})"


def _forest(section: Section, ranked: Sequence[tuple[Variant, Summary]]) -> Chart:
    rows = [(v.label, v.index, v.values(section.split, section.metric), s.mean, s.low, s.high) for v, s in ranked]
    title = _main_title(section)
    return Chart("forest", title, "dots: seeds; diamond: mean; bar: 95 % interval", plots.forest(rows, title))


# -- learning curves ----------------------------------------------------------------------------------------


def _curves(section: Section) -> list[Chart]:
    found = []
    for split, metric in [("train", "loss"), ("dev", "loss"), ("dev", _dev_metric(section))]:
        series = [(v.label, v.index, [_history(run, split, metric) for run in v.done]) for v in section.variants]
        if any(seed for _, _, seeds in series for seed in seeds):
            figure = plots.curves(series, f"{split} {metric}", log=metric == "loss")
            note = "mean over seeds; band: lowest to highest seed"
            if any(len({max(seed) for seed in seeds if seed}) > 1 for _, _, seeds in series):
                note += "; a seed that stopped before others of its variant keeps its last value in both"
            found.append(Chart(f"{split}-{metric}", f"{split} {metric}", note, figure))
    return found


def _dev_metric(section: Section) -> str:
    """The section's metric where it was recorded on dev, else token accuracy."""
    recorded = any(section.metric in line for run in section.done for line in run.history if line["split"] == "dev")
    return section.metric if recorded and section.metric != "loss" else "token_accuracy"


def _history(run: Run, split: str, metric: str) -> dict[int, float]:
    return {
        int(line["step"]): float(line[metric])
        for line in run.history
        if line["split"] == split and isinstance(line.get(metric), int | float)
    }


# -- quality in parts ---------------------------------------------------------------------------------------


def _options(variant: Variant) -> dict[str, str]:
    """How the variant's outputs were scored, as its results say."""
    return metrics.options((variant.done[0].result or {}).get("signatures", {})) if variant.done else {}


def _by_lengths(section: Section, split: str) -> list[Chart]:
    """Quality on a split by length of the source and of the first reference; nothing without predictions."""
    metric = section.metric if section.metric in metrics.OUTPUT_METRICS else "exact_match"
    lines = {v.index: [row for run in v.done for row in run.predictions(split)] for v in section.variants}
    one = next((rows for run in section.done if (rows := run.predictions(split))), [])
    if not one:
        return []
    statistics = {
        v.index: np.concatenate([own for run in v.done if len(own := run.statistics(split, metric))])
        for v in section.variants
        if lines[v.index]
    }
    found = []
    for key, name, title, axis in (
        ("source_length", "length", "Quality by source length", "source length (symbols)"),
        ("target_length", "output-length", "Quality by output length", "length of the first reference (symbols)"),
    ):
        bins = breakdown.length_bins([row[key] for row in one])
        sizes = [sum(low <= row[key] <= high for row in one) for low, high in bins]
        series = []
        for variant in section.variants:
            lengths = np.array([row[key] for row in lines[variant.index]], int)
            values = [
                _pooled(metric, statistics[variant.index][held]) if held.any() else None
                for low, high in bins
                for held in [(low <= lengths) & (lengths <= high)]
            ]
            series.append((variant.label, variant.index, values))
        if split != section.split:
            name, title = f"{name}-{split}", f"{title}, {split}"
        figure = plots.binned(series, [breakdown.range_name(*ends) for ends in bins], sizes, axis, metric)
        found.append(Chart(name, title, f"{metric} on {split}; the sentences of all seeds pooled", figure))
    return found


def _pooled(metric: str, statistics: np.ndarray) -> float | None:
    """The metric of sentences; None where it has nothing to divide by."""
    value = float(metrics.aggregates(metric, statistics.sum(axis=0)[None])[0])
    return None if math.isnan(value) else value


def _sharpness(section: Section) -> list[Chart]:
    """How many source positions a step attends to, of the examples that have attention maps; nothing without them."""
    rows = []
    for variant in section.variants:
        examples = {run.seed: run.attention for run in variant.done}
        values = {
            seed: float(np.mean(found))
            for seed, maps in examples.items()
            if (found := [n for one in maps for n in breakdown.attended(np.array(one["weights"]))])
        }
        if values:
            summary = stats.summary(list(values.values()))
            rows.append((variant.label, variant.index, values, summary.mean, summary.low, summary.high))
    if not rows:
        return []
    rows.sort(key=lambda row: row[3])
    title = "source positions that a step attends to"
    note = "the effective number, exp of the weights' entropy, in the sentences of the attention maps; dots: seeds"
    return [Chart("sharpness", "Sharpness of attention", note, plots.forest(rows, title))]


def _by_frequency(study: Study, section: Section) -> Chart | None:
    """F1 of words by their frequency in the training targets.

    None where the frequencies were not kept, and where all words are about as frequent as each other.
    """
    kept = study.target_words.get(section.fingerprint)
    if kept is None:
        return None
    found: list[tuple[Variant, breakdown.WordMatches]] = []
    for variant in section.variants:
        lower = _options(variant).get("case") == "lc"
        rows = [row for run in variant.done for row in run.predictions(section.split)]
        pairs = [(row["prediction"], row["references"][0]) for row in rows]
        pairs = [(a.lower(), b.lower()) for a, b in pairs] if lower else pairs
        found.append((variant, breakdown.pooled(pairs, breakdown.lowered(kept) if lower else kept)))
    shown = [n for n in range(len(breakdown.FREQUENCY_BINS)) if any(matches.references[n] for _, matches in found)]
    if len(shown) < 2:
        return None
    names = [breakdown.range_name(*breakdown.FREQUENCY_BINS[n]) for n in shown]
    # Every run has the same references.
    first, runs = next((matches, len(v.done)) for v, matches in found if v.done)
    sizes = [first.references[n] // runs for n in shown]
    series = [(v.label, v.index, [matches.f1()[n] for n in shown]) for v, matches in found]
    axis, note = (
        "times in the training targets",
        (
            "F1 of output words against those of the first reference (compare-mt, Neubig et al. 2019), in bins of how "
            "often a word stands in the training targets; all seeds pooled"
        ),
    )
    figure = plots.binned(series, names, sizes, axis, "F1 of words, %", "words of the references")
    return Chart("word-frequency", "Quality by word frequency", note, figure)


# -- cost ---------------------------------------------------------------------------------------------------


def _costs(study: Study, section: Section, ranked: Sequence[tuple[Variant, Summary]]) -> list[Chart]:
    title = _main_title(section)
    kinds = [
        ("cost", "Quality and speed", "target tokens/s a run", "tokens/s", report_table.speed_of_a_run,
         "target tokens a second of one run while its program's runs train together"),
        ("time", "Quality and training time", "seconds a run", "s", report_table.seconds_of_a_run,
         "time of the whole program, compiling and evaluation on dev included, divided by its runs"),
        ("size", "Quality and size", "parameters", "parameters", report_table.parameters, "trained parameters"),
    ]  # fmt: skip
    found = []
    for name, heading, axis, unit, of, note in kinds:
        rows = [(v.label, v.index, s.mean, s.low, s.high, cost) for v, s in ranked if (cost := of(study, v))]
        if rows:
            found.append(Chart(name, heading, f"{note}; bar: 95 % interval", plots.cost(rows, axis, title, unit)))
    return found
