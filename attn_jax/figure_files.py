"""Figures of `plots` as SVG and PDF, drawn by Matplotlib from the same dicts that the page shows with Plotly.

What is read of Plotly's JSON is what `plots` writes: scatter traces (lines, markers, bands, error bars), heat maps, and
axes with titles, ranges, ticks, a logarithm or categories.
"""

import html
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attn_jax.plots import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

FORMATS = ("svg", "pdf")
VERSION = 1
"""To be raised when the same figures are drawn otherwise than before."""

WIDTH = 5.4
"""Inches, of a single panel."""

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "attn_jax",  # equal figures are equal files
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "text.parse_math": False,  # a dollar sign of the data is a dollar sign
}


def draw(panels: Sequence[tuple[str, Figure]], title: str, across: int = 1) -> dict[str, bytes]:
    """A file in each of `FORMATS` with one panel a figure, titled each, and one legend; `across`: panels in a row.

    Of the time and the program nothing is written: equal figures give equal files.
    """
    import matplotlib

    files = {}
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Of letters that the font lacks (an SVG keeps them as text), and of places that long names leave no room in.
        warnings.simplefilter("ignore", UserWarning)
        drawn = sheet(panels, title, across)
        drawn.draw_without_rendering()
        drawn.set_layout_engine(None)  # What was found holds for both formats.
        for form in FORMATS:
            file, dates = io.BytesIO(), {"svg": "Date", "pdf": "CreationDate"}
            drawn.savefig(file, format=form, metadata={dates[form]: None})
            files[form] = file.getvalue()
    return files


def sheet(panels: Sequence[tuple[str, Figure]], title: str, across: int) -> "Sheet":
    """What `draw` writes, as Matplotlib has it."""
    from matplotlib.figure import Figure as Sheet

    across = min(across, len(panels))
    down = -(-len(panels) // across)
    height = max(figure["layout"]["height"] for _, figure in panels) / 90
    longest, widest = _extent(panels)
    names = max((len(name) for _, figure in panels for name in _names(figure)), default=0)
    width = 0.7 + 0.07 * names + 0.22 * widest if widest else WIDTH + 0.06 * max(0, names - 24)
    drawn = Sheet(figsize=(width * across, height * down + 0.5), layout="constrained")
    grid = drawn.subplots(down, across, squeeze=False)
    drawn.suptitle(title, fontsize=10)
    for place, (name, figure) in zip(grid.flat, panels, strict=False):
        _panel(place, figure)
        place.set_title(name, fontsize=9, loc="left")
        if longest:  # cells of maps side by side are of one height
            place.set_ylim(longest - 0.5, -0.5)
    for place in grid.flat[len(panels) :]:
        place.set_axis_off()
    # On an axis that names the variants a legend says nothing more.
    if not any(_names(figure) for _, figure in panels):
        drawn.set_figheight(drawn.get_figheight() + 0.17 * _legend(drawn))
    return drawn


def _names(figure: Figure) -> Sequence[str]:
    """The texts of a vertical axis that has names instead of numbers."""
    axis = figure["layout"]["yaxis"]
    return axis["ticktext"] if "ticktext" in axis and axis.get("type") != "log" else []


def _extent(panels: Sequence[tuple[str, Figure]]) -> tuple[int, int]:
    """Rows and columns of the largest heat map; zero without one."""
    maps = [figure["layout"] for _, figure in panels if figure["data"][0]["type"] == "heatmap"]
    sizes = [[len(layout[f"{which}axis"]["tickvals"]) for layout in maps] for which in "yx"]
    return max(sizes[0], default=0), max(sizes[1], default=0)


def _legend(drawn: "Sheet") -> int:
    """Adds a legend below, with each variant of any panel once, where there are several; the number of its lines."""
    found = [pair for axes in drawn.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    first = {label: handle for handle, label in reversed(found)}
    labels = list(dict.fromkeys(label for _, label in found))
    if len(labels) < 2:
        return 0
    columns = max(1, min(len(labels), int(80 / (9 + max(map(len, labels))))))
    drawn.legend([first[label] for label in labels], labels, loc="outside lower center", ncols=columns, frameon=False)
    return -(-len(labels) // columns)


def _panel(axes: "Axes", figure: Figure) -> None:
    layout, below = figure["layout"], None
    for trace in figure["data"]:
        if trace["type"] == "heatmap":
            _heatmap(axes, trace)
        elif trace.get("line", {}).get("width") == 0:  # an edge of a band; the upper one fills down to the lower one
            if trace.get("fill") == "tonexty" and below is not None:
                color = _rgba(trace["fillcolor"])
                axes.fill_between(trace["x"], below, trace["y"], color=color, linewidth=0)
            below = trace["y"]
        else:
            _scatter(axes, trace)
    for which in ("x", "y"):
        _axis(axes, which, layout[f"{which}axis"])
    if layout["xaxis"].get("type") == "category" and len(axes.get_xticks()) > 6:
        axes.tick_params(axis="x", labelrotation=45)


def _scatter(axes: "Axes", trace: Mapping[str, Any]) -> None:
    marker, line = trace.get("marker", {}), trace.get("line", {})
    color = line.get("color") or marker["color"]
    lines, marks = "lines" in trace["mode"], "markers" in trace["mode"]
    values = [float("nan") if value is None else value for value in trace["y"]]
    axes.plot(
        trace["x"],
        values,
        color=color,
        linestyle=_DASHES[line.get("dash", "solid")] if lines else "none",
        linewidth=0.8 * line.get("width", 1.8),
        marker=("D" if marker.get("symbol") == "diamond" else "o") if marks else None,
        markersize=0.6 * marker.get("size", 6),
        markeredgewidth=0,
        alpha=marker.get("opacity", 1.0),
        label=html.unescape(trace["name"]),
    )
    for which in ("x", "y"):
        if (bar := trace.get(f"error_{which}")) is not None:
            error: dict[str, Any] = {f"{which}err": [bar["arrayminus"], bar["array"]]}
            axes.errorbar(trace["x"], values, **error, color=color, fmt="none", capsize=2.5, linewidth=1.2)


def _heatmap(axes: "Axes", trace: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5)
    axes.xaxis.tick_top()
    if trace["z"] and trace["z"][0]:
        rows = [[float("nan") if value is None else value for value in row] for row in trace["z"]]
        colors = LinearSegmentedColormap.from_list("weights", [tuple(stop) for stop in trace["colorscale"]])
        edges = [[n - 0.5 for n in range(size + 1)] for size in (len(rows[0]), len(rows))]  # centres are numbers
        axes.pcolormesh(
            *edges, rows, cmap=colors, vmin=trace["zmin"], vmax=trace["zmax"], edgecolors="#e4e4e4", linewidth=0.3
        )


def _axis(axes: "Axes", which: str, axis: Mapping[str, Any]) -> None:
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    own, label, limit = (getattr(axes, name) for name in (f"{which}axis", f"set_{which}label", f"set_{which}lim"))
    label(html.unescape(axis["title"]["text"]))
    if axis.get("type") == "log":
        getattr(axes, f"set_{which}scale")("log")
        own.set_major_formatter(StrMethodFormatter("{x:g}"))
        own.set_minor_formatter(StrMethodFormatter("{x:g}"))
    if "tickvals" in axis:
        own.set_minor_locator(NullLocator())
        ends = None if "range" in axis or axis.get("type") != "log" else limit()
        texts = [html.unescape(tick) for tick in axis["ticktext"]]
        turned = {"rotation": -axis["tickangle"]} if "tickangle" in axis else {}
        own.set_ticks(axis["tickvals"], texts, **turned)
        if ends:
            limit(ends)
    if "range" in axis:
        limit([10**end for end in axis["range"]] if axis.get("type") == "log" else axis["range"])
    elif axis.get("autorange") == "reversed":
        limit(len(axis["tickvals"]) - 0.5, -0.5)
    elif axis.get("rangemode") == "tozero":
        limit(0, None)
    if axis.get("showgrid", True):
        axes.grid(visible=True, axis="x" if which == "x" else "y", color="#e8e8e8", linewidth=0.6)
        axes.set_axisbelow(True)


def _rgba(color: str) -> tuple[float, ...]:
    """`rgba(r,g,b,a)` as Matplotlib takes it."""
    *rgb, alpha = color.removeprefix("rgba(").removesuffix(")").split(",")
    return (*(int(part) / 255 for part in rgb), float(alpha))
