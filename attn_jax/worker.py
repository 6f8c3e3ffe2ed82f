"""A subprocess that performs jobs, one after another: `python -m attn_jax.worker EVENTS`, for `pool`.

EVENTS: the file descriptor that lines of JSON are written to: [program, kind, value], see `launch.Event`. The first
line on standard input is the setting, the others are jobs; at its end, which comes with the parent's death too, the
process saves and stops.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, TextIO


def main(events: str) -> int:
    """Performs jobs until there are no more; the exit code."""
    from attn_jax.interruption import HANDLER, Interrupted, handled

    HANDLER.quiet = True
    out = os.fdopen(int(events), "w", buffering=1, encoding="utf-8")
    with handled():
        try:
            return _work(out)
        except Interrupted as stop:
            return stop.code


def _work(out: TextIO) -> int:
    from absl import logging

    from attn_jax import devices
    from attn_jax.errors import UserError
    from attn_jax.interruption import Interrupted
    from attn_jax.jobs import Job, Setting, perform
    from attn_jax.progress import Told

    logging.set_verbosity(logging.FATAL)
    devices.spread_over_cores()
    program = ""

    def tell(kind: str, value: Any) -> None:
        out.write(json.dumps([program, kind, value]) + "\n")

    lines = _lines()
    try:
        corpora = Setting.from_json(json.loads(lines.get())).enter()
        while line := lines.get():
            value = json.loads(line)
            program = value["program"]
            job = Job.from_json(value["job"])
            tell("ended", perform(job, corpora, Told(lambda told: tell("told", told))))
    except UserError as error:
        tell("mistake", str(error))
        return 2
    except Interrupted as stop:
        tell("stopped", stop.where)
        return stop.code
    except Exception:
        tell("failed", traceback.format_exc())
        return 1
    return 0


def _lines() -> "queue.SimpleQueue[str]":
    """The lines of standard input as they come; an empty one, and SIGTERM to whatever is in hand, at its end."""
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            found.put(line)
        found.put("")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
