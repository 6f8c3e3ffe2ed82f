"""How training goes, on a terminal as a live line, elsewhere as lines of a log."""

import sys
import time
from collections.abc import Sequence
from statistics import fmean

from attn_jax.config import Config, differences, get


class Silent:
    """Tells nothing: the progress of a process whose work another one tells of."""

    total = number = 0

    def begin(self, *_: object) -> None:
        """A program starts."""

    advance = evaluated = finish = begin


class Console:
    """Tells of one program after another. total: programs of the study."""

    def __init__(self, total: int):
        self.total, self.number = total, 0
        self.live = sys.stderr.isatty()
        self._last = 0.0

    def begin(self, members: Sequence[Config], steps: int, step: int = 0) -> None:
        """A program starts, or goes on from a step."""
        self.number += 1
        self.steps, self.first, self.started, self.metric = steps, step, time.monotonic(), ""
        seeds = [member.seed for member in members]
        varied = [path for path in differences(list(members)) if path != "seed"]
        first = members[0]
        kind = [first.score.name, first.cell.name] if first.model == "recurrent" else [first.model]
        parts = [first.data.dataset, *kind, f"{len(members)} runs"]
        if len(set(seeds)) > 1:
            parts.append(f"seeds {min(seeds)}-{max(seeds)}")
        parts += [f"{path} {', '.join(str(get(m, path)) for m in members)}" for path in varied]
        self._line(f"program {self.number} of {self.total}: {' | '.join(parts)} | {steps} steps")
        if step:
            self._line(f"  goes on from step {step}")

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done."""
        now = time.monotonic()
        if now - self._last < (0.2 if self.live else 10.0) and step < self.steps:
            return
        self._last = now
        left = (now - self.started) / (step - self.first) * (self.steps - step)
        text = (
            f"  step {step}/{self.steps}  loss {loss:.3f}  {tokens_per_second:,.0f} target tokens/s  "
            f"{_clock(left)} left{self.metric}"
        )
        if self.live:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        else:
            self._line(text)

    def evaluated(self, step: int, metric: str, values: Sequence[float]) -> None:
        """Runs were evaluated."""
        if values:
            self.metric = f"  dev {metric} {fmean(values):.2f}"

    def finish(self, metric: str, values: Sequence[float]) -> None:
        """A program is done."""
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr)
        shown = ", ".join(f"{value:.2f}" for value in values)
        self._line(f"  {metric} {shown}  ({_clock(time.monotonic() - self.started)})")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
