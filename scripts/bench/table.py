"""What a row came to, and all rows as a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench import ratios
from bench.rows import Compared, Row

UNITS = {"target_tokens/s": "tokens/s", "flops/s": "GFLOP/s", "seconds/run": "s/run", "symbols/sentence": "symbols"}
SCALES = {"flops/s": 1e-9, "peak_bytes": 2**-20, "padding": 100.0}
NAMES = {"peak_bytes": "MiB at most", "padding": "% padding", "seconds": "s", "seconds_to_quality": "s"}


def line(compared: Compared, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """One comparison: the spread of both, of their ratio, and whether it is as asked; None if one has no figures."""
    names = [compared.of, *([compared.to] if compared.to else [])]
    if not all(measured.get(name) for name in names):
        return None
    try:
        each = [ratios.values(measured[name], compared.what) for name in names]
    except KeyError:
        return None
    if len(each) == 2 and not all(each[1]):
        return None
    result = ratios.paired(*each) if compared.to else ratios.spread(each[0])
    met = None
    if compared.at_least is not None:
        met = result.median >= compared.at_least
    elif compared.at_most is not None:
        met = result.median <= compared.at_most
    return {
        "what": compared.what,
        "of": compared.of,
        "to": compared.to,
        "of_spread": ratios.spread(each[0])._asdict(),
        "to_spread": ratios.spread(each[1])._asdict() if compared.to else None,
        "ratio": result._asdict() if compared.to else None,
        "at_least": compared.at_least,
        "at_most": compared.at_most,
        "met": met,
    }


def summed_up(row: Row, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The comparisons of a row that have figures."""
    return [found for compared in row.compared if (found := line(compared, measured)) is not None]


def quantity(spread: Mapping[str, float], what: str) -> str:
    """Median and quartiles in the unit of the quantity."""
    factor = SCALES.get(what, 1.0)
    median, low, high = (factor * spread[name] for name in ("median", "low", "high"))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    unit = UNITS.get(what) or NAMES.get(what) or what
    around = f" ({low:,.{digits}f} to {high:,.{digits}f})" if (low, high) != (median, median) else ""
    return f"{median:,.{digits}f}{around} {unit}"


def asked(found: Mapping[str, Any]) -> str:
    """What was asked for, and whether it is so."""
    if found["met"] is None:
        return ""
    words, bound = ("at least", found["at_least"]) if found["at_least"] is not None else ("at most", found["at_most"])
    shown = f"{100 * bound:g} %" if found["what"] == "padding" else f"{bound:g}"
    return f"{words} {shown}: {'yes' if found['met'] else 'NO'}"


def markdown(results: Sequence[Mapping[str, Any]], header: Sequence[str]) -> str:
    """The table, with what failed below it."""
    lines = [*header, "", "| row | first | second | first / second | asked |", "|---|---|---|---|---|"]
    remarks = []
    for result in results:
        for found in result["compared"]:
            ratio = ""
            if found["ratio"]:
                spread = found["ratio"]
                ratio = f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
            first = f"{found['of']}: {quantity(found['of_spread'], found['what'])}"
            second = f"{found['to']}: {quantity(found['to_spread'], found['what'])}" if found["to"] else ""
            lines.append(f"| {result['name']} | {first} | {second} | {ratio} | {asked(found)} |")
        remarks += [f"- {result['name']}: {name}: {reason}" for name, reason in result["absent"].items()]
        remarks += [f"- {result['name']}: {remark}" for remark in result["wrong"]]
    return "\n".join([*lines, *([""] if remarks else []), *remarks]) + "\n"
