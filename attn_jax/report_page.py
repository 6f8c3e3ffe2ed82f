"""The page of a study: what the template shows, as plain values and figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import metrics, plots, report_table
from attn_jax.report_data import Run, Section, Study, Variant, differing, show
from attn_jax.report_tuning import tuning_note, tuning_rows

LENGTH_BINS = 8
SENTENCES = 12
"""Attention examples on the page."""

AddFigure = Callable[[str, plots.Figure], str]


def page(study: Study) -> str:
    """The page as one self-contained HTML text."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures: dict[str, plots.Figure] = {}
    sections = [_section(study, section, f"s{n}", figures) for n, section in enumerate(study.sections)]
    # "<" is written as an escape so that no text of the data can end the script element.
    data = json.dumps(figures, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    return environment.get_template("report_template.html").render(
        study=study,
        sections=sections,
        provenance=_provenance(study),
        programs=_programs(study),
        style=plots.style,
        show=show,
        show_p=report_table.show_p,
        signed=report_table.signed,
        figures=data,
        plotly=get_plotlyjs(),
    )


def _provenance(study: Study) -> list[tuple[str, list[str]]]:
    """What the results were made with; several values where runs differ."""
    results = [run.result for run in study.runs if run.result is not None]
    versions: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in result.get("versions", {}).items():
            versions.setdefault(name, {})[str(version)] = None
    lines = [
        ("git commit", list(dict.fromkeys(str(result.get("git", "")) for result in results))),
        ("device", list(dict.fromkeys(str(result.get("device", "")) for result in results))),
        ("versions", [f"{name} {', '.join(numbers)}" for name, numbers in versions.items()]),
    ]
    return [(name, [value for value in values if value]) for name, values in lines if any(values)]


def _programs(study: Study) -> list[dict[str, Any]]:
    names = {run.run_id: v.label for section in study.sections for v in section.variants for run in v.runs}
    rows = []
    for name, program in study.programs.items():
        variants = list(dict.fromkeys(names[run] for run in program["members"] if run in names))
        if variants and program["timing"]:
            rows.append(
                {
                    "name": name,
                    "variants": variants,
                    "runs": len(program["members"]),
                    "timing": program["timing"],
                }
            )
    return rows


def _section(study: Study, section: Section, name: str, figures: dict[str, plots.Figure]) -> dict[str, Any]:
    """What the template shows of a data set; its figures go to `figures`, with ids that begin with `name`."""

    def add(kind: str, figure: plots.Figure) -> str:
        figures[f"{name}-{kind}"] = figure
        return f"{name}-{kind}"

    results = [run.result for run in section.done if run.result is not None]
    varying = differing([variant.config for variant in section.variants])
    rows = report_table.rows(study, section)
    return {
        "name": name,
        "section": section,
        "rows": rows,
        "columns": _columns(section, rows),
        "others": list(dict.fromkeys(title for row in rows for title in row["others"])),
        "pairs": _pairs(section),
        "estimated": any(row["interval"]["text"] for row in rows),
        "tested": sum(test.p is not None for test in section.tests.values()) // 2,
        "sources": [row for row in rows if row["sources"]],
        "tuning": tuning_rows(section),
        "tuning_note": tuning_note(section) if section.tuned else "",
        "figures": _figures(study, section, add),
        "attention": _attention(section, add),
        "no_attention": [v.label for v in section.variants if v.done and v.config.get("score.name") == "none"],
        "runs": [_run(section, variant, run) for variant in section.variants for run in variant.runs],
        "trouble": [(v.label, run) for v in section.variants for run in v.runs if run.status != "finished"],
        "signatures": list(dict.fromkeys(s for r in results for s in r.get("signatures", {}).values())),
        "data": results[0]["dataset"] if results else None,
        "varying": varying,
        "shared": {
            path: show(value)
            for variant in section.variants
            for path, value in variant.config.items()
            if path not in varying and path != "seed"
        },
    }


def _columns(section: Section, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    columns = [
        (f"{section.metric} ({section.split})", "mean"),
        ("95 % interval", "interval"),
        ("sd", "sd"),
        ("seeds", "n"),
        ("to the first row", "difference"),
        ("p", "p"),
        ("published", "published"),
    ]
    return [(title, key) for title, key in columns if any(row[key]["text"] for row in rows)]


def _pairs(section: Section) -> dict[str, Any] | None:
    """Row variant - column variant, in the table's order; None where no pair has an interval."""
    order = [variant for variant, summary in section.ranked if summary is not None]
    if len(order) < 3 or not any(test.p is not None for test in section.tests.values()):
        return None
    lines = [(row, [(column, section.tests.get((row.index, column.index))) for column in order]) for row in order]
    return {"order": order, "lines": lines}


def _run(section: Section, variant: Variant, run: Run) -> dict[str, Any]:
    return {
        "run": run,
        "label": variant.label,
        "test": run.value(section.split, section.metric),
        "dev": run.value("dev", section.metric) if section.split != "dev" else None,
        "steps": (run.result or {}).get("steps"),
        "selected": (run.result or {}).get("selected_step"),
    }


# -- figures ------------------------------------------------------------------------------------------------


def _figures(study: Study, section: Section, add: AddFigure) -> list[tuple[str, str, str]]:
    """(title, note, id) of every figure but the attention maps."""
    title = f"{section.metric} ({section.split})"
    ranked = [(variant, summary) for variant, summary in section.ranked if summary is not None]
    figures = []
    if ranked:
        forest = plots.forest(
            [(v.label, v.index, v.values(section.split, section.metric), s.mean, s.low, s.high) for v, s in ranked],
            title,
        )
        figures.append((title, "dots: seeds; diamond: mean; bar: 95 % interval", add("forest", forest)))
    for split, metric in [("train", "loss"), ("dev", "loss"), ("dev", _dev_metric(section))]:
        series = [(v.label, v.index, [_history(run, split, metric) for run in v.done]) for v in section.variants]
        if any(seed for _, _, seeds in series for seed in seeds):
            curves = plots.curves(series, f"{split} {metric}", log=metric == "loss")
            note = "mean over seeds; band: lowest to highest seed"
            figures.append((f"{split} {metric}", note, add(f"{split}-{metric}", curves)))
    binned = _by_length(section)
    if binned:
        metric, figure = binned
        note = f"{metric} on {section.split}; the sentences of all seeds pooled"
        figures.append(("Quality by source length", note, add("length", figure)))
    speeds = [
        (v.label, v.index, s.mean, s.low, s.high, speed, int((v.done[0].result or {})["parameters"]))
        for v, s in ranked
        if (speed := report_table.speed_of_a_run(study, v))
    ]
    if speeds:
        note = "target tokens a second of one run while its program's runs train together"
        figures.append(("Quality and speed", note, add("cost", plots.cost(speeds, "target tokens/s a run", title))))
    return figures


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


def length_bins(lengths: Sequence[int], bins: int = LENGTH_BINS) -> list[tuple[int, int]]:
    """Ranges (first, last) of lengths, at most `bins`, that hold about equally many sentences each."""
    ranges: list[tuple[int, int]] = []
    first, held = None, 0
    for length in sorted(set(lengths)):
        first = length if first is None else first
        held += sum(own == length for own in lengths)
        if held >= len(lengths) / bins:
            ranges.append((first, length))
            first, held = None, 0
    if first is not None:
        # What is left is too few for a range of its own.
        start = ranges.pop()[0] if ranges else first
        ranges.append((start, max(lengths)))
    return ranges


def _by_length(section: Section) -> tuple[str, plots.Figure] | None:
    """The metric and the figure of quality by source length; None without predictions."""
    metric = section.metric if section.metric in metrics.OUTPUT_METRICS else "exact_match"
    lines = {v.index: [run.predictions(section.split) for run in v.done] for v in section.variants}
    one = next((rows for seeds in lines.values() for rows in seeds if rows), None)
    if one is None:
        return None
    bins = length_bins([row["source_length"] for row in one])
    sizes = [sum(low <= row["source_length"] <= high for row in one) for low, high in bins]
    series = []
    for variant in section.variants:
        options = metrics.options((variant.done[0].result or {}).get("signatures", {})) if variant.done else {}
        pooled = [row for rows in lines[variant.index] for row in rows]
        values: list[float | None] = []
        for low, high in bins:
            held = [row for row in pooled if low <= row["source_length"] <= high]
            outputs, references = [row["prediction"] for row in held], [row["references"] for row in held]
            values.append(metrics.score([metric], outputs, references, **options)[metric] if held else None)
        series.append((variant.label, variant.index, values))
    names = [f"{low}" if low == high else f"{low}-{high}" for low, high in bins]
    return metric, plots.by_length(series, names, sizes, metric)


def _attention(section: Section, add: AddFigure) -> list[dict[str, Any]]:
    """Sentences, each with a map for every variant that attends: of its run with the lowest seed."""
    sentences: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for variant in section.variants:
        examples = next((found for run in variant.done if (found := run.attention())), [])
        for example in examples:
            source = tuple(example["source"])
            if source not in sentences and len(sentences) == SENTENCES:
                continue
            figure = plots.attention_map(source, example["target"], example["weights"])
            number = list(sentences).index(source) if source in sentences else len(sentences)
            sentences.setdefault(source, []).append(
                {
                    "variant": variant,
                    "output": " ".join(example["target"]),
                    "id": add(f"attention-{number}-{variant.index}", figure),
                    "width": 90 + 9 * max(map(len, example["target"]), default=0) + 20 * len(source),
                }
            )
    return [{"source": " ".join(source), "maps": maps} for source, maps in sentences.items()]
