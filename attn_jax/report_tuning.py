"""How variants were tuned, for the page and the console: what was chosen out of what, and how clear that was."""

from typing import TYPE_CHECKING, Any

from attn_jax.report_data import Section
from attn_jax.tuned import Tuned, short, show_choice

if TYPE_CHECKING:
    from rich.table import Table


def tuning_rows(section: Section) -> list[dict[str, Any]]:
    """One row a variant, of texts: label, chosen, value, runner_up, margin, remarks; and its choices, best first.

    `edge`: whether a chosen number is the lowest or highest that was tried.
    """
    rows = []
    for one in section.tuned:
        taken, other, margin = one.taken, one.runner_up, one.margin
        rows.append(
            {
                "label": one.label,
                "chosen": show_choice(taken.values) if taken else "not finished",
                "value": _number(taken.mean if taken else None),
                "runner_up": show_choice(other.values) if taken and other else "",
                "margin": "" if margin is None else f"{margin:.2f}",
                "edge": bool(one.edges),
                "remarks": "; ".join(_remarks(one)),
                "choices": [(show_choice(tried.values), _number(tried.mean)) for tried in one.ranked],
            }
        )
    return rows


def tuning_note(section: Section) -> str:
    """What was done with every variant, in one sentence or two."""
    first = section.tuned[0]
    seeds = sorted({one.seeds for one in section.tuned})
    counts = sorted({one.all_choices for one in section.tuned})
    fields = dict.fromkeys(short(path) for one in section.tuned for path in one.fields)
    grid = "; ".join(dict.fromkeys(_grid(one) for one in section.tuned))
    same = "the same" if len(counts) == len(seeds) == 1 else "not all the same"
    return (
        f"Before the comparison {', '.join(fields)} of every variant was chosen by the mean of {first.metric} on dev "
        f"({grid}): {same} {' or '.join(map(str, counts))} choices with {' or '.join(map(str, seeds))} seed(s) each, "
        "other seeds than those of the table, without the test data. Then the chosen configuration was trained anew."
    )


def tuning_table(section: Section) -> "Table":
    """The rows as a table for the console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = tuning_rows(section)
    columns = [
        ("\nchosen", "chosen"),
        (f"\n{section.tuned[0].metric} (dev)", "value"),
        ("\nrunner-up", "runner_up"),
        ("better\nby", "margin"),
        ("\nremarks", "remarks"),
    ]
    columns = [(title, key) for title, key in columns if any(row[key] for row in rows)]
    table = Table(box=box.SIMPLE, title=f"Tuning on {section.title}", title_justify="left")
    table.add_column("\nvariant", overflow="fold", min_width=min(24, max(len(row["label"]) for row in rows)))
    for title, key in columns:
        table.add_column(title, justify="right" if key in ("value", "margin") else "left", overflow="fold")
    for row in rows:
        table.add_row(Text(row["label"]), *(Text(row[key]) for _, key in columns))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _grid(one: Tuned) -> str:
    return ", ".join(f"{short(path)} {' '.join(map(str, values))}" for path, values in one.fields.items())


def _remarks(one: Tuned) -> list[str]:
    remarks = [f"{path.removesuffix('.name').rpartition('.')[2]} is the {end} tried" for path, end in one.edges.items()]
    remarks += [f"{path} does not matter to it" for path in one.idle]
    if len(one.choices) < one.all_choices:
        remarks.append(f"{len(one.choices)} of {one.all_choices} choices differ")
    if missing := [show_choice(tried.values) for tried in one.choices if tried.mean is None]:
        remarks.append(f"no value for {' | '.join(missing)}")
    return remarks
