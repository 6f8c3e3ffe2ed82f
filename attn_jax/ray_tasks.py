"""A launcher that has programs trained as tasks of Ray. The only file that imports Ray."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax

from attn_jax import devices
from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER, Interrupted, handled
from attn_jax.jobs import Corpora, Job, Setting, perform
from attn_jax.launch import STOP_SECONDS, Event
from attn_jax.progress import Told

LOCAL = "local"
"""The address of a Ray of this machine, as long as the study."""

MISSING = "--launcher=ray: Ray is not installed: python -m pip install ray"


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where Ray is, and what a program needs of it. address: empty: a Ray of this machine, as long as the study.

    gpus: a fraction lets programs share a device, and have that part of its memory.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    tpus: float = 0.0


def address_of(resources: Resources) -> str:
    """Where Ray is, as the user or the environment says; else LOCAL."""
    return resources.address or os.environ.get("RAY_ADDRESS") or LOCAL


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
            raise UserError(MISSING) from None
        self.ray, self.resources, self.setting = ray, resources, setting
        self.refs: dict[Any, str] = {}
        self.stopping = False

    def __enter__(self) -> Self:
        """Nothing yet: Ray starts with the first job."""
        return self

    def _begin(self) -> None:
        from ray.util.queue import Queue

        address = address_of(self.resources)
        options = {"address": address, "log_to_driver": True, "configure_logging": False}
        if address == LOCAL:
            options |= {"include_dashboard": False, "num_cpus": devices.available_cores()}
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
        about = {**dataclasses.asdict(self.resources), "cores": devices.cores()}
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
    # Before JAX looks for devices. Ray has chosen the devices, not the number of cores nor the share of memory.
    os.environ["NPROC"] = str(about["cores"])
    devices.spread_over_cores()
    if 0 < about["gpus"] < 1:
        os.environ.update(devices.memory_share(about["gpus"]))
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
