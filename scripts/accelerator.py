"""Measures recurrence on this machine's GPU, and applies a rule for what to build next.

    scripts/accelerator --out=out/accelerator

Every setting of the compiler ("arm", see accelerator_plan.py) has a process of its own, since XLA reads its flags once.
The arms prepare a case side by side (XLA's choice among kernels may suffer from it, in all arms alike); then one after
another repeats it, again and again in turn, so that what disturbs the machine disturbs all alike. Times are medians and
quartiles. An arm whose flags this jaxlib does not know, or whose process dies, is told as such; so is every case for
which there was no time. Where there is no GPU only the arm without flags is measured, which tells nothing about GPUs.

Needs JAX, Flax, Optax, jaxtyping and NumPy, and CUDA's PyTorch for what is compared with it; neither TFDS nor Orbax.
Writes OUT/accelerator.json and OUT/accelerator.txt and prints the latter.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerator_plan import ARMS, FULL, QUICK, Arm, Case, Sizes, applies, cases
from accelerator_report import text

HERE = Path(__file__).resolve().parent

START_SECONDS = 120.0
"""A process that has not said by then what its device is does not start."""

FIRST_SECONDS, CASE_SECONDS = 150.0, 75.0
"""A case that takes longer to prepare is left out, where it is an arm's first one and where not."""

MEASURE_SECONDS = 60.0
"""Repetitions of a case that take longer are given up."""

UNKNOWN_SECONDS = 12.0
"""What a case is thought to take before one of its kind was measured."""

NO_TIME = "no time was left"

DEATHS = 2
"""An arm whose processes died so often is given up."""


class DeathError(Exception):
    """A process has ended, or did not answer in time."""


class LateError(DeathError):
    """It did not answer in time."""


class Worker:
    """A process of an arm."""

    def __init__(self, arm: Arm, quick: bool):
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # as long as the process
        flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), arm.flags]))
        environment = os.environ | {
            "XLA_FLAGS": flags,
            # All arms are on one device at a time, and what is compiled is timed.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        words = ["torch" if arm.torch else "jax", "quick" if quick else "full"]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "accelerator_worker.py"), *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def send(self, **command: int) -> None:
        """Hands out a command. Raises DeathError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise DeathError(self.reason()) from None

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer. Raises DeathError."""
        try:
            line = self.lines.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            raise LateError("took too long") from None
        if not line:
            raise DeathError(self.reason())
        return json.loads(line)

    def reason(self) -> str:
        """Why the process has ended, in a line."""
        code = self.process.wait()
        self.errors.seek(0)
        said = [line.strip() for line in self.errors if line.strip()]
        unknown = next((line for line in said if "Unknown flag" in line), None)
        if unknown is not None:
            return "this jaxlib does not know the flag: " + unknown.partition("XLA_FLAGS: ")[2]
        return f"the process ended with {code}: {said[-1][:200] if said else 'it said nothing'}"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.reader.join()
        with contextlib.suppress(BrokenPipeError), self.process:
            pass  # closes its pipes, and waits for it
        self.errors.close()


class Lane:
    """An arm with its process, which is started anew after it died. end: no answer is waited for longer."""

    def __init__(self, arm: Arm, quick: bool, end: float = math.inf):
        self.arm, self.quick, self.end, self.deaths = arm, quick, end, 0
        self.about: dict[str, Any] = {}
        self.trouble: list[str] = []
        self.answered = False
        self.gone = ""  # why nothing more can be asked
        self.worker: Worker | None = None

    def start(self) -> None:
        """Starts the process; `greet` waits for it."""
        self.worker = Worker(self.arm, self.quick)

    def greet(self) -> None:
        """Waits until the process has said what its device is."""
        assert self.worker is not None
        try:
            self.about = self.worker.answer(min(START_SECONDS, max(10.0, self.end - time.monotonic())))
        except DeathError as death:
            self.gone = str(death)
        self.gone = self.gone or self.about.get("missing", "")
        if self.gone:
            self.stop()

    def prepare(self, number: int) -> str:
        """Hands out the preparation of a case; why not, or nothing."""
        if self.gone:
            return self.gone
        if self.worker is None:
            self.start()
            self.greet()
        if self.worker is None:
            return self.gone
        try:
            self.worker.send(prepare=number)
        except DeathError as death:
            return self.died(death)
        return ""

    def ask(self, number: int | None, deadline: float) -> dict[str, Any]:
        """Hands out a measurement, where a number is given, and waits for the answer."""
        assert self.worker is not None
        try:
            if number is not None:
                self.worker.send(measure=number)
            found = self.worker.answer(min(deadline, self.end) - time.monotonic())
        except DeathError as death:
            if time.monotonic() >= self.end:
                self.stop()
                return {"missing": NO_TIME}
            if number is None and isinstance(death, LateError):
                # Compiling takes as long as it does: the process is in good health.
                self.stop()
                return {"missing": str(death)}
            return {"missing": self.died(death)}
        self.answered = True
        return {"missing": self.died(DeathError(found["missing"]))} if "broken" in found else found

    def died(self, death: DeathError) -> str:
        """Notes a death; why the case has no time."""
        self.stop()
        self.deaths += 1
        self.trouble.append(str(death))
        if self.deaths >= DEATHS:
            self.gone = f"given up after {self.deaths} processes: {death}"
        return str(death)

    def stop(self) -> None:
        """Ends the process."""
        if self.worker is not None:
            self.worker.close()
        self.worker = None


def quartiles(times: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of repetitions."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"median": median, "low": low, "high": high, "repetitions": len(times)}


def measured(number: int, lanes: Sequence[Lane], sizes: Sizes) -> dict[str, Any]:
    """A case by all arms that it applies to: what each has found, by name."""
    found: dict[str, Any] = {}
    asked = []
    for lane in lanes:
        why = lane.prepare(number)
        if why:
            found[lane.arm.name] = {"missing": why}
        else:
            asked.append(lane)
    going: dict[str, tuple[Lane, dict[str, Any], list[float]]] = {}
    start = time.monotonic()
    for lane in asked:
        answer = lane.ask(None, start + (CASE_SECONDS if lane.answered else FIRST_SECONDS))
        if "missing" in answer:
            found[lane.arm.name] = answer
        else:
            going[lane.arm.name] = (lane, answer, [])
    deadline = time.monotonic() + MEASURE_SECONDS
    for _ in range(sizes.repetitions):
        for name, (lane, _, times) in list(going.items()):
            answer = lane.ask(number, deadline)
            if "missing" in answer:
                found[name] = answer
                del going[name]
            else:
                times.append(answer["seconds"])
    return found | {name: quartiles(times) | answer for name, (_, answer, times) in going.items()}


def measure(
    arms: Sequence[Arm],
    todo: Sequence[Case],
    quick: bool,
    seconds: float,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything, in about so many seconds at most. keep: is given what there is after every case."""
    began, sizes = time.monotonic(), QUICK if quick else FULL
    lanes = [Lane(arm, quick, began + seconds) for arm in arms]
    plain, others = lanes[0], lanes[1:]
    plain.start()
    plain.greet()
    if plain.gone:
        sys.exit(f"accelerator: {plain.gone}")
    for lane in others:
        if lane.arm.gpu and plain.about["platform"] != "gpu":
            lane.gone = "not applicable: there is no GPU"
        else:
            lane.start()
    for lane in others:
        if lane.worker is not None:
            lane.greet()
    numbers = {case: number for number, case in enumerate(cases(sizes))}
    taken, records = dict[tuple[str, int], float](), list[dict[str, Any]]()

    def found_so_far() -> dict[str, Any]:
        return {
            "device": plain.about,
            "sizes": dataclasses.asdict(sizes),
            "seconds": time.monotonic() - began,
            "arms": {
                lane.arm.name: {
                    "flags": lane.arm.flags,
                    "gone": lane.gone,
                    "trouble": lane.trouble,
                    "about": lane.about,
                }
                for lane in lanes
            },
            "cases": records,
        }

    for case in todo:
        start = time.monotonic()
        wanted = [lane for lane in lanes if applies(case, lane.arm)]
        like = (case.kind, case.unroll)
        if start + taken.get(like, 0 if quick else UNKNOWN_SECONDS) > began + seconds:
            found: Mapping[str, Any] = {lane.arm.name: {"missing": NO_TIME} for lane in wanted}
        else:
            found = measured(numbers[case], wanted, sizes)
            taken[like] = max(taken.get(like, 0), time.monotonic() - start)
        records.append({"name": str(case), **dataclasses.asdict(case), "arms": found})
        print(f"{time.monotonic() - began:5.0f} s  {case}", file=sys.stderr, flush=True)
        keep(found_so_far())
    for lane in lanes:
        lane.stop()
    return found_so_far()


def main() -> None:
    """Measures, and writes and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast anything is")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything, at most about so many")
    parser.add_argument("--out", type=Path, default=Path("out/accelerator"), help="where the results are written")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    def keep(found: dict[str, Any]) -> None:
        # After every case: a machine may be taken back at any time.
        (given.out / "accelerator.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (given.out / "accelerator.txt").write_text(text(found) + "\n", encoding="utf-8")

    found = measure(ARMS, cases(QUICK if given.quick else FULL), given.quick, given.seconds, keep)
    keep(found)
    print(text(found))


if __name__ == "__main__":
    main()
