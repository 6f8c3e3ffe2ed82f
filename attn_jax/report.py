"""Results as people read them: `results.csv`, tables, figures, and the page `report.html`.

Everything is rebuilt from a study's result files (`report_data`), without training, and written atomically.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from attn_jax import config as configs
from attn_jax import figure_files, plots, report_charts, report_curves, report_maps, report_page
from attn_jax.curves import Measured
from attn_jax.errors import UserError
from attn_jax.report_data import load
from attn_jax.report_export import table_md, table_tex
from attn_jax.report_labels import differing, show
from attn_jax.report_run import Run
from attn_jax.report_table import console_table
from attn_jax.report_tuning import tuning_table
from attn_jax.storage import read_json, remove_leftovers, write_bytes, write_json, write_text, writing

_HEAD = ("run_id", "dataset", "score", "cell", "seed", "split", "metric", "value")
_AXES = {
    "encoder": "encoder.name",
    "bridge": "bridge",
    "combine": "combine.name",
    "input_feeding": "input_feeding",
}


def build(out: Path) -> None:
    """Writes `results.csv`, `table.tex`, `table.md`, `figures/` and `report.html` under `out`.

    `tuning.csv`, too, if variants were tuned; of measured curves without runs only the figures and the page.

    Raises UserError if there is neither a run nor a measured curve, a file cannot be read, or `out` cannot be written
    to.
    """
    study = load(Path(out))
    shown = report_page.parts(study)
    page = report_page.page(study, shown)
    if study.runs:
        write_text(study.out / "results.csv", results_csv(study.runs))
        write_text(study.out / "table.tex", table_tex(study))
        write_text(study.out / "table.md", table_md(study))
    if study.tried:
        write_text(study.out / "tuning.csv", results_csv(study.tried))
    write_figures(study.out / "figures", shown, study.measured)
    write_text(study.out / "report.html", page)


def write_figures(folder: Path, shown: Sequence[report_page.Part], measured: Sequence[Measured]) -> None:
    """Every chart, and the maps of each sentence, as SVG and PDF; other files of these kinds there are removed.

    Panels of measured curves are side by side in one file.

    What is as it was when it was drawn last is not drawn again: a study that is called again has no new figures.
    """
    remove_leftovers(folder)
    record = folder / ".drawn.json"
    known, drawn = _record(record), dict[str, str]()
    for name, heading, panels in _sheets(shown, measured):
        names = [f"{name}.{form}" for form in figure_files.FORMATS]
        digest = configs.digest([heading, panels, figure_files.VERSION])
        if any(known.get(file) != digest or not (folder / file).exists() for file in names):
            for form, content in figure_files.draw(panels, heading, len(panels)).items():
                write_bytes(folder / f"{name}.{form}", content)
        drawn |= dict.fromkeys(names, digest)
    write_json(record, drawn)
    with writing(folder):
        for form in figure_files.FORMATS:
            for path in folder.glob(f"*.{form}"):
                if path.name not in drawn:
                    path.unlink()


def _record(path: Path) -> dict[str, str]:
    """What `write_figures` drew last; nothing where that is not known."""
    try:
        return dict(read_json(path, {}))
    except (UserError, TypeError, ValueError):
        return {}


def _sheets(
    shown: Sequence[report_page.Part], measured: Sequence[Measured]
) -> Iterator[tuple[str, str, list[tuple[str, plots.Figure]]]]:
    """Name, heading and panels of every file."""
    for part in shown:
        title, name = part.section.title, report_charts.slug(part.section)
        for chart in part.charts:
            yield f"{name}-{chart.name}", f"{title}: {chart.title}", [("", chart.figure)]
        for number, source in enumerate(part.maps.sentences):
            text = " ".join(source)
            text = text if len(text) <= 80 else text[:79] + "\u2026"
            yield f"{name}-attention-{number + 1}", f"{title}: {text}", report_maps.panels(part.maps, number)
    for curves in (m.curves for m in measured):
        charts = report_curves.charts(curves)
        yield f"measured-{curves.name}", curves.title, [(chart.title, chart.figure) for chart in charts]


def table_text(out: Path, width: int = 120) -> str:
    """The tables that `console_table` makes, one a section, as plain text; wider than `width` rather than cut."""
    from rich.console import Console

    study = load(Path(out))
    tables = [(console_table(study, section), section) for section in study.sections]
    tables += [(tuning_table(section), section) for section in study.sections if section.tuned]
    unlimited = Console(file=io.StringIO(), width=10_000)
    for table, section in tables:
        # Labels may be folded at 24 characters, figures nowhere.
        spare = max(0, max(len(variant.label) for variant in section.variants) - 24)
        width = max(width, unlimited.measure(table).maximum - spare)
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    for table, _ in tables:
        console.print(table)
    lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
    return "".join(line.rstrip() + "\n" for line in lines)


def measured_text(out: Path) -> str:
    """The tables of measured curves as plain text; empty where there are none."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=10_000, force_terminal=False, highlight=False)
    for measured in load(Path(out)).measured:
        if measured.curves.table is not None:
            console.print(report_curves.console_table(measured.curves))
    lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
    return "".join(line.rstrip() + "\n" for line in lines if any(lines))


def results_csv(runs: Sequence[Run]) -> str:
    """One line a run, split and metric; after the fixed columns every configuration field that differs.

    fingerprint: of the run's data; only runs with the same one saw the same examples.
    """
    fixed = {"data.dataset", "score.name", "cell.name", *_AXES.values()}
    further = [path for path in differing([run.config for run in runs]) if path not in fixed]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEAD, *_AXES, "fingerprint", *further])
    for run in runs:
        head = [run.run_id, run.dataset, run.config.get("score.name"), run.config.get("cell.name"), run.seed]
        axes, others = ([show(run.config.get(path)) for path in paths] for paths in (_AXES.values(), further))
        for split, values in (run.result or {}).get("metrics", {}).items():
            for metric, value in values.items():
                writer.writerow([*head, split, metric, value, *axes, run.fingerprint, *others])
    return text.getvalue()
