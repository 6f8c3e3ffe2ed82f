"""Contestants as processes: the driver asks in lines on their stdin, they answer with one line of JSON each.

    prepare {"kind": "train", ...}     -> {facts}
    run FIRST COUNT                    -> {"seconds": ..., work done, by name}
    memory                             -> {"peak_bytes": ...}

An answer {"error": "one line"} ends the contestant. This file is imported by every contestant, whatever its packages.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

Answer = dict[str, Any]


class Worker(Protocol):
    """What a contestant does."""

    def prepare(self, row: Mapping[str, Any]) -> Answer:
        """Gets ready to be timed: loads, compiles, warms up. Returns facts that the table may tell."""

    def run(self, first: int, count: int) -> Answer:
        """Does `count` units of work from number `first`; what lies around the work is not in `seconds`."""


class Contestant:
    """Does what the row's kind asks for.

    kinds: kind -> what makes its worker from a row, whose `prepare` needs nothing more. version: of what is measured.
    """

    def __init__(self, kinds: Mapping[str, Callable[[Mapping[str, Any]], Any]], version: str):
        self.kinds, self.version = kinds, version

    def prepare(self, row: Mapping[str, Any]) -> Answer:
        """See `Worker`."""
        self.work = self.kinds[row["kind"]](row)
        return self.work.prepare() | {"version": self.version}

    def run(self, first: int, count: int) -> Answer:
        """See `Worker`."""
        return self.work.run(first, count)


def peak_bytes() -> int:
    """The most memory that this process has had (not what its parent had, which `getrusage` tells of a fork)."""
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def answered(worker: Worker, line: str) -> Answer:
    """The answer to a line."""
    word, _, rest = line.strip().partition(" ")
    if word == "prepare":
        return worker.prepare(json.loads(rest))
    if word == "run":
        first, count = rest.split()
        return worker.run(int(first), int(count))
    if word == "memory":
        return {"peak_bytes": peak_bytes()}
    raise ValueError(f"no command: {line!r}")


def serve(worker: Worker) -> None:
    """Answers until stdin ends. Whatever else prints to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = answered(worker, line)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


class WorkerError(Exception):
    """A contestant that failed, in one line."""


class Client:
    """A live contestant. log: where its stderr goes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[str]):
        self.log = log
        self.process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _ask(self, line: str) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
            said = self.process.stdout.readline()
        except BrokenPipeError:
            said = ""
        if not said:
            code = self.process.wait()
            raise WorkerError(f"ended with exit code {code}; its words are in {self.log.name}")
        answer = json.loads(said)
        if "error" in answer:
            raise WorkerError(f"{answer['error']} (more in {self.log.name})")
        return answer

    def prepare(self, row: Mapping[str, Any]) -> Answer:
        """See `Worker.prepare`. Raises WorkerError, as all of these do."""
        return self._ask("prepare " + json.dumps(row))

    def run(self, first: int, count: int) -> Answer:
        """See `Worker.run`."""
        return self._ask(f"run {first} {count}")

    def memory(self) -> Answer:
        """The most memory that the process has had, `peak_bytes`."""
        return self._ask("memory")
