"""A bounded number of subprocesses of this machine, each performing one job after another (see `worker`)."""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from attn_jax import devices
from attn_jax.jobs import Job, Setting
from attn_jax.launch import STOP_SECONDS, Event


@dataclasses.dataclass(frozen=True)
class Local:
    """Programs are trained on this machine: one after another in this process, or in so many subprocesses."""

    jobs: int = 1


def device_settings(worker: int, workers: int, gpus: list[str]) -> dict[str, str]:
    """The environment that gives a worker one of the GPUs, and its part of the memory if it is not alone on it."""
    if not gpus:
        return {}
    settings = {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]}
    together = -(-workers // len(gpus))
    return settings if together == 1 else settings | devices.memory_share(1 / together)


class _Process:
    """A worker. Everything that it says goes to the queue, with the worker, and at its end its exit code."""

    def __init__(self, settings: dict[str, str], setting: Setting, said: "queue.SimpleQueue[Any]"):
        package = str(Path(__file__).resolve().parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"NPROC": str(devices.cores()), **os.environ, **settings}
        environment = {**own, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        reading, writing = os.pipe()
        # Ctrl-C on a terminal goes to the parent alone, which passes it on.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "attn_jax.worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            env=environment,
            process_group=0,
            text=True,
            errors="replace",
        )
        os.close(writing)
        self.job: Job | None = None
        self._said = said
        self._threads = [
            threading.Thread(target=self._read, args=(os.fdopen(reading, encoding="utf-8"), "event"), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stdout, "line"), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._wait, daemon=True).start()
        self._send(setting.to_json())

    def _read(self, file: Any, kind: str) -> None:
        with file:
            for line in file:
                if line.endswith("\n"):  # else a killed process left it half written
                    self._said.put((self, kind, line.rstrip("\n")))

    def _wait(self) -> None:
        for thread in self._threads:
            thread.join()
        self._said.put((self, "ended", self.process.wait()))

    def _send(self, value: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which is told by its end
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()

    def start(self, job: Job) -> None:
        self.job = job
        self._send({"program": job.program, "job": job.to_json()})

    def stop(self) -> None:
        """Asks it to save and stop."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Pool:
    """A launcher of so many subprocesses, each with one of the GPUs if there are any.

    The system shares out the cores. Binding a process to some of them changes what XLA compiles there, and with it the
    last digits of results.

    spread: every process may use all devices.
    """

    def __init__(self, workers: int, setting: Setting, *, spread: bool = False):
        self.slots, self.setting = workers, setting
        gpus = [] if spread else devices.visible_gpus()
        self._settings = [device_settings(worker, workers, gpus) for worker in range(workers)]
        self._processes: list[_Process | None] = [None] * workers
        self._leaving: list[_Process] = []
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Nothing yet: a process starts with its first job."""
        return self

    def start(self, job: Job) -> None:
        """Hands a job to a process that has none."""
        # One that runs already has compiled and loaded things.
        free = [n for n, process in enumerate(self._processes) if process is not None and process.job is None]
        number = free[0] if free else self._processes.index(None)
        process = self._processes[number]
        if process is None:
            process = _Process(self._settings[number], self.setting, self._said)
            self._processes[number] = process
        process.start(job)

    def wait(self, seconds: float) -> Iterable[Event]:
        """What has happened."""
        try:
            found = [self._said.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._said.empty():
            found.append(self._said.get())
        return [event for one in found for event in self._events(*one)]

    def _events(self, process: _Process, kind: str, value: Any) -> Iterator[Event]:
        program = "" if process.job is None else process.job.program
        if kind == "line":
            yield Event(program, "said", value)
            return
        if kind == "event":
            of, what, value = json.loads(value)
            if of == program and what in ("ended", "stopped"):
                process.job = None
            if what == "stopped":
                self._leave(process)
            yield Event(of or program, what, value)  # a mistake may be found before the job is read
            return
        self._leave(process)
        if process.job is not None:
            yield Event(program, "died", _reason(value))

    def _leave(self, process: _Process) -> None:
        """The place of a process that ends is free."""
        if process in self._processes:
            self._processes[self._processes.index(process)] = None
            self._leaving.append(process)

    def stop(self) -> None:
        """Asks all processes to save and stop."""
        for process in self._processes:
            if process is not None:
                process.stop()

    def __exit__(self, *_: object) -> None:
        self.stop()
        for process in [*self._leaving, *filter(None, self._processes)]:
            try:
                process.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.process.kill()
                process.process.wait()


def _reason(code: int) -> str:
    """What an exit code says of the end of a process."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"
