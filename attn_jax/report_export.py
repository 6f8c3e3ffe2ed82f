"""The main tables as LaTeX (`table.tex`) and Markdown (`table.md`), with the columns and the order of the page."""

from collections.abc import Callable, Sequence

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
    """A `table` for each section, with booktabs: the best mean in bold, marks of tests against it."""
    parts = [r"% In the preamble: \usepackage[T1]{fontenc} \usepackage{booktabs}"]
    for section in study.sections:
        titles, lines = _cells(study, section, latex, r"\textbf{%s}", r"$^{%s}$")
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(f'{study.title}, {section.title}. {_note(section)}')}}}",
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
        titles, lines = _cells(study, section, markdown, "**%s**", " %s")
        parts += [f"## {markdown(section.title)}", ""]
        parts += ["| " + " | ".join(cells) + " |" for cells in (titles, ["---"] + ["---:"] * (len(titles) - 1), *lines)]
        parts += ["", markdown(_note(section)), ""]
    return "\n".join(parts)


def _cells(
    study: Study, section: Section, escape: Callable[[str], str], bold: str, raised: str
) -> tuple[list[str], list[list[str]]]:
    """Titles and lines; the first row is the best, and its mean is bold."""
    rows = report_table.rows(study, section)
    columns = report_table.columns(section, rows)
    lines = []
    for number, row in enumerate(rows):
        shown = {key: escape(row[key]["text"]) for _, key in columns}
        if number == 0 and row["mean"]["value"] is not None:
            shown["mean"] = bold % shown["mean"]
        if stars := report_table.mark(row["p"]["value"]):
            shown["mean"] += raised % (stars if "$" in raised else escape(stars))
        lines.append([escape(row["label"]), *shown.values()])
    return ["variant", *(escape(title) for title, _ in columns)], lines


def _note(section: Section) -> str:
    seeds: Sequence[int] = sorted({len(variant.values(section.split, section.metric)) for variant in section.variants})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    note = f"Means of {section.metric} on {section.split} over {number} seed{'s' if seeds[-1] != 1 else ''}"
    if any(test.p is not None for test in section.tests.values()):
        note += (
            " with 95 % Student t-intervals; paired t-tests by seed against the first row, "
            "Holm-corrected over all pairs: * p < 0.05, ** p < 0.01, *** p < 0.001"
        )
    return note + "."
