"""Running the programs of a study in other processes than its own: who gets which, and what becomes of it.

A launcher runs jobs somewhere (`pool`: subprocesses of this machine; `Ray`: wherever Ray has room) and tells what
happens to them. Everything else is the same for all: a program whose process died is started again, at most `RETRIES`
times, and goes on from its checkpoint; results are files, so nothing is carried back. The only file that imports Ray.
"""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import jax

from attn_jax import devices
from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER, Interrupted, handled
from attn_jax.jobs import Corpora, Job, Setting, perform
from attn_jax.progress import Board, Told

RETRIES = 3
"""A program is started again so many times after its process died."""

POLL = 0.5
"""Seconds between two looks at the launcher, and at what other processes have in hand."""

CHOOSE_SECONDS = 10.0
"""Seconds between two looks for work while nothing ends here: another process may have given some up."""

STOP_SECONDS = 120.0
"""A process that was asked to save and stop is killed after so long."""

LOCAL_RAY = "local"
"""The address of a Ray of this machine, as long as the study."""

RAY_MISSING = "--launcher=ray: Ray is not installed: python -m pip install ray"


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


def threads() -> str:
    """What `NPROC` must be where a program is trained elsewhere, so that its numbers are those that it would have here.

    XLA has as many threads, and a CPU as many devices; their number decides in which order large sums are made. Raises
    UserError if `NPROC` is there already and is no such number.
    """
    said = os.environ.get("NPROC")
    if said and not (said.isdecimal() and int(said)):
        raise UserError(f"NPROC={said}: expected a number of cores above 0")
    return said or str(len(cores()) or os.cpu_count() or 1)


def cores() -> list[int]:
    """The cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def memory_share(part: float) -> dict[str, str]:
    """The environment that gives a process a part of a GPU's memory, unless the user's says something of it."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return {} if any(name in os.environ for name in names) else {names[0]: f"{0.9 * part:.3f}"}


# -- Ray -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where Ray is, and what a program needs of it. address: empty: a Ray of this machine, as long as the study.

    gpus: a fraction lets programs share a device, and have that part of its memory.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    tpus: float = 0.0


def ray_address(resources: Resources) -> str:
    """Where Ray is, as the user or the environment says; else LOCAL_RAY."""
    return resources.address or os.environ.get("RAY_ADDRESS") or LOCAL_RAY


class Ray:
    """Runs jobs as Ray tasks, which start where their resources are free.

    All machines must reach the output directory, the data and the loaded files by the same paths, and have this package
    installed. Raises UserError if Ray is not installed or cannot be reached.
    """

    slots = 10_000
    """Ray queues what it has no room for."""

    def __init__(self, setting: Setting, resources: Resources):
        try:
            import ray
        except ImportError:
            raise UserError(RAY_MISSING) from None
        self.ray, self.resources, self.setting = ray, resources, setting
        self.refs: dict[Any, str] = {}
        self.stopping = False

    def __enter__(self) -> Self:
        """Nothing yet: Ray starts with the first job."""
        return self

    def _begin(self) -> None:
        from ray.util.queue import Queue

        address = ray_address(self.resources)
        options = {"address": address, "log_to_driver": True, "configure_logging": False}
        if address == LOCAL_RAY:
            options |= {"include_dashboard": False, "num_cpus": len(cores()) or os.cpu_count()}
        try:
            with _own_signals():
                self.ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--ray_address={address}: no Ray can be reached there ({reason})") from None
        wanted = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, "TPU": self.resources.tpus}
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(machine.get(kind, 0) >= count for kind, count in wanted.items()) for machine in machines):
            asked = ", ".join(f"{count:g} {kind}" for kind, count in wanted.items() if count)
            has = "; ".join(", ".join(f"{machine.get(kind, 0):g} {kind}" for kind in wanted) for machine in machines)
            raise UserError(f"--launcher=ray: no machine has {asked} for a program (there are {has})")
        self.events = Queue(actor_options={"num_cpus": 0})
        options = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus or None, "max_retries": 0}
        if self.resources.tpus:
            options["resources"] = {"TPU": self.resources.tpus}
        self.task = self.ray.remote(**options)(_ray_task)

    def start(self, job: Job) -> None:
        """Hands a job out."""
        if not self.ray.is_initialized():
            self._begin()
        about = {**dataclasses.asdict(self.resources), "threads": threads()}
        ref = self.task.remote(self.setting.to_json(), job.to_json(), about, self.events)
        self.refs[ref] = job.program

    def wait(self, seconds: float) -> Iterable[Event]:
        """What has happened."""
        ready, _ = self.ray.wait(list(self.refs), num_returns=1, timeout=seconds)
        # What was told before the end, first.
        count = self.events.size()
        found = [Event(program, "told", told) for program, told in self.events.get_nowait_batch(count)] if count else []
        for ref in ready:
            found.append(Event(self.refs.pop(ref), *self._outcome(ref)))
        return found

    def _outcome(self, ref: Any) -> tuple[str, Any]:
        errors = self.ray.exceptions
        try:
            return tuple(self.ray.get(ref))  # type: ignore[return-value]
        except errors.TaskCancelledError:
            return "stopped", ""
        except errors.RayTaskError as error:
            return "failed", str(error)
        except errors.RayError as error:
            reason = str(error).strip().split("\n")[0]
            return "died", f"its process was lost ({type(error).__name__}: {reason})"

    def stop(self) -> None:
        """Asks all processes to save and stop."""
        if not self.stopping:
            self.stopping = True
            for ref in self.refs:
                self.ray.cancel(ref)

    def __exit__(self, *_: object) -> None:
        if not self.ray.is_initialized():
            return
        self.stop()
        if self.refs:
            self.ray.wait(list(self.refs), num_returns=len(self.refs), timeout=STOP_SECONDS)
        self.ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, a library may set handlers of signals; at the end ours are back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENTERED: dict[str, Corpora] = {}
"""The data that this process of Ray's has loaded, for the next program of the same study."""


def _ray_task(setting: Mapping[str, Any], job: Mapping[str, Any], about: Mapping[str, Any], events: Any) -> list[Any]:
    """What a process of Ray's does: kind and value of an `Event`."""
    # Before JAX looks for devices. Ray has chosen the devices, not the number of threads nor the share of memory.
    os.environ["NPROC"] = about["threads"]
    devices.spread_over(int(about["threads"]))
    if 0 < about["gpus"] < 1:
        os.environ.update(memory_share(about["gpus"]))
    if not about["gpus"] and not about["tpus"]:
        jax.config.update("jax_platforms", "cpu")
    HANDLER.quiet = True
    with handled():
        try:
            key = repr(setting)
            if key not in _ENTERED:
                _ENTERED[key] = Setting.from_json(setting).enter()
            todo = Job.from_json(job)
            progress = Told(lambda told: events.put_nowait((todo.program, told)))
            return ["ended", perform(todo, _ENTERED[key], progress)]
        except UserError as error:
            return ["mistake", str(error)]
        except Interrupted as stop:
            return ["stopped", stop.where]
