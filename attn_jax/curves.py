"""Measured curves that are no results of runs: OUT/curves/<name>.json. The page shows them beside the runs or alone."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attn_jax import results
from attn_jax.errors import UserError
from attn_jax.results import NUMBER, Kinds, check, read_json, write_json

SCALES = ("linear", "log")

KINDS: Kinds = {
    "title": str,
    "x": dict,
    "y": dict,
    "note": str,
    "rows": list[dict],
    "table": dict | None,
    "study": str,
    "command": str,
    "git": str,
    "device": str,
    "versions": dict[str, str],
}
AXIS: Kinds = {"label": str, "unit": str, "scale": str}
ROW: Kinds = {"series": str, "panel": str, "x": float | int, "y": float | int, "low": NUMBER, "high": NUMBER}
TABLE: Kinds = {"columns": list[str], "rows": list[list[str | float | int | None]]}


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is measured along an axis, in which unit (empty: none), on a linear or logarithmic scale."""

    label: str
    unit: str = ""
    scale: str = "linear"


@dataclasses.dataclass(frozen=True)
class Row:
    """A point of a series: y at x, with a band from low to high where both are given.

    Series of equal name have one colour in all panels. panel: the chart it stands in; empty: the only one.
    """

    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    panel: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """What is told besides, e.g. fitted exponents: a row of texts and numbers (None: an empty cell) a line.

    A first cell that names a series gets its colour.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Series of points over one pair of axes, in one chart or in panels with common scales.

    name: of its file and figures, of letters, digits, "-" and "_". note: what must be known to read the chart. Raises
    ValueError on what cannot be drawn: no rows, numbers that are not finite, or not positive on a logarithmic axis, a
    band with one edge or apart from its point, a table whose rows are not as wide as its columns.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    rows: Sequence[Row]
    note: str = ""
    table: Table | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"name {self.name!r}: expected letters, digits, '-' and '_'")
        for which, axis in (("x", self.x), ("y", self.y)):
            if axis.scale not in SCALES:
                raise ValueError(f"scale {axis.scale!r} of {which}: expected one of {', '.join(SCALES)}")
        if not self.rows:
            raise ValueError("expected 'rows' with one point or more")
        for number, row in enumerate(self.rows):
            if complaint := self._complaint(row):
                raise ValueError(f"rows[{number}]: {complaint}")
        for number, cells in enumerate(self.table.rows if self.table else ()):
            if self.table and len(cells) != len(self.table.columns):
                raise ValueError(f"table: rows[{number}]: expected {len(self.table.columns)} cells")
            if any(isinstance(cell, float) and not math.isfinite(cell) for cell in cells):
                raise ValueError(f"table: rows[{number}]: expected finite numbers")

    def _complaint(self, row: Row) -> str:
        """What is wrong with a row; empty if nothing is."""
        if not row.series:
            return "expected a 'series' with a name"
        numbers = {name: value for name in ("x", "y", "low", "high") if (value := getattr(row, name)) is not None}
        for name, value in numbers.items():
            axis = self.x if name == "x" else self.y
            if not math.isfinite(value) or (axis.scale == "log" and value <= 0):
                return f"{name}={value}: expected a {'positive' if axis.scale == 'log' else 'finite'} number"
        if (row.low is None) != (row.high is None):
            return "expected both of 'low' and 'high', or neither"
        if row.low is not None and row.high is not None and not row.low <= row.y <= row.high:
            return f"y={row.y}: expected a number from low={row.low} to high={row.high}"
        return ""

    @property
    def series(self) -> list[str]:
        """Names of the series, in order of appearance; the place of one chooses its colour."""
        return list(dict.fromkeys(row.series for row in self.rows))

    @property
    def panels(self) -> dict[str, dict[str, list[Row]]]:
        """Points by panel and series, in order of appearance, each series by rising x."""

        def points(panel: str, one: str) -> list[Row]:
            return sorted((r for r in self.rows if (r.panel, r.series) == (panel, one)), key=lambda row: row.x)

        names = dict.fromkeys(row.panel for row in self.rows)
        return {panel: {one: found for one in self.series if (found := points(panel, one))} for panel in names}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Curves as they stand in a directory. study: heading of a page that has nothing else. command: what made them."""

    curves: Curves
    study: str
    command: str
    git: str
    device: str
    versions: Mapping[str, str]


def write(out: str | Path, curves: Curves, *, study: str = "", command: str = "") -> Path:
    """Writes curves measured just now, on this machine, in place of those of the same name, and returns the file.

    The page is made by `report.build`. Raises UserError where the file cannot be written.
    """
    path = Path(out) / "curves" / f"{curves.name}.json"
    about = {"study": study, "command": command, "git": results.git_commit(), "device": results.device()}
    value = {name: one for name, one in dataclasses.asdict(curves).items() if name != "name"}
    write_json(path, value | about | {"versions": results.versions()})
    return path


def read(path: Path) -> Measured:
    """The curves of a file. Raises UserError if it is damaged."""
    value = read_json(path, KINDS)
    for which in ("x", "y"):
        check(value[which], AXIS, f"{path}: {which}")
    for number, row in enumerate(value["rows"]):
        check(row, ROW, f"{path}: rows[{number}]")
    if value["table"] is not None:
        check(value["table"], TABLE, f"{path}: table")
    x, y = (Axis(*(value[which][name] for name in AXIS)) for which in ("x", "y"))
    rows = [Row(**{name: row[name] for name in ROW}) for row in value["rows"]]
    table = None if value["table"] is None else Table(*(value["table"][name] for name in TABLE))
    try:
        found = Curves(path.stem, value["title"], x, y, rows, value["note"], table)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Measured(found, **{name: value[name] for name in ("study", "command", "git", "device", "versions")})


def read_all(out: Path) -> Iterator[Measured]:
    """The curves under an output directory, by name. Raises UserError as `read` does."""
    return map(read, sorted(out.glob("curves/*.json")))
