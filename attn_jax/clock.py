"""Time and work of a program's steps, and how much was compiled for them."""

import collections
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax

from attn_jax.training import Trainer

DISPATCH_SECONDS = 2.0
"""A dispatch does about so many seconds of steps: long enough to cost nothing, short enough to be asked to stop."""

GROWTH = 8
"""A dispatch has at most so many times the steps of the one before: what is known of their speed may be wrong."""

COUNTERS = ("seconds", "first", "first_steps", "rest", "rest_steps", "run_steps")

_EVENTS = {
    "/jax/core/compile/backend_compile_duration": "compilations",
    "/jax/compilation_cache/cache_hits": "cached_compilations",
}
"""What JAX says when a program (of XLA, not of ours) is made ready, and, before that, when it is found in the cache."""


@functools.cache
def _compilations() -> collections.Counter[str]:
    """What this process has compiled, counted from the first call on. JAX's listeners are for the whole process."""
    counted = collections.Counter[str]()

    def count(event: str, *_: Any, **__: Any) -> None:
        if event in _EVENTS:
            counted[_EVENTS[event]] += 1

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(count)
    return counted


class Clock:
    """Times the dispatches of a program. The first one of each process, which compiles, counts apart.

    Make it before what it counts the compilations of.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.began = trainer, time.perf_counter()
        self.earlier, self._before = collections.Counter[str](), collections.Counter(_compilations())
        pairs = trainer.corpus.encoded["train"]
        # Real target tokens, end-of-sentence included, of one step of all runs; padding does not count.
        mean = sum(len(target) for _, target in pairs) / len(pairs)
        self.tokens = mean * trainer.config.train.batch_size * len(trainer.members)
        self.seconds, self.first, self.first_steps = 0.0, 0.0, 0
        self.rest, self.rest_steps, self.run_steps = 0.0, 0, 0
        self.last_tokens_per_second = 0.0
        self.dispatch, self._compiled = 1, False

    def chunk(self, steps: int, going: int) -> "_Stopwatch":
        """Times a block that does `steps` steps while `going` runs go on."""
        return _Stopwatch(self, steps, going)

    def add(self, seconds: float, steps: int, going: int) -> None:
        """Counts a dispatch, and decides on the number of steps of the next one, `dispatch`."""
        if not self._compiled:
            self.first, self.first_steps, self._compiled = self.first + seconds, self.first_steps + steps, True
        else:
            self.rest, self.rest_steps = self.rest + seconds, self.rest_steps + steps
            self.dispatch = max(1, min(GROWTH * steps, int(DISPATCH_SECONDS * steps / seconds)))
        self.run_steps += steps * going
        self.last_tokens_per_second = self.tokens * steps / seconds

    def to_json(self) -> dict[str, float]:
        """What was counted so far."""
        counted = {name: getattr(self, name) for name in COUNTERS} | {"seconds": self._elapsed()}
        return counted | self.compilations()

    def compilations(self) -> dict[str, int]:
        """XLA programs that were made ready for this program, and how many of them were found in the cache."""
        now = _compilations()
        return {name: self.earlier[name] + now[name] - self._before[name] for name in _EVENTS.values()}

    def resume(self, counted: Mapping[str, Any]) -> None:
        """Goes on from what an earlier process had counted, see `to_json`."""
        for name in COUNTERS:
            setattr(self, name, counted[name])
        # A checkpoint of an older version does not say.
        self.earlier = collections.Counter({name: counted.get(name, 0) for name in _EVENTS.values()})

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    def timing(self, steps: int) -> dict[str, float | None]:
        """A program's `timing.json`. Dispatches that compile tell nothing of speed."""
        seconds = self.rest / self.rest_steps if self.rest_steps else None
        runs = len(self.trainer.members)
        return {
            "runs": runs,
            "steps": steps,
            "train_seconds": self._elapsed(),
            "compile_seconds": None if seconds is None else max(0.0, self.first - seconds * self.first_steps),
            "steps_per_second": None if seconds is None else 1 / seconds,
            "target_tokens_per_second": None if seconds is None else self.tokens / seconds,
            "padding": self.trainer.padding,
            "buckets": len(self.trainer.buckets),
            "bytes": self.trainer.bytes,
            "devices": self.trainer.placement.devices,
            "masked_work": 1 - self.run_steps / max(1, steps * runs),
            **self.compilations(),
        }


class _Stopwatch:
    def __init__(self, clock: Clock, steps: int, going: int):
        self.clock, self.steps, self.going = clock, steps, going

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.add(time.perf_counter() - self.start, self.steps, self.going)
