"""Running the programs of a study in other processes than its own: who gets which, and what becomes of it.

A launcher runs jobs somewhere (`pool`: subprocesses of this machine; `ray_tasks`: wherever Ray has room) and tells what
happens to them. Everything else is the same for all: a program whose process died is started again, at most `RETRIES`
times, and goes on from its checkpoint; results are files, so nothing is carried back.
"""

import collections
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER, Interrupted
from attn_jax.jobs import Job
from attn_jax.progress import Board

RETRIES = 3
"""A program is started again so many times after its process died."""

POLL = 0.5
"""Seconds between two looks at the launcher, and at what other processes have in hand."""

CHOOSE_SECONDS = 10.0
"""Seconds between two looks for work while nothing ends here: another process may have given some up."""

STOP_SECONDS = 120.0
"""A process that was asked to save and stop is killed after so long."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What a launcher tells of a program.

    kind: `told`, a call of `Progress` with its arguments; `ended`, with DONE or TAKEN; `died`, with the reason;
    `stopped`, with where; `mistake`, a UserError's text; `failed`, a traceback; `said`, a line of its output.
    """

    program: str
    kind: str
    value: Any


class Launcher(Protocol):
    """Runs jobs in other processes. As a context: at its end every process is asked to save and stop, and gone."""

    slots: int
    """Jobs that can be in hand at a time."""

    def start(self, job: Job) -> None:
        """Hands a job out. Raises UserError where there is nowhere to."""

    def wait(self, seconds: float) -> Iterable[Event]:
        """What has happened; waits so long for something to happen."""

    def stop(self) -> None:
        """Asks all processes to save and stop; `wait` tells of them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Choose = Callable[[Mapping[str, Sequence[str]], set[str]], tuple[Job | None, int, int]]
"""The next job, given what is in hand (members by program) and runs that were given up; how many programs are left,
that one included; and how many runs other processes have in hand."""


def dispatch(choose: Choose, launcher: Launcher, board: Board) -> list[str]:
    """Hands out programs until none is left. Returns what went wrong with programs that were given up, a line each.

    Raises UserError for a mistake that a job found, RuntimeError for another error of it, and Interrupted when a signal
    asks to stop, after all jobs have saved.
    """
    return _Dispatch(choose, launcher, board).run()


class _Dispatch:
    def __init__(self, choose: Choose, launcher: Launcher, board: Board):
        self.choose, self.launcher, self.board = choose, launcher, board
        self.in_hand: dict[str, Job] = {}
        self.deaths = collections.Counter[str]()
        self.given_up: set[str] = set()
        self.lost: list[str] = []
        self.finished = self.saved = self.elsewhere = 0
        self.due = -math.inf  # when to choose again

    def run(self) -> list[str]:
        waiting = False
        with self.launcher, HANDLER.deferred():
            while True:
                if time.monotonic() >= self.due or not self.in_hand:
                    self._hand_out()
                if not self.in_hand and not self.elsewhere:
                    return self.lost
                if not self.in_hand and not waiting:
                    waiting = True
                    self.board.line(f"waiting for {self.elsewhere} run(s) that another process trains")
                if self.in_hand:
                    self._look()
                else:
                    time.sleep(POLL)
                if HANDLER.pending is not None:
                    self._stop()

    def _hand_out(self) -> None:
        """Fills the launcher's slots."""
        self.due = time.monotonic() + CHOOSE_SECONDS
        while len(self.in_hand) < self.launcher.slots:
            hands = {program: list(job.members) for program, job in self.in_hand.items()}
            job, left, self.elsewhere = self.choose(hands, self.given_up)
            self.board.total = self.finished + len(self.in_hand) + left
            if job is None:
                return
            self.in_hand[job.program] = job
            self.launcher.start(job)

    def _look(self) -> None:
        for event in self.launcher.wait(POLL):
            self._take(event)

    def _take(self, event: Event) -> None:
        if event.kind == "said":
            self.board.line(event.value)
        elif event.kind == "mistake":
            raise UserError(event.value)
        elif event.kind == "failed":
            raise RuntimeError(f"program {event.program} failed\n{event.value}")
        job = self.in_hand.get(event.program)
        if job is None:
            return
        if event.kind == "told":
            self.board.told(event.program, list(job.members.values()), event.value)
        elif event.kind == "ended":
            del self.in_hand[event.program]
            self.due = -math.inf
            self.finished += event.value == "done"
        elif event.kind in ("died", "stopped"):
            del self.in_hand[event.program]
            self.due = -math.inf
            self.board.lost(event.program)
            if HANDLER.pending is not None:
                self.saved += event.kind == "stopped"
            else:
                reason = "its process was asked to stop" if event.kind == "stopped" else event.value
                self._again(job, reason)

    def _again(self, job: Job, reason: str) -> None:
        self.deaths[job.program] += 1
        count = self.deaths[job.program]
        if count <= RETRIES:
            self.board.line(f"program {job.program}: {reason}; it is started again ({count} of {RETRIES} times)")
            return
        self.given_up |= set(job.members)
        self.lost.append(f"program {job.program} was given up after {count} tries: {reason}")
        self.board.line(self.lost[-1])

    def _stop(self) -> None:
        number = HANDLER.pending or signal.SIGTERM
        self.launcher.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self.in_hand and time.monotonic() < deadline:
            self._look()
        HANDLER.pending = None
        raise Interrupted(number, f"with {self.saved} program(s) saved")
