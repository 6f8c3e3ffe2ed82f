"""Measured curves: their files, and how the page, the figures and the console show them."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pytest
from fake_study import Page, fake_run, three_scores
from fuzzing import BYTES, retyped

from attn_jax import curves, figure_files, plots, provenance, report, report_curves
from attn_jax.curves import Axis, Curves, Row, Table
from attn_jax.errors import UserError

STEPS = list(range(1, 41))


def decay(series: str, panel: str, rate: float) -> list[Row]:
    """rate^d with a band of 20 % but at the last point."""
    rows = [Row(series, d, rate**d, 0.8 * rate**d, 1.2 * rate**d, panel) for d in STEPS[:-1]]
    return [*reversed(rows), Row(series, STEPS[-1], rate ** STEPS[-1], panel=panel)]


GRADIENTS = Curves(
    "gradient-norm",
    "Gradient norm by distance",
    Axis("distance", "steps"),
    Axis("norm, relative to distance 1", scale="log"),
    [
        *decay("rnn <none>", "at initialisation", 0.7),
        *decay("rnn <none>", "after training", 0.8),
        *decay("lstm & co", "after training", 0.9),
    ],
    "band: lowest to highest seed; </script><b>$0</b>",
    Table(["variant", "1 % at", "rate"], [["lstm & co", None, 0.9], ["rnn <none>", 13, 0.712345]]),
)
TIMES = Curves("time", "Time", Axis("length", "symbols", "log"), Axis("time", "ms", "log"), [Row("a", 8, 2, 1, 3)])


def write_both(out: Path) -> Path:
    for one in (TIMES, GRADIENTS):
        curves.write(out, one, study="Cost", command="python experiments/cost.py --x=1")
    return out


# -- files ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_both(tmp_path)
    gradients, times = curves.read_all(tmp_path)
    assert gradients.curves == GRADIENTS
    assert times.curves == TIMES
    assert (times.study, times.command) == ("Cost", "python experiments/cost.py --x=1")
    assert (times.git, times.versions) == (provenance.git_commit(), provenance.versions())
    assert times.device == provenance.device()
    assert [path.name for path in (tmp_path / "curves").iterdir()] == ["gradient-norm.json", "time.json"]
    curves.write(tmp_path, dataclasses.replace(TIMES, title="New"))
    assert [m.curves.title for m in curves.read_all(tmp_path)] == [GRADIENTS.title, "New"]


WRONG = {
    "no letter": ({"name": "a b"}, "name 'a b': expected letters"),
    "a path": ({"name": "../a"}, "name '../a': expected letters"),
    "no points": ({"rows": []}, "expected 'rows' with one point or more"),
    "unknown scale": ({"x": Axis("x", scale="log2")}, "scale 'log2' of x: expected one of linear, log"),
    "zero on a logarithm": ({"rows": [Row("a", 1, 0)]}, r"rows\[0\]: y=0: expected a positive number"),
    "band to zero": ({"rows": [Row("a", 1, 1, 0, 2)]}, r"rows\[0\]: low=0: expected a positive number"),
    "no number": ({"rows": [Row("a", 1, 1), Row("a", float("nan"), 1)]}, r"rows\[1\]: x=nan: expected a finite"),
    "one edge": ({"rows": [Row("a", 1, 1, low=1)]}, r"rows\[0\]: expected both of 'low' and 'high', or neither"),
    "outside its band": ({"rows": [Row("a", 1, 3, 1, 2)]}, r"rows\[0\]: y=3: expected a number from low=1 to high=2"),
    "no name": ({"rows": [Row("", 1, 3)]}, r"rows\[0\]: expected a 'series' with a name"),
    "wide line": ({"table": Table(["a"], [["b", 1]])}, r"table: rows\[0\]: expected 1 cells"),
    "infinite cell": ({"table": Table(["a"], [[float("inf")]])}, r"table: rows\[0\]: expected finite numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_curves_that_cannot_be_drawn_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GRADIENTS, **changes)


def damaged(tmp_path: Path, change: Callable[[dict], object]) -> str:
    """What is said of a file after a change."""
    path = curves.write(tmp_path, GRADIENTS)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError) as told:
        report.build(tmp_path)
    assert "\n" not in str(told.value)
    return str(told.value).removeprefix(f"{path}: ")


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path) -> None:
    said = damaged(tmp_path, lambda value: value["rows"][3].pop("x"))
    assert said == "rows[3]: expected 'x' of type float | int"
    assert damaged(tmp_path, lambda value: value.pop("device")) == "expected 'device' of type str"
    assert damaged(tmp_path, lambda value: value["y"].update(scale=2)) == "y: expected 'scale' of type str"
    assert damaged(tmp_path, lambda value: value["rows"][0].update(y=-1.0)).startswith("rows[0]: y=-1.0: expected a po")
    assert damaged(tmp_path, lambda value: value["table"].update(rows=[[1]])) == "table: rows[0]: expected 3 cells"
    assert not (tmp_path / "report.html").exists()


def test_fuzzed_files_are_read_or_refused(tmp_path: Path) -> None:
    path = curves.write(tmp_path, GRADIENTS)
    whole, refused = path.read_bytes(), 0
    for damage, seed in itertools.product((*BYTES, retyped), range(20)):
        path.write_bytes(damage(whole, random.Random(f"{damage.__name__} {seed}")))
        try:
            (found,) = curves.read_all(tmp_path)
            report_curves.section(found)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 10 * len(BYTES)


# -- page, figures, console -----------------------------------------------------------------------------------------


def test_charts_show_the_points_with_common_axes(tmp_path: Path) -> None:
    report.build(write_both(tmp_path))
    figures = Page(tmp_path / "report.html").figures
    assert set(figures) == {"m-gradient-norm-0", "m-gradient-norm-1", "m-time-0"}
    first, second = figures["m-gradient-norm-0"], figures["m-gradient-norm-1"]
    assert first["layout"]["xaxis"] == second["layout"]["xaxis"]
    assert first["layout"]["yaxis"] == second["layout"]["yaxis"]
    low, high = second["layout"]["yaxis"]["range"]
    assert low < np.log10(0.7**40) < np.log10(1.2 * 0.9) < high
    assert second["layout"]["xaxis"]["title"]["text"] == "distance (steps)"
    lines = {trace["name"]: trace for trace in second["data"] if "name" in trace}
    assert list(lines) == ["rnn &lt;none&gt;", "lstm &amp; co"]
    for trace, rate in zip(lines.values(), (0.8, 0.9), strict=True):
        assert trace["x"] == STEPS
        np.testing.assert_allclose(trace["y"], rate ** np.array(STEPS))
    # The second series has its own colour in the panel where it is the only one that the other lacks.
    assert [trace["legendgroup"] for trace in lines.values()] == ["0", "1"]
    below, above = [trace for trace in second["data"] if trace["legendgroup"] == "1" and "name" not in trace]
    assert below["x"] == above["x"] == STEPS[:-1]
    np.testing.assert_allclose(below["y"], 0.8 * 0.9 ** np.array(STEPS[:-1]))
    np.testing.assert_allclose(above["y"], 1.2 * 0.9 ** np.array(STEPS[:-1]))
    assert figures["m-time-0"]["layout"]["xaxis"]["type"] == "log"
    assert figures["m-time-0"]["data"][0]["y"] == [2]


def test_figures_are_valid_plotly(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    report.build(write_both(tmp_path))
    for figure in Page(tmp_path / "report.html").figures.values():
        go.Figure(figure)


def test_a_page_of_curves_alone(tmp_path: Path) -> None:
    report.build(write_both(tmp_path))
    seen = Page(tmp_path / "report.html")
    assert seen.places == list(seen.figures)
    assert seen.text.startswith("Cost Cost Measured How to repeat it Measured Gradient norm by distance")
    for piece in ("python experiments/cost.py --x=1", provenance.device(), f"jax {provenance.versions()['jax']}"):
        assert seen.text.count(piece) == 1
    assert provenance.git_commit() in seen.text
    assert "</script><b>$0</b>" in seen.text
    assert seen.tags.count("script") == 4
    assert not {"results.csv", "table.tex", "table.md"} & {path.name for path in tmp_path.iterdir()}
    assert "results.csv" not in seen.text


def test_a_study_keeps_its_curves_and_another_has_no_section(tmp_path: Path) -> None:
    out = write_both(three_scores(tmp_path / "jobs"))
    for _ in range(2):
        report.build(out)
    seen = Page(out / "report.html")
    assert {"s0-forest", "m-time-0", "m-gradient-norm-0"} <= set(seen.figures)
    assert "Scores on JOBS" in seen.text
    assert "compare --scores=none,dot python experiments/cost.py --x=1" in seen.text
    assert "cpu (2 cores), " + provenance.device() in seen.text
    fake_run(tmp_path / "other", {}, 70.0)
    report.build(tmp_path / "other")
    seen = Page(tmp_path / "other" / "report.html")
    assert "Measured" not in seen.text
    assert "#measured" not in seen.addresses
    with pytest.raises(UserError, match="no runs found"):
        report.build(tmp_path)


def test_tables_on_page_and_console(tmp_path: Path) -> None:
    report.build(write_both(tmp_path))
    seen = Page(tmp_path / "report.html")
    assert "variant 1 % at rate lstm & co 0.9 rnn <none> 13 0.7123" in seen.text
    rows = [line.split() for line in report.measured_text(tmp_path).splitlines()]
    assert rows[0] == ["Gradient", "norm", "by", "distance"]
    assert rows[-2:] == [["lstm", "&", "co", "0.9"], ["rnn", "<none>", "13", "0.7123"]]
    curves.write(tmp_path / "plain", TIMES)
    assert report.measured_text(tmp_path / "plain") == ""
    assert [report_curves.show(cell) for cell in (None, "a", 12345, 0.00012345, 2.0)] == [
        "", "a", "12,345", "0.0001234", "2",
    ]  # fmt: skip


def test_files_show_the_numbers_of_the_page() -> None:
    charts = report_curves.charts(GRADIENTS)
    drawn = figure_files.sheet([(chart.title, chart.figure) for chart in charts], "title", 2)
    assert [axes.get_title("left") for axes in drawn.axes] == ["at initialisation", "after training"]
    for axes in drawn.axes:
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert 0.5 * 0.7**40 < low < 0.7**40
        assert 1.2 * 0.9 < high < 2
    lines = {line.get_label(): line for line in drawn.axes[1].get_lines()}
    np.testing.assert_allclose(lines["lstm & co"].get_xydata(), [[d, 0.9**d] for d in STEPS])
    # A series that the first panel lacks stands in the legend, too.
    (legend,) = drawn.legends
    assert [entry.get_text() for entry in legend.get_texts()] == ["rnn <none>", "lstm & co"]


def test_every_set_of_curves_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_figures: Callable[..., None]
) -> None:
    monkeypatch.setattr(report, "write_figures", draw_figures)
    curves.write(tmp_path, TIMES)
    report.build(tmp_path)
    assert {path.name for path in (tmp_path / "figures").glob("[!.]*")} == {"measured-time.svg", "measured-time.pdf"}


def test_labels_of_many_decades_are_few_powers_of_ten() -> None:
    def ticks(low: float, high: float) -> list[str]:
        (figure,) = plots.measured(
            [[("a", 0, [(1, low, None, None), (2, high, None, None)])]], ("x", "", False), ("y", "", True)
        )
        return figure["layout"]["yaxis"]["ticktext"]

    assert ticks(0.02, 3) == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    assert ticks(1e-6, 1) == ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert ticks(1e-30, 1) == ["1e-30", "1e-26", "1e-22", "1e-18", "1e-14", "1e-10", "1e-06", "0.01"]


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(browser.executable() is None, reason=f"needs one of {', '.join(browser.NAMES)}")
def test_a_reader_uses_the_section(tmp_path: Path) -> None:
    one_more = dataclasses.replace(GRADIENTS, name="more", title="More")
    curves.write(tmp_path, one_more)
    report.build(write_both(tmp_path))
    page = browser.Browser()
    try:
        for width, dark in ((400, True), (1400, False)):
            page.open(tmp_path / "report.html", width, dark=dark)
            for name in ("m-gradient-norm-0", "m-gradient-norm-1", "m-more-0", "m-more-1", "m-time-0"):
                page.show(f"[data-figure={name}]")
                page.until(f"document.querySelector('[data-figure={name}] .main-svg') !== null")
            assert page.eval("document.documentElement.scrollWidth") <= width
            assert page.sticking_out(width) == []
            color = page.eval("document.querySelector('[data-figure=m-more-1]').data.at(-1).line.color")
            assert color == (plots.DARK_PALETTE if dark else plots.PALETTE)[1]
        tops = page.eval("[...document.querySelectorAll('#measured figure')].map(f => f.offsetTop)")
        assert tops[0] == tops[1], "panels are not side by side"

        def shown(name: str) -> list[str]:
            data = f"document.querySelector('[data-figure={name}]').data"
            return page.eval(f"[...new Set({data}.filter(t => t.visible !== false).map(t => t.legendgroup))].sort()")

        page.click('.measured .legend button[data-variant="0"]')
        assert [shown(f"m-{name}") for name in ("gradient-norm-0", "gradient-norm-1", "more-0", "more-1")] == [
            [], ["1"], ["0"], ["0", "1"],
        ]  # fmt: skip

        page.show("[data-figure=m-more-1]")
        place = page.eval(
            "(p => { const r = p.getBoundingClientRect(), {_size: s, xaxis: x, yaxis: y} = p._fullLayout;"
            " return [r.x + s.l + x.d2p(20), r.y + s.t + y.d2p(0.9 ** 20)]; })"
            "(document.querySelector('[data-figure=m-more-1]'))"
        )
        page.hover(*place)
        said = page.until(
            "[...document.querySelectorAll('#measured .hoverlayer text')].map(t => t.textContent).join('')"
        )
        for piece in ("lstm & co", "distance: 20 steps", "relative to distance 1: 0.1216", "0.09726 to 0.1459"):
            assert piece in said

        assert page.eval(
            "[...document.querySelectorAll('table tbody tr')].map(r => r.cells[0].innerText.trim())[0]"
        ) == ("lstm & co")
        page.click(".measured th:nth-child(3) button")
        assert page.eval("document.querySelector('.measured tbody tr').cells[0].innerText.trim()") == "rnn <none>"
        assert page.complaints == []
    finally:
        page.close()
