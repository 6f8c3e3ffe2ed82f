"""The main tables as LaTeX (`table.tex`) and Markdown (`table.md`), with the columns and the order of the page."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attn_jax import report_table
from attn_jax.report_data import Section, Study

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after a line of a table it would begin an option
    "]": "{]}",
    "\u2020": r"$^{\dagger}$",
    "\n": " ",
}


def latex(text: str) -> str:
    """A text that LaTeX sets as it stands, in T1 encoding or with XeTeX and LuaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown(text: str) -> str:
    """A text that Markdown shows as it stands in a cell of a table."""
    escaped = "".join(f"\\{character}" if character in "\\`*_{}[]<>#|~$&" else character for character in text)
    return escaped.replace("\n", " ")


def table_tex(study: Study) -> str:
    """A `table` for each section, with booktabs: the best mean in bold, marks of tests against it.

    Small type, titles in two lines and no standard deviation, which interval and seeds give: a page is narrow.
    """
    parts = [r"% In the preamble: \usepackage[T1]{fontenc} \usepackage{booktabs}"]
    for section in study.sections:
        rows = report_table.rows(study, section)
        titles, lines = _cells(section, rows, latex, _stacked, r"\textbf{%s}", r"$^{%s}$", {"sd"})
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(f'{study.title}, {section.title}. {_note(section, rows)}')}}}",
            r"\footnotesize \setlength{\tabcolsep}{3.5pt}",
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def table_md(study: Study) -> str:
    """A heading and a table for each section."""
    parts = [f"# {markdown(study.title)}", ""]
    for section in study.sections:
        rows = report_table.rows(study, section)
        titles, lines = _cells(section, rows, markdown, markdown, "**%s**", " %s")
        parts += [f"## {markdown(section.title)}", ""]
        parts += ["| " + " | ".join(cells) + " |" for cells in (titles, ["---"] + ["---:"] * (len(titles) - 1), *lines)]
        parts += ["", markdown(_note(section, rows)), ""]
    return "\n".join(parts)


def _stacked(title: str) -> str:
    """A column's title in two lines if it is long, cut at the space nearest to its middle."""
    spaces = [at for at, character in enumerate(title) if character == " "]
    if len(title) <= 10 or not spaces:
        return latex(title)
    cut = min(spaces, key=lambda at: abs(at - len(title) / 2))
    return rf"\shortstack[r]{{{latex(title[:cut])}\\{latex(title[cut + 1 :])}}}"


def _cells(
    section: Section,
    rows: Sequence[Mapping[str, Any]],
    escape: Callable[[str], str],
    head: Callable[[str], str],
    bold: str,
    raised: str,
    left_out: Collection[str] = (),
) -> tuple[list[str], list[list[str]]]:
    """Titles and lines; the best mean, of several scorings that of each, is bold."""
    columns = [(title, key) for title, key in report_table.columns(section, rows) if key not in left_out]
    lines = []
    for row in rows:
        shown = {key: escape(row[key]["text"]) for _, key in columns}
        if row["best"] and row["mean"]["value"] is not None:
            shown["mean"] = bold % shown["mean"]
        if stars := report_table.mark(row["p"]["value"]):
            shown["mean"] += raised % (stars if "$" in raised else escape(stars))
        if report_table.several(row):
            shown["difference"] += escape(report_table.SEVERAL)
        lines.append([escape(row["label"]), *shown.values()])
    return ["variant", *(head(title) for title, _ in columns)], lines


def _note(section: Section, rows: Sequence[Mapping[str, Any]]) -> str:
    seeds: Sequence[int] = sorted({len(variant.values(section.split, section.metric)) for variant in section.variants})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    note = f"Means of {section.metric} on {section.split} over {number} seed{'s' if seeds[-1] != 1 else ''}"
    tested = sum(test.p is not None for test in section.tests.values()) // 2
    if tested:
        compared = report_table.compared_with(section).capitalize()
        note += (
            f" with 95 % Student t-intervals. {compared}: mean differences by seed, each with the 95 % interval "
            f"of that comparison alone; p: paired t-tests, Holm-corrected over {tested} pair{'s' * (tested > 1)} "
            "of variants: * p < 0.05, ** p < 0.01, *** p < 0.001. "
            + "Rank: those that the tests leave open. " * bool(section.ranks)
            + "Effect: Hedges' g of the differences by seed"
        )
    if any(row["failed"]["value"] for row in rows):
        note += ". Failed: runs whose loss was not finite, tested with their last good parameters"
    further = [*report_table.footnotes(rows), report_table.scored_apart(section), report_table.symbols_apart(section)]
    return ". ".join([note, *(text[0].upper() + text[1:] for text in further if text)]) + "."
