"""A process of scripts/accelerator: one arm. Reads commands from standard input, and answers in lines of JSON.

    {"prepare": 3}  ->  {"prepared": seconds, "value": what the case computed}
    {"measure": 3}  ->  {"seconds": of a unit of the case that was prepared last}

A case that cannot be measured answers {"missing": why}; with "broken", the process ends, since after an error of the
device every other case would fail, too. The first line says what the device is.
"""

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from accelerator_plan import FULL, QUICK, cases

BROKEN = ("CUDA_ERROR", "CUDA error", "INTERNAL", "illegal", "cudaError")
"""In what is said of errors after which a process's device is of no use."""


def main() -> None:
    """Answers until there are no more commands."""
    library, quick = sys.argv[1], sys.argv[2] == "quick"
    # Libraries may print: what they say goes with the errors.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    sizes = QUICK if quick else FULL
    todo = cases(sizes)
    try:
        module = importlib.import_module(f"accelerator_{library}")
        answer(**module.describe())
    except Exception as error:  # ImportError where the library, or what it needs, is not there
        answer(missing=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return
    measured: Any = None
    calls = 1
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "prepare" in command:
                measured = None  # frees its memory
                start = time.perf_counter()
                measured = module.prepare(todo[command["prepare"]], sizes)
                ready = time.perf_counter()
                measured.seconds(1)
                calls = max(1, int(sizes.seconds / max(time.perf_counter() - ready, 1e-9)))
                answer(prepared=ready - start, value=measured.value)
            else:
                answer(seconds=measured.seconds(calls))
        except module.UnavailableError as error:
            answer(missing=str(error))
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if any(sign in str(error) for sign in BROKEN):
                answer(missing=why, broken=True)
                return
            answer(missing=why)


if __name__ == "__main__":
    main()
