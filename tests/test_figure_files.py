"""The files of `figures/`, and the tables for papers."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_study import SENTENCES, fake_run, three_scores

from attn_jax import figure_files, plots, report
from attn_jax.report_data import load
from attn_jax.report_export import latex, markdown, table_md, table_tex
from attn_jax.report_table import rows as rows_of

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_chart_and_sentence_is_a_file_and_what_is_gone_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_figures: Callable[..., None]
) -> None:
    monkeypatch.setattr(report, "write_figures", draw_figures)
    fake_run(tmp_path, {"score": "dot"}, 80.0)
    report.build(tmp_path)
    folder = tmp_path / "figures"
    names = {path.name for path in folder.glob("[!.]*")}
    charts = {"forest", "train-loss", "dev-loss", "dev-exact_match", "length", "output-length", "size", "sharpness"}
    expected = charts | {f"attention-{number}" for number in range(1, 6)}
    assert names == {f"semantic-parsing-jobs-{name}.{form}" for name in expected for form in ("svg", "pdf")}
    assert all(path.read_bytes().startswith(b"%PDF-") for path in folder.glob("*.pdf"))
    shown = texts((folder / "semantic-parsing-jobs-attention-5.svg").read_bytes())
    assert {*SENTENCES[4][0].split(), *SENTENCES[4][1].split()} <= set(shown)

    # Drawn again is what is not there or has changed; the same figures are the same files.
    lost = folder / "semantic-parsing-jobs-length.pdf"
    content = lost.read_bytes()
    lost.unlink()
    (folder / "earlier.svg").write_text("")
    (folder / "notes.txt").write_text("mine")
    draw, drawn = figure_files.draw, []
    monkeypatch.setattr(figure_files, "draw", lambda *given: drawn.append(given[1]) or draw(*given))
    report.build(tmp_path)
    assert drawn == ["semantic_parsing/jobs: Quality by source length"]
    assert lost.read_bytes() == content
    assert not (folder / "earlier.svg").exists()
    assert (folder / "notes.txt").exists()
    drawn.clear()
    monkeypatch.setattr(figure_files, "draw", lambda *given: drawn.append(given[1]) or {"svg": b"new", "pdf": b"new"})
    fake_run(tmp_path, {"score": "dot", "seed": 1}, 50.0)
    report.build(tmp_path)
    # A second seed with as many right outputs: quality by length, and the maps of the first seed, are as they were.
    changed = {"exact_match (test)", "train loss", "dev loss", "dev exact_match", "Quality and size"}
    changed.add("Sharpness of attention")
    assert {title.removeprefix("semantic_parsing/jobs: ") for title in drawn} == changed


def test_a_file_shows_the_numbers_of_the_page() -> None:
    import matplotlib

    seeds = [{10: 1.0, 20: 4.0}, {10: 3.0, 20: 8.0}]
    figure = plots.curves([("a $x$ & <b>", 1, seeds), ("b", 0, [{10: 2.0, 20: 2.0}])], "loss")
    drawn = figure_files.sheet([("", figure)], "title", 1)
    (axes,) = drawn.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["a $x$ & <b>"].get_xydata(), [[10, 2], [20, 6]])
    assert matplotlib.colors.to_hex(lines["a $x$ & <b>"].get_color()) == plots.PALETTE[1]
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners >= {(10.0, 1.0), (20.0, 4.0), (10.0, 3.0), (20.0, 8.0)}

    figure = plots.forest(
        [("first", 0, {0: 1.0, 1: 3.0}, 2.0, 0.5, 3.5), ("second", 1, {0: 1.0}, 1.0, None, None)], "x"
    )
    (axes,) = figure_files.sheet([("", figure)], "title", 1).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row is on top"
    (bar,) = axes.containers
    np.testing.assert_allclose(np.array(bar[2][0].get_segments()[0])[:, 0], [0.5, 3.5])

    weights = [[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]
    figure = plots.attention_map(["s", "<unk>", "t"], ["x", "y"], weights)
    (axes,) = figure_files.sheet([("", figure)], "title", 1).axes
    (mesh,) = axes.collections
    np.testing.assert_allclose(mesh.get_array().reshape(2, 3), weights)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["s", "<unk>", "t"]
    assert axes.get_ylim() == (1.5, -0.5)


def test_tables_for_papers(tmp_path: Path) -> None:
    study = load(three_scores(tmp_path))
    tex, plain = table_tex(study), table_md(study)
    lines = [line for line in tex.split("\n") if line.endswith(r"\\")]
    cells = [[cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    stacked = [r"\shortstack[r]{exact\_match\\(test)}", r"\shortstack[r]{95 \%\\interval}"]
    assert cells[0][:5] == ["variant", *stacked, "seeds", "rank"]
    assert cells[1][:2] == ["dot", r"\textbf{86.67}"]
    assert cells[3][:2] == ["none", "78.57$^{*}$"]
    assert cells[2][:2] == ["general", "85.93"]
    assert tex.count(r"\textbf{") == 1
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in plain.split("\n") if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert [row[1].strip() for row in rows[2:]] == ["**86.67**", "85.93", r"78.57 \*"]
    interval = load(tmp_path).sections[0].ranked[0][1]
    assert interval is not None
    assert f"{interval.low:.2f} to {interval.high:.2f}" in tex
    # As on the page, but for the sign-flip test, for which three seeds are too few in every row.
    on_page = rows_of(study, study.sections[0])
    titles = [row.strip() for row in rows[0]]
    for title, key in (("rank", "ranks"), ("effect", "effect")):
        shown = [row[titles.index(title)].strip() for row in rows[2:]]
        assert shown == [row[key]["text"] for row in on_page]
    assert [row["flip"]["text"] for row in on_page] == ["", "needs 7 seeds", "needs 7 seeds"]
    for text in (tex, plain):
        assert text.count("The exact sign-flip test needs 7 seeds.") == 1
        assert "sign-flip &" not in text
    assert "dagger" not in tex


def test_differences_in_several_choices_have_a_dagger(tmp_path: Path) -> None:
    for number, (score, cell) in enumerate((("dot", "lstm"), ("general", "lstm"), ("dot", "gru"), ("general", "gru"))):
        for seed in range(7):
            value = 90.0 - 10 * number + seed % 2 + 0.1 * number * seed
            fake_run(tmp_path, {"score": score, "cell": cell, "seed": seed}, value, steps=20)
    study = load(tmp_path)
    tex, plain, text = table_tex(study), table_md(study), report.table_text(tmp_path)
    for whole, mark, name in ((tex, r"$^{\dagger}$", "general, gru"), (text, "\u2020", "general, gru")):
        marked = [line for line in whole.split("\n") if mark in line and not line.startswith(r"\caption")]
        assert [line.strip().startswith(name) for line in marked if "the two differ" not in line] == [True]
    assert "the two differ in several choices at once (cell.name + score.name)" in " ".join(text.split())
    for whole in (tex, plain):
        assert re.search(r"the two differ in several choices at once \(cell.name \+ score.name\)\.", whole)
    # Six pairs and seven seeds: 6 * 2 / 2^7 is above 0.05.
    assert "the exact sign-flip test needs 8 seeds" in " ".join(text.split())
    assert {"rank", "effect"} <= set(text.split())


def test_text_becomes_neither_latex_nor_markdown() -> None:
    text = r"a_b & 50 % of $x^2$ #1 {y} \z ~ | <t> [1] *b* `c`"
    set_text = latex(text)
    bare = re.sub(r"\\(text[a-z]+\{\}|[{}$&#_%])|\{[\[\]]\}", "", set_text)
    assert not set(bare) & set('\\{}$&#_%~^<>|[]"')
    assert re.sub(r"\\(.)", "", markdown(text)).strip() == re.sub(r"[\\`*_{}\[\]<>#|~$&]", "", text).strip()
