"""Figures as plain Plotly JSON: {"data": [...], "layout": {...}}, from plain numbers.

A figure here is a dict and not a `plotly.graph_objects.Figure`, whose import takes longer than the report.
Every trace of a variant carries `legendgroup=<its index>`: the page has one legend for all figures, and its own
colours on a dark ground. `figure_files` draws the same dicts as SVG and PDF.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8a6d00",
    "#56b4e9",
    "#6a3d9a",
    "#444444",
    "#e69f00",
    "#7f3b08",
)
"""Okabe & Ito's colour-blind safe colours, darkened where they would be faint on white, and two more."""

DARK_PALETTE = (
    "#56b0e8",
    "#ff8f45",
    "#2fc79a",
    "#e8a4cb",
    "#d1b24c",
    "#a5dbfa",
    "#bd9cf0",
    "#c4c8cc",
    "#f5c35c",
    "#d99a6c",
)
"""The same hues for a dark ground."""

DASHES = ("solid", "dash", "dot", "dashdot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the index-th variant; they repeat after 40."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def text(value: object) -> str:
    """A label that Plotly shows as it is: Plotly reads tags and entities in every text."""
    return html.escape(str(value), quote=False)


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "gridcolor": "#e8e8e8",
        "linecolor": "#bbbbbb",
        "zeroline": False,
        "automargin": True,
    }
    layout: dict[str, Any] = {
        "font": {"family": FONT, "size": 12, "color": "#222222"},
        "margin": {"l": 48, "r": 12, "t": 26, "b": 40},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b8bcc0", "activecolor": "#5d6368"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "xaxis": axis | {"title": {"text": text(x)}},
        "yaxis": axis | {"title": {"text": text(y)}},
        "height": 320,
    }
    for key, value in more.items():
        layout[key] = layout[key] | value if isinstance(value, dict) and key in layout else value
    return layout


def curves(
    series: Sequence[tuple[str, int, Sequence[Mapping[int, float]]]],
    y: str,
    *,
    log: bool = False,
    points: int = 200,
) -> Figure:
    """Mean over seeds against the optimiser step, with a band from the lowest to the highest seed.

    Args:
      series: (label, variant's index, one {step: value} a seed) a variant. A seed that ends before others keeps its
        last value: a mean over those that go on alone would be one over other seeds at every step.
      y: title of the vertical axis.
      log: logarithmic vertical axis.
      points: longer curves are averaged over equal stretches of steps, down to about that many points.
    """
    data: list[dict[str, Any]] = []
    for label, index, seeds in series:
        rows = _average(seeds, points)
        if not rows:
            continue
        color, dash = style(index)
        steps = [row[0] for row in rows]
        if any(row[5] > 1 for row in rows):
            edge = {
                "mode": "lines",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "legendgroup": str(index),
                "x": steps,
            }
            data.append({"type": "scatter", "y": [row[2] for row in rows], **edge})
            data.append(
                {"type": "scatter", "y": [row[3] for row in rows], "fill": "tonexty", **edge}
                | {"fillcolor": _faint(color)}
            )
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(rows) < 30 else "lines",
                "marker": {"size": 4},
                "line": {"color": color, "dash": dash, "width": 1.8},
                "name": text(label),
                "legendgroup": str(index),
                "x": steps,
                "y": [row[1] for row in rows],
                "customdata": [list(row[2:]) for row in rows],
                "hovertemplate": "<b>%{fullData.name}</b><br>step %{x}: %{y:.4g}<br>"
                "%{customdata[2]} of %{customdata[3]} seed(s) in training, "
                "%{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
            }
        )
    values = [value for trace in data for value in trace["y"] if value > 0]
    axis = _decades(min(values), max(values)) if log and values else {}
    return {"data": data, "layout": _layout("optimiser step", y, yaxis=axis)}


def _decades(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis; its labels are 1, 2 and 5 of every decade where that gives more than one.

    Over more than four decades they are powers of ten, at most ten of them.
    """
    if high < 5 * low:
        return {"type": "log"}
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1, max(1, math.ceil((last - first) / 9)))
    ticks = [float(f"{digit}e{power}") for power in powers for digit in ((1, 2, 5) if last - first <= 4 else (1,))]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _average(seeds: Sequence[Mapping[int, float]], points: int) -> list[tuple[float, float, float, float, int, int]]:
    """(step, mean, lowest, highest, seeds in training, seeds) of every stretch of steps; see `curves`."""
    last = max((step for seed in seeds for step in seed), default=0)
    steps = {step for seed in seeds for step in seed}
    width = max(1, math.ceil((last + 1) / points)) if len(steps) > points else 0
    stretches: dict[int, list[int]] = {}
    means: list[dict[int, float]] = []
    for seed in seeds:
        own: dict[int, list[float]] = {}
        for step, value in sorted(seed.items()):
            if math.isfinite(value):
                key = step // width if width else step
                own.setdefault(key, []).append(value)
                stretches.setdefault(key, []).append(step)
        means.append({key: float(np.mean(values)) for key, values in own.items()})
    ends = [max(own, default=None) for own in means]
    rows = []
    for key in sorted(stretches):
        going = [own[key] for own in means if key in own]
        ended = [own[end] for own, end in zip(means, ends, strict=True) if end is not None and end < key]
        values = going + ended
        center = round(float(np.mean(stretches[key])), 1)
        rows.append((center, float(np.mean(values)), min(values), max(values), len(going), len(values)))
    return rows


Point = tuple[float, float, float | None, float | None]
"""Of a measured series: x, y, and the edges of a band, None where there is none."""


def measured(
    panels: Sequence[Sequence[tuple[str, int, Sequence[Point]]]],
    x: tuple[str, str, bool],
    y: tuple[str, str, bool],
) -> list[Figure]:
    """A figure a panel, all with the same axes: lines through points, with bands.

    Args:
      panels: (label, index that chooses the colour, points by rising x) a series.
      x: what the horizontal axis has, its unit or "", whether it is logarithmic.
      y: the same of the vertical axis.
    """
    points = [point for panel in panels for _, _, own in panel for point in own]
    across = _range([point[0] for point in points], log=x[2])
    up = _range([value for point in points for value in point[1:] if value is not None], log=y[2])
    titles = [f"{label} ({unit})" if unit else label for label, unit, _ in (x, y)]
    found = []
    for panel in panels:
        # Bands first: no line lies under one.
        data = [edge for _, index, own in panel for edge in _band(index, own)]
        data += [_line(label, index, own, x, y) for label, index, own in panel]
        found.append({"data": data, "layout": _layout(*titles, xaxis=across, yaxis=up, height=360)})
    return found


def _range(values: Sequence[float], *, log: bool) -> dict[str, Any]:
    """An axis that shows all values with a little room; the range of a logarithmic one is of exponents, as Plotly's."""
    low, high = min(values), max(values)
    axis = _decades(low, high) if log else {}
    if log:
        low, high = math.log10(low), math.log10(high)
    room = 0.04 * (high - low) or 0.5
    return axis | {"range": [low - room, high + room]}


def _band(index: int, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The lower and the upper edge; none without two points that have them."""
    rows = [(x, low, high) for x, _, low, high in points if low is not None and high is not None]
    if len(rows) < 2:
        return []
    edge: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "legendgroup": str(index),
        "x": [row[0] for row in rows],
    }
    upper = {"y": [row[2] for row in rows], "fill": "tonexty", "fillcolor": _faint(style(index)[0])}
    return [edge | {"y": [row[1] for row in rows]}, edge | upper]


def _line(
    label: str, index: int, points: Sequence[Point], x: tuple[str, str, bool], y: tuple[str, str, bool]
) -> dict[str, Any]:
    color, dash = style(index)
    bands = [low is not None and high is not None for _, _, low, high in points]
    edges = [f"<br>{low:.4g} to {high:.4g}" if low is not None and high is not None else "" for *_, low, high in points]
    units = [f" {text(unit)}" if unit else "" for _, unit, _ in (x, y)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 30 else "lines",
        "marker": {"size": 4, "color": color},
        "line": {"color": color, "dash": dash, "width": 1.8},
        "name": text(label),
        "legendgroup": str(index),
        "x": [point[0] for point in points],
        "y": [point[1] for point in points],
        "customdata": edges,
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>{text(x[0])}: %{{x:.4~g}}{units[0]}<br>{text(y[0])}: "
        f"%{{y:.4~g}}{units[1]}" + ("%{customdata}" if any(bands) else "") + "<extra></extra>",
    }


def forest(rows: Sequence[tuple[str, int, Mapping[int, float], float, float | None, float | None]], x: str) -> Figure:
    """One line a variant, the first on top: seeds as dots, the mean as a diamond, its interval as a bar.

    Args:
      rows: (label, variant's index, {seed: value}, mean, low, high); low and high None with a single seed.
      x: title of the horizontal axis.
    """
    data: list[dict[str, Any]] = []
    for position, (label, index, values, mean, low, high) in enumerate(rows):
        color, _ = style(index)
        group = {"type": "scatter", "mode": "markers", "legendgroup": str(index), "name": text(label)}
        data.append(
            group
            | {
                "x": list(values.values()),
                "y": [position + 0.22] * len(values),
                "customdata": list(values),
                "marker": {"color": color, "size": 6, "opacity": 0.45},
                "hovertemplate": "<b>%{fullData.name}</b><br>seed %{customdata}: %{x:.2f}<extra></extra>",
            }
        )
        bar: dict[str, Any] = {
            "x": [mean],
            "y": [position],
            "marker": {"color": color, "size": 10, "symbol": "diamond"},
        }
        interval = ""
        if low is not None and high is not None:
            bar["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [high - mean],
                "arrayminus": [mean - low],
                "color": color,
                "thickness": 2,
                "width": 5,
            }
            interval = f"<br>95 % interval {low:.2f} to {high:.2f}"
        data.append(
            group | bar | {"hovertemplate": f"<b>%{{fullData.name}}</b><br>mean %{{x:.2f}}{interval}<extra></extra>"}
        )
    ticks = {
        "tickvals": list(range(len(rows))),
        "ticktext": [text(row[0]) for row in rows],
        "title": {"text": ""},
    }
    return {
        "data": data,
        "layout": _layout(
            x,
            "",
            yaxis=ticks | {"range": [len(rows) - 0.4, -0.6], "showgrid": False},
            height=90 + 34 * len(rows),
        ),
    }


def binned(
    series: Sequence[tuple[str, int, Sequence[float | None]]],
    bins: Sequence[str],
    sizes: Sequence[int],
    x: str,
    y: str,
    unit: str = "sentences",
) -> Figure:
    """Quality in bins of a property of sentences or words.

    Args:
      series: (label, variant's index, a value or None a bin) a variant.
      bins: names of the bins, e.g. "5-7".
      sizes: sentences or words, as `unit` says, of the test set in each.
      x: what the bins are of.
      y: title of the vertical axis.
      unit: what is counted.
    """
    data = []
    for label, index, values in series:
        color, dash = style(index)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [text(name) for name in bins],
                "y": list(values),
                "customdata": list(sizes),
                "name": text(label),
                "legendgroup": str(index),
                "line": {"color": color, "dash": dash, "width": 1.8},
                "marker": {"size": 6, "color": color},
                "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{x}}: %{{y:.2f}}<br>%{{customdata:,}} {text(unit)}"
                "<extra></extra>",
            }
        )
    return {"data": data, "layout": _layout(x, y, xaxis={"type": "category"})}


def cost(
    rows: Sequence[tuple[str, int, float, float | None, float | None, float]], x: str, y: str, unit: str
) -> Figure:
    """Quality against a cost; rows: (label, variant's index, mean, low, high, cost); unit: of the cost."""
    data = []
    for label, index, mean, low, high, value in rows:
        color, _ = style(index)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "x": [value],
            "y": [mean],
            "name": text(label),
            "legendgroup": str(index),
            "marker": {"size": 10, "color": color},
            "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{y:.2f}} at %{{x:,.4~r}} {text(unit)}<extra></extra>",
        }
        if low is not None and high is not None:
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [high - mean],
                "arrayminus": [mean - low],
                "color": color,
                "thickness": 1.5,
                "width": 4,
            }
        data.append(trace)
    return {"data": data, "layout": _layout(x, y, xaxis={"rangemode": "tozero"})}


def attention_map(source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]]) -> Figure:
    """Weights [T, S] as a heat map from 0 to 1: a row for each output symbol, a column a source symbol."""
    rows = [
        [round(float(weight), 4) if math.isfinite(weight) else None for weight in row[: len(source)]]
        for row in weights[: len(target)]
    ]
    outputs = list(target[: len(rows)])
    ticks = {
        "ticks": "",
        "showgrid": False,
        "title": {"text": ""},
        "tickfont": {"family": MONOSPACE, "size": 11},
    }
    return {
        "data": [
            {
                "type": "heatmap",
                "z": rows,
                "zmin": 0,
                "zmax": 1,
                "colorscale": [[0, "#ffffff"], [0.5, "#6baed6"], [1, "#08306b"]],
                "showscale": False,
                "xgap": 1,
                "ygap": 1,
                "text": [[f"{text(out)} ← {text(token)}" for token in source] for out in outputs],
                "hovertemplate": "%{text}<br>weight %{z:.3f}<extra></extra>",
            }
        ],
        "layout": _layout(
            "",
            "",
            margin={"l": 20, "r": 8, "t": 26, "b": 20},
            plot_bgcolor="#f0f0f0",
            xaxis=ticks
            | {
                "side": "top",  # in sight where a long output is scrolled
                "tickvals": list(range(len(source))),
                "ticktext": [text(t) for t in source],
                "tickangle": -90,
            },
            yaxis=ticks
            | {
                "tickvals": list(range(len(outputs))),
                "ticktext": [text(t) for t in outputs],
                "autorange": "reversed",
            },
            height=126 + 19 * max(len(outputs), 3),
        ),
    }


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"
