"""Measures this package against PyTorch and joeynmt on this machine, and prints a table of ratios.

    scripts/benchmark --manual_dir=DATA --rows='train/medium/words' --repetitions=7

All contestants of a row are live processes on the same cores; repetitions go round them (A B C A B C ...), so that
whatever else the machine does hits all alike. The table has medians and quartiles, of ratios by repetition, too. Peers
are installed into environments of their own. OUT/benchmark.json has every measurement, OUT/benchmark.md the table.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attn_jax.scores import SCORES
from bench import peers, ratios, table
from bench.protocol import Client, WorkerError
from bench.rows import OURS, TORCH, Row, rows

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent

MODULES = {
    "ours": "bench.ours",
    "peak": "bench.ours",
    "pytorch": "bench.torch_worker",
    "joeynmt": "bench.joeynmt_worker",
}

SAME_LOSS = 2e-5
"""Relative difference of the losses of the very first step at which two contestants do not have the same model."""


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="only rows in whose names this regular expression is found")
    text = "only contestants in whose names this regular expression is found"
    parser.add_argument("--contestants", default="", help=text)
    parser.add_argument("--list", action="store_true", help="print the rows and their contestants, and measure nothing")
    parser.add_argument("--repetitions", type=int, default=5, help="of every contestant of a row (5)")
    parser.add_argument("--threads", type=int, default=0, help="cores that every contestant may use (default: all)")
    parser.add_argument("--quick", action="store_true", help="little work, to see that everything runs")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "benchmark", help="directory of results")
    cache = Path("~/.cache/attn_jax/benchmark").expanduser()
    parser.add_argument("--peers", type=Path, default=cache, help=f"directory of the peers' environments ({cache})")
    parser.add_argument("--manual_dir", help="directory that holds the folders of the data sets")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    given.threads = given.threads or cores
    if not 0 < given.threads <= cores:
        parser.error(f"--threads={given.threads}: there are {cores} cores")
    if given.repetitions < 1:
        parser.error(f"--repetitions={given.repetitions}: must be at least 1")
    for flag in ("rows", "contestants"):
        try:
            re.compile(getattr(given, flag))
        except re.error as error:
            parser.error(f"--{flag}={getattr(given, flag)}: no regular expression ({error})")
    return given


class Bench:
    """Starts contestants, and measures rows."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.pythons = given, {"ours": sys.executable, "peak": sys.executable}
        self.missing: dict[str, str] = {}
        given.out.mkdir(parents=True, exist_ok=True)
        # Inherited by every contestant: XLA has as many threads as there are cores for it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])

    def python(self, program: str) -> str:
        """The interpreter of a contestant's program. Raises PeerError, the second time without trying again."""
        if program in self.missing:
            raise peers.PeerError(self.missing[program])
        if program not in self.pythons:
            try:
                self.pythons[program] = str(peers.interpreter(program, self.given.peers))
            except peers.PeerError as error:
                self.missing[program] = str(error)
                raise
        return self.pythons[program]

    @contextlib.contextmanager
    def client(self, row: Row, name: str, **environment: str) -> Iterator[Client]:
        """A live contestant. Raises PeerError if its program is not there."""
        program = name.split()[0]
        python, log = self.python(program), self.given.out / "logs" / f"{row.name}-{name}.log".replace("/", "-")
        log.parent.mkdir(exist_ok=True)
        threads = {
            key: str(self.given.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        path = [SCRIPTS] if program in peers.REQUIREMENTS else [ROOT, SCRIPTS]
        fixed = {"PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        with (
            log.open("a") as words,
            Client(
                [python, "-m", MODULES[program]], {**os.environ, **fixed, **threads, **environment}, words
            ) as client,
        ):
            yield client

    def settings(self, row: Row, name: str, **more: Any) -> dict[str, Any]:
        """What a contestant is told."""
        words = name.split()
        told = {**row.settings, "count": row.count, "warm_up": not row.alone, "manual_dir": self.given.manual_dir}
        told |= {"precision": "bfloat16" if "bfloat16" in words else "float32", "folder": str(self.folder(row))}
        told["runs"] = next((int(word[1:]) for word in words if re.fullmatch(r"x\d+", word)), 1)
        if "peak" in words:
            told["kind"] = "peak"
        elif row.kind == "quality" and words[0] in peers.REQUIREMENTS:
            told["kind"] = "train"  # for its speed
        if words[-1] in SCORES:
            told["changes"] = {**told["changes"], "score": words[-1]}
        return told | more

    def folder(self, row: Row) -> Path:
        """Where the files for a row's peers lie: rows that decode with one model share it."""
        told = {key: value for key, value in row.settings.items() if key not in ("search", "beam_size")}
        digest = hashlib.sha256(json.dumps([told, row.count], sort_keys=True).encode()).hexdigest()[:12]
        return self.given.out / "exchange" / digest

    def repetitions(self, row: Row) -> int:
        """Of every contestant."""
        return 1 if row.once else self.given.repetitions

    def export(self, row: Row) -> None:
        """Writes what peers read, if there are any, and the trained model that every contestant of a search reads."""
        has_peers = any(name.split()[0] in peers.REQUIREMENTS for name in row.contestants)
        if row.kind != "decode" and not (has_peers and row.kind in ("train", "quality")):
            return
        self.folder(row).mkdir(parents=True, exist_ok=True)
        with self.client(row, OURS) as client:
            steps = row.count * (self.repetitions(row) + 1)
            client.prepare(self.settings(row, OURS, kind="export", steps=steps))

    def measure(self, row: Row) -> dict[str, Any]:
        """All repetitions of a row. A contestant that fails is left out from there on."""
        measured: dict[str, list[dict[str, Any]]] = {}
        facts: dict[str, dict[str, Any]] = {}
        absent: dict[str, str] = {}
        loads = [os.getloadavg()[0]]
        try:
            self.export(row)
            (self._alone if row.alone else self._in_turns)(row, measured, facts, absent)
        except WorkerError as error:
            absent["ours"] = f"writing the files for peers: {error}"
        loads.append(os.getloadavg()[0])
        return {
            "name": row.name,
            "settings": dict(row.settings),
            "count": row.count,
            "compared": table.summed_up(row, measured),
            "absent": absent,
            "wrong": wrong(row, measured, facts),
            "facts": facts,
            "measured": measured,
            "load": loads,
        }

    def _in_turns(self, row: Row, measured: dict, facts: dict, absent: dict) -> None:
        live: dict[str, Client] = {}
        with contextlib.ExitStack() as stack:
            for name in row.contestants:
                with noted(absent, name):
                    client = stack.enter_context(self.client(row, name))
                    facts[name] = client.prepare(self.settings(row, name))
                    live[name], measured[name] = client, []
            for repetition in range(1, self.repetitions(row) + 1):
                for name in [name for name in live if name not in absent]:
                    with noted(absent, name):
                        done = live[name].run(repetition * row.count, row.count)
                        measured[name].append(done | live[name].memory())
        for name in absent:
            measured.pop(name, None)

    def _alone(self, row: Row, measured: dict, facts: dict, absent: dict) -> None:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
            for repetition in range(self.repetitions(row) + 1):
                for name in [name for name in row.contestants if name not in absent]:
                    # The first time, which is not counted, fills the caches: the warm one, and that of files.
                    kept = "warm" if "warm" in name.split() else f"{repetition}-{name}"
                    cache = str(Path(place) / f"{name.split()[1]}-{kept}".replace(" ", "-"))
                    with noted(absent, name):
                        began = time.perf_counter()
                        with self.client(row, name, ATTN_JAX_CACHE=cache) as client:
                            facts[name] = client.prepare(self.settings(row, name))
                            done = client.run(0, row.count)
                            done["seconds"] = time.perf_counter() - began
                            if repetition:
                                measured.setdefault(name, []).append(done | client.memory())
        for name in absent:
            measured.pop(name, None)


@contextlib.contextmanager
def noted(absent: dict[str, str], name: str) -> Iterator[None]:
    """Writes down why a contestant cannot go on."""
    try:
        yield
    except (WorkerError, peers.PeerError) as error:
        absent[name] = str(error)


def wrong(row: Row, measured: Mapping[str, list[dict[str, Any]]], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes a row's ratios worthless: contestants that did not do the same."""
    found = []
    if row.same and (said := ratios.disagreement(measured, row.same)):
        found.append(f"not the same work: {said}")
    losses = [facts[name]["first_loss"] for name in (OURS, TORCH) if "first_loss" in facts.get(name, {})]
    if len(losses) == 2 and not abs(losses[0] - losses[1]) <= SAME_LOSS * abs(losses[1]):
        found.append(f"not the same model: {OURS} begins with loss {losses[0]:.6f}, {TORCH} with {losses[1]:.6f}")
    return found


def machine(given: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = re.findall(r"model name\s*:\s*(.*)", info)
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": given.threads,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "repetitions": given.repetitions,
        "quick": given.quick,
    }


def header(about: Mapping[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """The lines above the table."""
    facts = [fact for result in results for fact in result["facts"].values()]
    versions = ", ".join(sorted({part for fact in facts for part in fact.get("version", "").split(", ") if part}))
    first = (
        f"{about['cores']} cores of {about['processor']}, Python {about['python']}, {versions}, {about['date'][:10]}"
    )
    second = f"Median (quartiles) of {about['repetitions']} repetitions in turns."
    return [first, second + (" QUICK: the figures mean nothing." if about["quick"] else "")]


def write(out: Path, about: Mapping[str, Any], results: list[dict[str, Any]]) -> str:
    """Writes both files after every row; what Ctrl-C leaves is whole. Returns the table."""
    text = table.markdown(results, header(about, results))
    both: dict[str, Callable[[], str]] = {
        "benchmark.json": lambda: json.dumps({"machine": about, "rows": results}, indent=1) + "\n",
        "benchmark.md": lambda: text,
    }
    for name, content in both.items():
        unfinished = out / f".{name}"
        unfinished.write_text(content(), encoding="utf-8")
        unfinished.replace(out / name)
    return text


def main() -> int:
    """Measures the chosen rows; 1 if a row is worthless or a contestant failed."""
    given = parsed()
    chosen = [row for row in rows(given.quick) if re.search(given.rows, row.name)]
    if not chosen:
        print(f"benchmark: --rows={given.rows}: is found in no row; --list names them", file=sys.stderr)
        return 2
    chosen = [only for row in chosen if (only := row.among(given.contestants)).contestants]
    if not chosen:
        print(f"benchmark: --contestants={given.contestants}: is found in no name; --list has them", file=sys.stderr)
        return 2
    if given.list:
        for row in chosen:
            print(f"{row.name}: {', '.join(row.contestants)}")
        return 0
    bench, about, results, text = Bench(given), machine(given), [], ""
    for number, row in enumerate(chosen, 1):
        print(f"benchmark: {row.name} ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        try:
            results.append(bench.measure(row))
        except KeyboardInterrupt:
            print(f"benchmark: stopped; {given.out} has the rows before this one", file=sys.stderr)
            return 130
        text = write(given.out, about, results)
    print(text, end="")
    return 1 if any(result["wrong"] or result["absent"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
