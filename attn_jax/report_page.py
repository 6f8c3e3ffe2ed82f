"""The page of a study: what the template shows, as plain values and figures."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_jax import plots, report_charts, report_curves, report_maps, report_table
from attn_jax.report_charts import Chart
from attn_jax.report_data import Section, Study, Variant
from attn_jax.report_labels import differing, show
from attn_jax.report_maps import Maps
from attn_jax.report_run import Run
from attn_jax.report_tuning import tuning_note, tuning_rows


@dataclasses.dataclass(frozen=True)
class Part:
    """What is shown of a section besides its tables."""

    section: Section
    charts: Sequence[Chart]
    maps: Maps


def parts(study: Study) -> list[Part]:
    """Charts and attention maps of every section."""
    return [
        Part(section, report_charts.charts(study, section), report_maps.collect(section)) for section in study.sections
    ]


def page(study: Study, shown: Sequence[Part]) -> str:
    """The page as one self-contained HTML text; shown: its `parts`."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {f"s{n}-{chart.name}": chart.figure for n, part in enumerate(shown) for chart in part.charts}
    figures |= {f"m-{chart.name}": chart.figure for m in study.measured for chart in report_curves.charts(m.curves)}
    sections = [_section(study, part, f"s{n}") for n, part in enumerate(shown)]
    maps = {section["name"]: section["maps"] for section in sections if section["maps"]}
    folder = Path(__file__).parent
    return environment.get_template("report_template.html").render(
        study=study,
        sections=sections,
        measured=[report_curves.section(m) for m in study.measured],
        provenance=_provenance(study),
        programs=_programs(study),
        palettes=list(zip(plots.PALETTE, plots.DARK_PALETTE, strict=True)),
        style=plots.style,
        show=show,
        show_p=report_table.show_p,
        signed=report_table.signed,
        mark=report_table.mark,
        dagger=report_table.SEVERAL,
        figures=_as_script(figures),
        maps=_as_script({"maps": maps, "template": plots.attention_map([], [], [])}),
        css=(folder / "report.css").read_text(encoding="utf-8"),
        script=(folder / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def _as_script(value: Any) -> str:
    """JSON for a script element; "<" is written as an escape so that no text of the data can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _provenance(study: Study) -> list[tuple[str, list[str]]]:
    """What the results were made with; several values where runs or measured curves differ."""
    results = [run.result for run in study.runs if run.result is not None]
    results += [{"git": m.git, "device": m.device, "versions": m.versions} for m in study.measured]
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


def _section(study: Study, part: Part, name: str) -> dict[str, Any]:
    """What the template shows of a data set; the ids of its figures begin with `name`."""
    section = part.section
    results = [run.result for run in section.done if run.result is not None]
    varying = differing([variant.config for variant in section.variants])
    rows = report_table.rows(study, section)
    return {
        "name": name,
        "section": section,
        "rows": rows,
        "columns": report_table.columns(section, rows, every=True),
        "others": list(dict.fromkeys(title for row in rows for title in row["others"])),
        "pairs": _pairs(section),
        "bootstrap": report_table.bootstrap_rows(section),
        "marginals": report_table.marginal_rows(section),
        "variance": report_table.variance_rows(section),
        "estimated": any(row["interval"]["text"] for row in rows),
        "tested": sum(test.p is not None for test in section.tests.values()) // 2,
        "sources": [row for row in rows if row["sources"]],
        "tuning": tuning_rows(section),
        "tuning_note": tuning_note(section) if section.tuned else "",
        "figures": [(chart.title, chart.note, f"{name}-{chart.name}") for chart in part.charts],
        "maps": report_maps.to_json(part.maps) if part.maps.maps else None,
        "incomplete": part.maps.incomplete,
        "no_attention": [v.label for v in section.variants if v.done and v.config.get("score.name") == "none"],
        "costs": _costs(study, section),
        "runs": [_run(section, variant, run) for variant in section.variants for run in variant.runs],
        "trouble": [(v.label, run) for v in section.variants for run in v.runs if run.failed or run.result is None],
        "failed": sum(run.failed for run in section.runs),
        "early": _early(section),
        "scored_apart": report_table.scored_apart(section),
        "symbols_apart": report_table.symbols_apart(section),
        "compared_with": report_table.compared_with(section, rows[0]["label"]),
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


def _early(section: Section) -> str:
    """How many runs ended by early stopping, and where; empty if none did."""
    steps = sorted(int(run.result["steps"]) for run in section.done if run.result and run.early)
    if not steps:
        return ""
    where = f"at step {steps[0]}" if steps[0] == steps[-1] else f"between steps {steps[0]} and {steps[-1]}"
    return f"Early stopping ended {len(steps)} of {len(section.done)} runs, {where}."


def _costs(study: Study, section: Section) -> list[dict[str, Any]]:
    """Quality and cost of each variant, best first; None where a cost is not known."""
    return [
        {
            "variant": variant,
            "mean": summary.mean if summary is not None else None,
            "seconds": report_table.seconds_of_a_run(study, variant),
            "speed": report_table.speed_of_a_run(study, variant),
            "parameters": report_table.parameters(study, variant),
            "memory": report_table.memory_of_a_run(study, variant),
        }
        for variant, summary in section.ranked
        if variant.done
    ]


def _pairs(section: Section) -> dict[str, Any] | None:
    """Row variant - column variant, in the table's order; None where no pair has an interval.

    lines: a row's variant and its cells, as test or None and whether the two differ in several choices. several:
    whether any two do. uneven: whether tests are not all over equally many seeds.
    """
    order = [variant for variant, summary in section.ranked if summary is not None]
    if len(order) < 3 or not any(test.p is not None for test in section.tests.values()):
        return None
    several = {
        frozenset((one.index, other.index)): len(section.factors(one, other)) > 1
        for one, other in itertools.combinations(order, 2)
        if (one.index, other.index) in section.tests
    }
    lines = [
        (
            row,
            [
                (section.tests.get((row.index, column.index)), several.get(frozenset((row.index, column.index)), False))
                for column in order
            ],
        )
        for row in order
    ]
    return {
        "order": order,
        "lines": lines,
        "several": any(several.values()),
        "uneven": len({test.n for test in section.tests.values()}) > 1,
    }


def _run(section: Section, variant: Variant, run: Run) -> dict[str, Any]:
    return {
        "run": run,
        "label": variant.label,
        "test": run.value(section.split, section.metric),
        "dev": run.value("dev", section.metric) if section.split != "dev" else None,
        "steps": (run.result or {}).get("steps"),
        "selected": (run.result or {}).get("selected_step"),
    }
