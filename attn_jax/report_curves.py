"""Measured curves on the page, in `figures/` and on the console."""

from typing import TYPE_CHECKING, Any

from attn_jax import plots
from attn_jax.curves import Axis, Curves, Measured
from attn_jax.report_charts import Chart

if TYPE_CHECKING:
    from rich.table import Table


def charts(curves: Curves) -> list[Chart]:
    """A chart a panel, all with the same axes and colours."""
    places = {name: index for index, name in enumerate(curves.series)}
    panels = [
        [(name, places[name], [(row.x, row.y, row.low, row.high) for row in rows]) for name, rows in panel.items()]
        for panel in curves.panels.values()
    ]
    figures = plots.measured(panels, _axis(curves.x), _axis(curves.y))
    return [
        Chart(f"{curves.name}-{number}", panel, "", figure)
        for number, (panel, figure) in enumerate(zip(curves.panels, figures, strict=True))
    ]


def _axis(axis: Axis) -> tuple[str, str, bool]:
    return axis.label, axis.unit, axis.scale == "log"


def section(measured: Measured) -> dict[str, Any]:
    """What the template shows of measured curves; `places`: of the colours of series, and of their lines in the table.

    rows: of the table, cells as (text, what the column is sorted by).
    """
    curves = measured.curves
    return {
        "curves": curves,
        "figures": [(chart.title, f"m-{chart.name}") for chart in charts(curves)],
        "places": {name: index for index, name in enumerate(curves.series)},
        "rows": [[(show(cell), _sorted_by(cell)) for cell in row] for row in curves.table.rows] if curves.table else [],
    }


def show(cell: str | float | None) -> str:
    """A cell of a table: numbers with four significant digits, or all of an integer's."""
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"


def _sorted_by(cell: str | float | None) -> str | float:
    return "" if cell is None else cell


def console_table(curves: Curves) -> "Table":
    """The table of measured curves for a terminal."""
    from rich import box
    from rich.table import Table as Rich
    from rich.text import Text

    assert curves.table is not None
    table = Rich(box=box.SIMPLE, title=Text(curves.title), title_justify="left")
    for number, column in enumerate(curves.table.columns):
        table.add_column(Text(column), justify="right" if number else "left", no_wrap=number > 0)
    for row in curves.table.rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    return table
