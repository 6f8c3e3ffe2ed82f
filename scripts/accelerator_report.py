"""The table of what scripts/accelerator measured, and what follows from it."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Results = Mapping[str, Any]

FLAT = 1.25
"""The time of 8 runs is at most so many times that of one: what is waited for is not work."""

SHIP, WRITE = 2.0, 3.0
"""So many times the floor: up to the first JAX alone will do, above the second a kernel is worth writing."""

KERNEL_HIDDEN = 640
"""The widest LSTM whose recurrent weights stay on the chip in bfloat16, with clusters of 16 blocks."""

FASTER = 1.15
"""A flag must be worth so much."""

TOLERANCE = {"float32": 1e-3, "tensorfloat32": 1e-3, "bfloat16": 2e-2}
"""Relative difference of what arms compute, at most; TF32 has ten bits on a GPU."""


def text(results: Results) -> str:
    """Device, table, what is missing and why, and the decisions."""
    about = results["device"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"{about['device']} ({about['platform']}), {versions}; {results['seconds']:.0f} s in all", ""]
    for name, arm in results["arms"].items():
        status = arm["gone"] or "measured" + "".join(f"; {reason}" for reason in arm["trouble"])
        lines.append(f"{name:<16}{arm['flags'] or 'no flags'}: {status}")
    lines += ["", *_table(results), "", *_missing(results), "", *decisions(results)]
    return "\n".join(lines)


def _table(results: Results) -> list[str]:
    names = [
        name for name in results["arms"] if any("median" in case["arms"].get(name, {}) for case in results["cases"])
    ]
    rows = [["microseconds: median (quartiles)", *names]]
    for case in results["cases"]:
        cells = []
        for name in names:
            found = case["arms"].get(name, {})
            low, median, high = (1e6 * found.get(key, math.nan) for key in ("low", "median", "high"))
            cells.append(f"{median:.4g} ({low:.4g}-{high:.4g})" if "median" in found else "-")
        if set(cells) - {"-"}:
            rows.append([case["name"], *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _missing(results: Results) -> list[str]:
    """Why cases have no time, by reason, without those of arms that have none at all."""
    reasons: dict[str, list[str]] = {}
    for case in results["cases"]:
        for name, found in case["arms"].items():
            if "missing" in found and not results["arms"][name]["gone"]:
                reasons.setdefault(found["missing"], []).append(f"{case['name']} [{name}]")
    return [f"not measured, {reason}: {'; '.join(cases)}" for reason, cases in reasons.items()]


# -- decisions -------------------------------------------------------------------------------------------------------


def decisions(results: Results) -> list[str]:
    """The rule, applied; what could not be measured is named."""
    lines = ["What follows"]
    if results["device"]["platform"] != "gpu":
        lines.append("- There is no GPU here: nothing below says anything about one.")
    lines += [f"- {line}" for part in (_launches, _floor, _flags, _scans, _torch, _together) for line in part(results)]
    return lines


def _cases(results: Results, **wanted: Any) -> list[Mapping[str, Any]]:
    return [case for case in results["cases"] if all(case[key] == value for key, value in wanted.items())]


def _median(cases: Iterable[Mapping[str, Any]], arm: str) -> float | None:
    """The median of the only one of some cases."""
    return next((case["arms"][arm]["median"] for case in cases if "median" in case["arms"].get(arm, {})), None)


def _best(cases: Iterable[Mapping[str, Any]]) -> tuple[float, str] | None:
    """The least median of some cases over all arms but PyTorch's, and what it is of."""
    found = [
        (times["median"], f"{case['name']} [{name}]")
        for case in cases
        for name, times in case["arms"].items()
        if name != "torch" and "median" in times
    ]
    return min(found, default=None)


def _launches(results: Results) -> list[str]:
    lines = []
    for kind in ("gradient", "train"):
        for dtype in results["sizes"]["types"]:
            for hidden in results["sizes"]["hidden"]:
                wanted = {"kind": kind, "dtype": dtype, "hidden": hidden, "unroll": 1, "backward": "own", "buckets": 1}
                few = _median(_cases(results, runs=1, **wanted), "default")
                several = results["sizes"]["runs"][1]
                many = _median(_cases(results, runs=several, **wanted), "default")
                if few is None or many is None:
                    continue
                verdict = "bound by launches: flags and unrolling first" if many <= FLAT * few else "bound by work"
                lines.append(
                    f"{kind} H={hidden} {dtype}: {several} runs take {many / few:.2f} times the time of one: {verdict}."
                )
    return lines or ["One run against several: not measured."]


def _floor(results: Results) -> list[str]:
    lines = []
    most = results["sizes"]["runs"][-1]
    for dtype in results["sizes"]["types"]:
        for hidden in results["sizes"]["hidden"]:
            wanted = {"hidden": hidden, "runs": most, "dtype": dtype}
            product = _best(_cases(results, kind="product", **wanted))
            best = _best(_cases(results, kind="gradient", **wanted))
            where = f"LSTM gradient H={hidden} R={most} {dtype}"
            if product is None or best is None:
                lines.append(f"{where} against its floor: not measured.")
                continue
            # Forward, and backward for inputs and for weights: three products.
            ratio = best[0] / (3 * product[0])
            if ratio <= SHIP:
                verdict = "ship JAX alone"
            elif ratio <= WRITE:
                verdict = "between the bounds of the rule: nothing is decided"
            elif hidden <= KERNEL_HIDDEN:
                verdict = "write the kernel for LSTM and GRU"
            else:
                verdict = "too far, but too wide for a kernel with resident weights"
            lines.append(f"{where}: {ratio:.1f} times its three products ({best[1]}): {verdict}.")
    return lines


def _same(case: Mapping[str, Any], arm: str) -> bool:
    """Whether an arm computes what the default one does."""
    expected, found = (case["arms"][name]["value"] for name in ("default", arm))
    return abs(found - expected) <= TOLERANCE[case["dtype"]] * abs(expected)


def _flags(results: Results) -> list[str]:
    lines = []
    for name, arm in results["arms"].items():
        if name in ("default", "torch"):
            continue
        both = [
            case
            for case in results["cases"]
            if case["kind"] in ("train", "gradient", "decoder")
            and all("median" in case["arms"].get(other, {}) for other in ("default", name))
        ]
        if not both:
            lines.append(f"{name}: {arm['gone'] or 'not measured'}.")
            continue
        gain = statistics.median(case["arms"]["default"]["median"] / case["arms"][name]["median"] for case in both)
        other = [case["name"] for case in both if not _same(case, name)]
        doubts = [f"other numbers in {', '.join(other)}"] if other else []
        doubts += [f"not stable ({arm['trouble'][0]})"] if arm["trouble"] else []
        doubts += [] if gain >= FASTER else [f"not {FASTER:.2f} times as fast"]
        verdict = f"do not adopt: {'; '.join(doubts)}" if doubts else "adopt: faster, equal in numbers, stable"
        lines.append(f"{name}: {gain:.2f} times as fast as default, median of {len(both)} cases: {verdict}.")
    return lines


def _scans(results: Results) -> list[str]:
    """What the own backward and unrolling are worth, by the default arm."""
    lines = []
    for hidden in results["sizes"]["hidden"]:
        for dtype in results["sizes"]["types"]:
            wanted = {"kind": "gradient", "hidden": hidden, "runs": 1, "dtype": dtype}
            plain = _median(_cases(results, unroll=1, backward="own", **wanted), "default")
            auto = _median(_cases(results, unroll=1, backward="autodiff", **wanted), "default")
            if plain is None:
                continue
            parts = [] if auto is None else [f"own backward {auto / plain:.2f} times as fast as autodiff"]
            for unroll in results["sizes"]["unrolled"]:
                unrolled = _median(_cases(results, unroll=unroll, backward="own", **wanted), "default")
                parts += [] if unrolled is None else [f"unroll={unroll} {plain / unrolled:.2f} times as fast as 1"]
            if parts:
                lines.append(f"LSTM gradient H={hidden} R=1 {dtype}: {'; '.join(parts)}.")
    return lines or ["Own backward against autodiff, and unrolling: not measured."]


def _torch(results: Results) -> list[str]:
    why = results["arms"].get("torch", {}).get("gone") or "not measured"
    lines = []
    for hidden in results["sizes"]["hidden"]:
        for dtype in results["sizes"]["types"]:
            same = _cases(results, kind="decoder", hidden=hidden, runs=1, dtype=dtype)
            lines.append(_against(f"decoder with input feeding, H={hidden} {dtype}", same, same, "loop", 5.0, why))
        encoder = _cases(results, kind="gradient", hidden=hidden, runs=1, dtype="tensorfloat32")
        cudnn = _cases(results, kind="cudnn", hidden=hidden)
        lines.append(_against(f"encoder, H={hidden} tensorfloat32", encoder, cudnn, "cuDNN", 0.9, why))
    return lines


def _against(
    what: str, ours: list[Mapping[str, Any]], theirs: list[Mapping[str, Any]], name: str, target: float, why: str
) -> str:
    # As a user has it: without flags of XLA's, loops not unrolled.
    plain = _median((case for case in ours if (case["unroll"], case["backward"]) == (1, "own")), "default")
    best, other = _best(ours), _median(theirs, "torch")
    if best is None or plain is None or other is None:
        return f"{what} against PyTorch's {name}: {why if other is None else 'not measured'}."
    verdict = "reached" if other / plain >= target else "missed"
    return (
        f"{what}: {other / plain:.2f} times as fast as PyTorch's {name}; target {target:g}: {verdict}; "
        f"at best {other / best[0]:.2f} ({best[1]})."
    )


def _together(results: Results) -> list[str]:
    hidden, most = results["sizes"]["hidden"][0], results["sizes"]["runs"][-1]
    lines = []
    for dtype in ("float32", "tensorfloat32"):
        what = f"{most} training runs of SCAN's size in one program, {dtype}"
        one, many = (
            _median(_cases(results, kind="train", hidden=hidden, runs=runs, dtype=dtype, buckets=1), "default")
            for runs in (1, most)
        )
        if one is None or many is None:
            lines.append(f"{what}: not measured.")
            continue
        verdict = "reached" if many / one <= 3 else "missed"
        lines.append(f"{what}: {many / one:.2f} times the time of one; target 3: {verdict}.")
    return lines
