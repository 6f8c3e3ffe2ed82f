"""Results as people read them: `results.csv`, the table on the console, and the page `report.html`.

Everything is rebuilt from a study's result files (`report_data`), without training, and written atomically.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from attn_jax.report_data import Run, differing, load, show
from attn_jax.report_page import page
from attn_jax.report_table import console_table
from attn_jax.report_tuning import tuning_table
from attn_jax.results import write_text

_HEAD = ("run_id", "dataset", "score", "cell", "seed", "split", "metric", "value")
_AXES = {
    "encoder": "encoder.name",
    "bridge": "bridge",
    "combine": "combine.name",
    "input_feeding": "input_feeding",
}


def build(out: Path) -> None:
    """Writes `results.csv` and `report.html` under `out`; `tuning.csv`, too, if variants were tuned.

    Raises UserError if there is no run, a result file cannot be read, or `out` cannot be written to.
    """
    study = load(Path(out))
    write_text(study.out / "results.csv", results_csv(study.runs))
    if study.tried:
        write_text(study.out / "tuning.csv", results_csv(study.tried))
    write_text(study.out / "report.html", page(study))


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
