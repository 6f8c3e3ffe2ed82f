"""The main table of a study, best variant first: cells for the page, and a table for the console."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attn_jax import config as configs
from attn_jax import stats
from attn_jax.report_data import Section, Study, Variant
from attn_jax.stats import Compared

if TYPE_CHECKING:
    from rich.table import Table


def console_table(study: Study, section: Section) -> "Table":
    """One row a variant, best first: mean, 95 % t-interval over seeds, and what stands beside it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = rows(study, section)
    titles = {
        "mean": f"\n{section.metric} ({section.split})",
        "interval": "95 %\ninterval",
        "n": "\nseeds",
        "failed": "\nfailed",
        "ranks": "\nrank",
        "difference": f"{compared_with(section)},\n95 % interval",
        "p": "p\n(Holm)",
        "flip": "p,\nsign-flip",
        "effect": "\neffect",
        "published": "\npublished",
        "parameters": "\nparameters",
        "speed": "tokens/s\na run",
    }
    shown = [(titles[key], key) for _, key in columns(section, cells) if key in titles]
    table = Table(box=box.SIMPLE, title=section.title, title_justify="left")
    longest = max(len(row["label"]) for row in cells)
    table.add_column("\nvariant", overflow="fold", min_width=min(longest, 24))
    for title, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for row in cells:
        marked = {key: row[key]["text"] + (SEVERAL if key == "difference" and several(row) else "") for _, key in shown}
        table.add_row(Text(row["label"]), *(Text(text) for text in marked.values()))
    left_out = [run for run in section.runs if run.result is None]
    failed = [run for run in section.done if run.failed]
    early = [run for run in section.done if run.early]
    notes = [f"{len(left_out)} unfinished run(s) left out"] * bool(left_out)
    notes += [f"{len(failed)} run(s) failed, and count with their last good parameters"] * bool(failed)
    notes += [f"{len(early)} run(s) ended by early stopping"] * bool(early)
    said = ["; ".join([*notes, *footnotes(cells)]), scored_apart(section), symbols_apart(section)]
    said = [text for text in said if text]
    table.caption = Text("\n".join(said)) if said else None
    table.caption_justify = "left"
    return table


def _cell(text: str = "", value: float | None = None) -> dict[str, Any]:
    """What a cell shows, and what its column is sorted by."""
    return {"text": text, "value": value}


def rows(study: Study, section: Section) -> list[dict[str, Any]]:
    """The table's rows, best variant first: `variant`, `label`, and by name of the column a cell.

    `difference` and `p` compare with the first row, of several scorings with the best of its own, by seed; p is
    corrected over all pairs of variants, so that choosing the best row to compare with is covered. `best`: whether the
    row is the one that others are compared with. Corrected are also `flip`, the p value of the exact sign-flip test or
    the seeds that it needs, `effect`, Hedges' g of the difference, and `factors`, the choices in which the two differ.
    `ranks` are those that all tests together leave open. `others` holds the means of the other metrics, and
    of the main one on other splits, by title, each with the text of its `interval`.
    """
    table = []
    for variant, summary in section.ranked:
        first = section.reference(variant)
        row: dict[str, Any] = {"variant": variant, "label": variant.label, "best": variant is first}
        row["n"] = _cell(f"{summary.n if summary else 0}/{len(variant.runs)}", summary.n if summary else 0)
        failed = sum(run.failed for run in variant.runs)
        row["failed"] = _cell(str(failed) if failed else "", failed)
        row["mean"] = _cell(f"{summary.mean:.2f}", summary.mean) if summary else _cell("-")
        row["interval"], row["sd"] = _cell(), _cell()
        if summary is not None and summary.low is not None:
            row["interval"] = _cell(f"{summary.low:.2f} to {summary.high:.2f}", summary.low)
            row["sd"] = _cell(f"{summary.sd:.2f}", summary.sd)
        row["difference"], row["p"] = _cell(), _cell()
        test = section.tests.get((variant.index, first.index))
        if test is not None:
            bounds = "" if test.low is None or test.high is None else f" [{signed(test.low)}, {signed(test.high)}]"
            row["difference"] = _cell(f"{signed(test.difference)}{bounds}", test.difference)
            row["p"] = _cell("" if test.p is None else show_p(test.p), test.p)
        row |= _beside(section, variant, first, test)
        figures = published(study, section, variant)
        text = " / ".join(f"{figure['value']:.2f}" for figure in figures)
        row["published"] = _cell(text, figures[0]["value"]) if figures else _cell()
        row["sources"] = figures
        row["others"] = {f"{m} ({s})": _mean(variant, s, m) for s, m in _others(section)}
        size = parameters(study, variant)
        row["parameters"] = _cell(f"{size:,}", size) if size is not None else _cell()
        speed = speed_of_a_run(study, variant)
        row["speed"] = _cell(f"{speed:,.0f}", speed) if speed else _cell()
        table.append(row)
    return table


def _beside(section: Section, variant: Variant, first: Variant, test: Compared | None) -> dict[str, Any]:
    """What stands beside the t-test of a row against the first one."""
    row = {"flip": _cell(), "effect": _cell(), "factors": _cell(), "ranks": _cell()}
    if test is not None:
        row["flip"] = _cell(show_flip(test), test.flip)
        row["effect"] = _cell() if test.effect is None else _cell(signed(test.effect), test.effect)
    if variant is not first:
        names = section.factors(variant, first)
        row["factors"] = _cell(", ".join(names), len(names))
    ranks = section.ranks.get(variant.index)
    if ranks is not None:
        text = str(ranks.first) if ranks.first == ranks.last else f"{ranks.first}-{ranks.last}"
        row["ranks"] = _cell(text, ranks.first)
    return row


def bootstrap_rows(section: Section) -> list[dict[str, Any]]:
    """Bootstrap over seeds and sentences, best variant first: `variant`, `label`, and cells by name of the column.

    `interval` of the mean, `difference` to the first row, and `best`, the share of resamples in which the variant is
    the best one. Empty without predictions; reads them all (see `Section.resampled`).
    """
    resampled = section.resampled
    if resampled is None:
        return []
    table = []
    for variant, _ in section.ranked:
        first = section.reference(variant)
        interval = resampled.mean(variant.index)
        difference = resampled.difference(variant.index, first.index) if variant is not first else None
        if interval is not None:
            share = section.best.get(variant.index)
            row: dict[str, Any] = {"variant": variant, "label": variant.label, "n": _cell(str(interval.n), interval.n)}
            row["mean"] = _cell(f"{interval.mean:.2f}", interval.mean)
            row["interval"] = _cell(f"{interval.low:.2f} to {interval.high:.2f}", interval.low)
            row["difference"], row["best"] = _cell(), _cell()
            if difference is not None:
                bounds = f"[{signed(difference.low)}, {signed(difference.high)}]"
                row["difference"] = _cell(f"{signed(difference.mean)} {bounds}", difference.mean)
            if share is not None:
                row["best"] = _cell(f"{100 * share:.0f} %", share)
            table.append(row)
    return table


def marginal_rows(section: Section) -> list[dict[str, Any]]:
    """Marginal means of every axis of a grid: `axis`, `level`, and cells `mean`, `interval`; empty without a grid."""
    table = []
    for own in section.effects.marginals if section.effects is not None else ():
        row: dict[str, Any] = {"axis": own.axis, "level": own.level, "mean": _cell("-"), "interval": _cell()}
        if own.mean is not None:
            row["mean"] = _cell(f"{own.mean.mean:.2f}", own.mean.mean)
            if own.mean.low is not None:
                row["interval"] = _cell(f"{own.mean.low:.2f} to {own.mean.high:.2f}", own.mean.low)
        table.append(row)
    return table


def variance_rows(section: Section) -> list[dict[str, Any]]:
    """Analysis of variance of a grid: `name` of the term, and cells `df`, `f`, `p`, `eta`, `partial`."""
    table = []
    for term in section.effects.terms if section.effects is not None else ():
        row: dict[str, Any] = {"name": term.name, "df": _cell(str(term.df), term.df)}
        row["f"] = _cell() if term.f is None else _cell(f"{term.f:.2f}", term.f)
        row["p"] = _cell() if term.p is None else _cell(show_p(term.p), term.p)
        row["eta"] = _cell(f"{term.eta:.3f}", term.eta)
        row["partial"] = _cell() if term.partial is None else _cell(f"{term.partial:.3f}", term.partial)
        table.append(row)
    return table


def _others(section: Section) -> list[tuple[str, str]]:
    """(split, metric) of every other test metric, then of the main metric on other splits."""
    results = [run.result for run in section.done if run.result is not None]
    names = dict.fromkeys((s, m) for result in results for s, own in result["metrics"].items() for m in own)
    same_split = [pair for pair in names if pair[0] == section.split and pair[1] != section.metric]
    return same_split + [pair for pair in names if pair[0] != section.split and pair[1] == section.metric]


def _mean(variant: Variant, split: str, metric: str) -> dict[str, Any]:
    """The mean over seeds as a cell; `interval`: its 95 % t-interval as text, empty with one seed."""
    values = list(variant.values(split, metric).values())
    if not values:
        return _cell() | {"interval": ""}
    found, form = stats.summary(values), ".4g" if metric in ("loss", "perplexity") else ".2f"
    bounds = [] if found.low is None or found.high is None else [format(found.low, form), format(found.high, form)]
    return _cell(format(found.mean, form), found.mean) | {"interval": " to ".join(bounds)}


def show_p(p: float) -> str:
    """A p value to three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def show_flip(test: Compared) -> str:
    """The corrected p value of the sign-flip test, or the seeds that it needs to give one below 0.05."""
    if test.flip is not None:
        return show_p(test.flip)
    return f"needs {test.needs} seeds" if test.n < test.needs else ""


def signed(difference: float) -> str:
    """A difference to two decimals with its sign; what rounds to zero is +0.00."""
    return f"{round(difference, 2) + 0.0:+.2f}"


def speed_of_a_run(study: Study, variant: Variant) -> float | None:
    """Target tokens per second of one run while its program's runs train together; None without a timing.

    The mean over the programs that trained the variant's runs.
    """
    totals = [(timing["target_tokens_per_second"], timing["runs"]) for timing in study.timings(variant.runs)]
    speeds = [total / runs for total, runs in totals if total and runs and math.isfinite(total)]
    return sum(speeds) / len(speeds) if speeds else None


def seconds_of_a_run(study: Study, variant: Variant) -> float | None:
    """Seconds of training of one run, as its share of its program's; None without a timing.

    The mean over the programs that trained the variant's runs.
    """
    totals = [(timing.get("train_seconds"), timing["runs"]) for timing in study.timings(variant.runs)]
    seconds = [total / runs for total, runs in totals if total and runs and math.isfinite(total)]
    return sum(seconds) / len(seconds) if seconds else None


def memory_of_a_run(study: Study, variant: Variant) -> float | None:
    """Megabytes that training one run needs, as its share of its program's; None where none was written down.

    The mean over the programs that trained the variant's runs.
    """
    shares = [size / timing["runs"] / 1e6 for timing in study.timings(variant.runs) if (size := timing.get("bytes"))]
    return sum(shares) / len(shares) if shares else None


def parameters(study: Study, variant: Variant) -> int | None:
    """Number of trained parameters; None without a result."""
    return min((int(run.result["parameters"]) for run in variant.done if run.result), default=None)


def columns(section: Section, rows: Sequence[Mapping[str, Any]], *, every: bool = False) -> list[tuple[str, str]]:
    """(title, key) of the columns of `rows` that say something; every: for the page, or else for papers and consoles.

    The page's rows can be sorted: there the variant that others are compared with is named. Elsewhere `footnotes` say
    what is the same in all rows, or too long for a column.
    """
    titles = {
        "mean": f"{section.metric} ({section.split})",
        "interval": "95 % interval",
        "sd": "sd",
        "n": "seeds",
        "failed": "failed",
        "ranks": "rank",
        "difference": compared_with(section, rows[0]["label"] if every else "the first row"),
        "p": "p",
        "flip": "p, sign-flip",
        "effect": "effect",
        "factors": "differs in",
        "published": "published",
        "parameters": "parameters",
        "speed": "tokens/s a run",
    }
    said = {key for key in titles if any(row[key]["text"] for row in rows)}
    if not every:
        said -= {"factors"} if any(row["flip"]["value"] is not None for row in rows) else {"factors", "flip"}
    elif not any((row["factors"]["value"] or 0) > 1 for row in rows):
        said.discard("factors")  # Where each row differs in one choice, its name says in which.
    return [(title, key) for key, title in titles.items() if key in said]


def compared_with(section: Section, first: str = "the first row") -> str:
    """What the column of differences is called; first: what the best row is."""
    return f"to {first}" if len(section.scorings) < 2 else "to the best of its scoring"


def scored_apart(section: Section) -> str:
    """Of variants that were scored in several ways: that they are not compared, and who was scored how; else empty."""
    if len(section.scorings) < 2:
        return ""
    ways = [f"{way or 'no signature'}: {'; '.join(v.label for v in own)}" for way, own in section.scorings.items()]
    return (
        f"The values of {section.metric} were computed in {len(ways)} ways, which are not comparable: there are no "
        f"differences, tests, ranks or effects across them. {'. '.join(ways)}"
    )


def symbols_apart(section: Section) -> str:
    """Of variants with different target symbols: that what is a mean over them is not compared; else empty."""
    kinds = {variant.done[0].scoring("loss") for variant in section.variants if variant.done}
    if len(kinds) < 2:
        return ""
    return (
        "Loss, perplexity and token accuracy are means over target symbols, which differ between variants: these "
        "values are not comparable"
    )


SEVERAL = "\u2020"
"""Beside a difference between variants that differ in several choices: a dagger."""


def several(row: Mapping[str, Any]) -> bool:
    """Whether a row's variant differs from the first one in more than one choice."""
    return row["difference"]["text"] != "" and (row["factors"]["value"] or 0) > 1


def footnotes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands below a table without columns for it: what the sign-flip test needs, and what a dagger means."""
    notes: list[str] = []
    if all(row["flip"]["value"] is None for row in rows):
        notes += dict.fromkeys(f"the exact sign-flip test {text}" for row in rows if (text := row["flip"]["text"]))
    if together := dict.fromkeys(row["factors"]["text"].replace(", ", " + ") for row in rows if several(row)):
        notes.append(f"{SEVERAL} the two differ in several choices at once ({'; '.join(together)})")
    return notes


MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def mark(p: float | None) -> str:
    """Asterisks for a corrected p value: below 0.05 *, 0.01 **, 0.001 ***."""
    return next((stars for limit, stars in MARKS if p is not None and p < limit), "")


def published(study: Study, section: Section, variant: Variant) -> list[dict[str, Any]]:
    """Value and source of every published figure for the variant and the section's metric, in the order given."""
    found = []
    for figure in study.references:
        wanted = {configs.resolve(path): value for path, value in figure["variant"].items()}
        here = figure.get("dataset", section.dataset) == section.dataset and figure["metric"] == section.metric
        if here and all(variant.config.get(path) == value for path, value in wanted.items()):
            found.append({"value": float(figure["value"]), "source": str(figure.get("source", ""))})
    return found
