"""Several processes that train as one, usually one a host.

All of them run the same program in the same order, since each has a part of every global array. Process 0 alone decides
what is trained, writes files and prints; the others learn its decisions from `decided`. When one dies the others cannot
go on: they end with `LostError` as soon as a collective fails, or are ended by JAX with a message when its coordination
service has missed heartbeats for `HEARTBEAT_SECONDS`.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from attn_jax.errors import UserError

HEARTBEAT_SECONDS = 60
"""A process that has not been heard of for so long is dead."""

JOIN_SECONDS = 300
"""The others must have come by then."""

LEAVE_SECONDS = 60
"""A process that is done waits for the others so long."""

EXIT_LOST = 75
"""EX_TEMPFAIL: the same command, given to all processes, goes on."""

Decision = TypeVar("Decision")


class LostError(Exception):
    """Another process has ended, and this one cannot go on without it."""


class ToldError(UserError):
    """A mistake of the user's that process 0 found, and tells."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Where the processes meet. coordinator: host:port of process 0; without one the cluster's environment tells."""

    coordinator: str = ""
    processes: int = 0
    process: int = 0

    @classmethod
    def of(
        cls, coordinator: str | None, processes: int | None, process: int | None, distributed: str | None
    ) -> "Group | None":
        """What the flags of those names say; None for one process. Raises UserError if they do not go together."""
        given = {"--coordinator": coordinator, "--num_processes": processes, "--process_id": process}
        missing = [name for name, value in given.items() if value is None]
        if distributed is not None:
            if len(missing) < len(given):
                raise UserError(
                    f"--distributed={distributed}: goes without --coordinator, --num_processes, --process_id"
                )
            return cls()
        if len(missing) == len(given):
            return None
        if coordinator is None or processes is None or process is None:
            raise UserError(f"{missing[0]} is missing: a process of several needs {', '.join(given)}")
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(f"--coordinator={coordinator}: expected HOST:PORT of process 0")
        if not 0 <= process < processes:
            raise UserError(f"--process_id={process}: expected a number from 0 to {processes - 1}")
        return cls(coordinator, processes, process)


_joined = False


@contextlib.contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Inside, this process is one of the group. Raises UserError if they do not meet, and LostError if one dies.

    To be entered before JAX is used, and once in a process.
    """
    global _joined
    if group is None:
        yield
        return
    _initialize(group)
    _joined = True
    try:
        yield
    except Exception as error:
        if _tells_of_loss(error):
            reason = " ".join(str(error).split())[:200]
            raise LostError(f"process {index()} of {count()}: another process has ended ({reason})") from error
        raise


def _initialize(group: Group) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler of SIGTERM would take the signal from ours.
    jax.config.update("jax_enable_preemption_service", False)
    seconds: dict[str, Any] = {
        "initialization_timeout": 2 * JOIN_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": LEAVE_SECONDS,
    }
    try:
        if not group.coordinator:
            with _impatient("--distributed=auto"):
                jax.distributed.initialize(**seconds)
            return
        socket.getaddrinfo(group.coordinator.rpartition(":")[0].strip("[]"), None)
        with _impatient(f"--coordinator={group.coordinator} --num_processes={group.processes}"):
            jax.distributed.initialize(
                group.coordinator, group.processes, group.process, cluster_detection_method="deactivate", **seconds
            )
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        if group.coordinator:
            raise UserError(f"--coordinator={group.coordinator}: processes cannot meet there ({reason})") from error
        raise UserError(
            f"--distributed=auto: no cluster that JAX knows started this process ({reason}); use --coordinator, "
            "--num_processes and --process_id"
        ) from error


@contextlib.contextmanager
def _impatient(flags: str) -> Iterator[None]:
    """Ends the process with a message if what is inside lasts too long: JAX's own time limit aborts without one."""

    def give_up() -> None:
        print(f"{flags}: the processes have not met within {JOIN_SECONDS} seconds", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tells_of_loss(error: Exception) -> bool:
    """Whether an error is a collective's whose other side is gone."""
    text = str(error)
    return any(mark in text for mark in ("Gloo", "coordination service", "NCCL", "heartbeat"))


def count() -> int:
    """The number of processes."""
    if not _joined:
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """The number of this process, from 0."""
    if not _joined:
        return 0
    import jax

    return jax.process_index()


def leads() -> bool:
    """Whether this process decides, writes and prints."""
    return index() == 0


def decided(decide: Callable[[], Decision]) -> Decision:
    """What `decide` returns in process 0, where alone it is called, in every process: anything that JSON can say.

    A UserError that it raises is raised in every process. All processes must call this in the same order.
    """
    if count() == 1:
        return decide()
    said: dict[str, Any] = {}
    if leads():
        try:
            said = {"value": decide()}
        except UserError as error:
            said = {"error": str(error)}
    said = json.loads(_from_first(json.dumps(said).encode()))
    if "error" in said:
        raise UserError(said["error"]) if leads() else ToldError(said["error"])
    return said["value"]


def _from_first(text: bytes) -> bytes:
    """The bytes that process 0 has."""
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.array([len(text)], np.int32))[0])
    # Few lengths, since each one compiles a program.
    padded = np.zeros(1 << max(8, (length - 1).bit_length()), np.uint8)
    if leads():
        padded[:length] = np.frombuffer(text, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:length].tobytes()


def highest(values: Sequence[int]) -> list[int]:
    """The highest of each of these numbers over all processes, which must call this in the same order."""
    if count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(values, np.int32)).max(axis=0).tolist()
