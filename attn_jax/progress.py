"""How a study goes, on a terminal as one live display, elsewhere as lines of a log.

A board tells of a study's programs, whether they are trained here, one after another, or several at a time elsewhere.
What happens to a program is told to its row, a `program.Progress`.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Self

from attn_jax.config import Config, differences, get

PERIOD = 0.2
"""Seconds between two changes of what a terminal shows."""

LOG_PERIOD = 10.0
"""Seconds between two lines of a program's progress in a log."""


class Silent:
    """Tells nothing: the progress of a process whose work another one tells of."""

    total = number = 0

    def begin(self, *_: object) -> None:
        """A program starts."""

    advance = evaluated = finish = begin

    def program(self, name: str) -> "Silent":
        """The row of a program."""
        return self


class Told:
    """The progress of a program, as values that JSON can say, for another process, see `Board.told`."""

    def __init__(self, tell: Callable[[list[Any]], None]):
        self._tell, self._last, self._steps = tell, 0.0, 0

    def begin(self, members: Sequence[Config], steps: int, step: int = 0) -> None:
        """A program starts, or goes on from a step."""
        self._steps = steps
        self._tell(["begin", steps, step])

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done. Not all of them need to be told."""
        now = time.monotonic()
        if now - self._last >= PERIOD or step >= self._steps:
            self._last = now
            self._tell(["advance", step, loss, tokens_per_second])

    def evaluated(self, step: int, metric: str, values: Sequence[float]) -> None:
        """Runs were evaluated."""
        self._tell(["evaluated", step, metric, list(values)])

    def finish(self, metric: str, values: Sequence[float]) -> None:
        """A program is done."""
        self._tell(["finish", metric, list(values)])


class Row:
    """What is known of a program in hand. number: from 1, in the order of their first steps."""

    def __init__(self, board: "Board", number: int):
        self.board, self.number = board, number
        self.steps = self.first = self.step = self.runs = 0
        self.started, self.metric, self.text, self.speed, self.loss = time.monotonic(), "", "", 0.0, math.nan

    def begin(self, members: Sequence[Config], steps: int, step: int = 0) -> None:
        """A program starts, or goes on from a step."""
        self.steps, self.first, self.step, self.runs = steps, step, step, len(members)
        self.started, self.metric = time.monotonic(), ""
        self.text = described(members)
        self.board.line(f"program {self.number} of {self.board.total}: {self.text} | {steps} steps")
        if step:
            self.line(f"goes on from step {step}")

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done."""
        self.step, self.loss, self.speed = step, loss, tokens_per_second

    def evaluated(self, step: int, metric: str, values: Sequence[float]) -> None:
        """Runs were evaluated."""
        if values:
            self.metric = f"dev {metric} {fmean(values):.2f}"

    def finish(self, metric: str, values: Sequence[float]) -> None:
        """A program is done."""
        shown = ", ".join(f"{value:.2f}" for value in values)
        self.line(f"{metric} {shown}  ({clock(time.monotonic() - self.started)})")
        self.board.done(self)

    def left(self) -> float:
        """Seconds, as the steps until now tell; infinite before the first one."""
        done = self.step - self.first
        return (time.monotonic() - self.started) / done * (self.steps - self.step) if done else math.inf

    def line(self, text: str) -> None:
        """A line about this program, which says so where several are in hand."""
        self.board.line(f"  {text}" if self.board.workers == 1 else f"  program {self.number}: {text}")


class Console(Row):
    """The row of a program in a log: a line now and then."""

    _last = 0.0

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done."""
        super().advance(step, loss, tokens_per_second)
        now = time.monotonic()
        if now - self._last < LOG_PERIOD and step < self.steps:
            return
        self._last = now
        metric = self.metric and f"  {self.metric}"
        self.line(
            f"step {step}/{self.steps}  loss {loss:.3f}  {tokens_per_second:,.0f} target tokens/s  "
            f"{clock(self.left())} left{metric}"
        )


class LiveRow(Row):
    """The row of a program in a live display."""

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done."""
        super().advance(step, loss, tokens_per_second)
        self.board.show()


class Board:
    """A study's programs as lines of a log. total: programs of the study; number: of those begun; workers: at a time.

    As a context: inside, the display is there.
    """

    row: type[Row] = Console

    def __init__(self, workers: int = 1):
        self.workers, self.total, self.number = workers, 0, 0
        self.began = time.monotonic()
        self.rows: dict[str, Row] = {}
        self.seconds: list[float] = []  # that finished programs took
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def program(self, name: str) -> Row:
        """The row of a program that begins; one that begins again keeps its number."""
        self.number = len(self._numbers | {name: 0})
        row = self.row(self, self._numbers.setdefault(name, self.number))
        self.rows[name] = row
        return row

    def told(self, name: str, members: Sequence[Config], told: Sequence[Any]) -> None:
        """What `Told` said in another process."""
        kind, *values = told
        if kind == "begin":
            self.program(name).begin(members, *values)
        elif name in self.rows:
            getattr(self.rows[name], kind)(*values)

    def done(self, row: Row) -> None:
        """A program is no longer in hand: it is done."""
        self.rows = {name: other for name, other in self.rows.items() if other is not row}
        self.seconds.append(time.monotonic() - row.started)

    def lost(self, name: str) -> None:
        """A program is no longer in hand, and not done."""
        self.rows.pop(name, None)

    def left(self) -> float:
        """Seconds until the study is done, if the other programs take as long as those until now, as many at a time.

        Infinite while that is not known.
        """
        now = [row.left() for row in self.rows.values()]
        whole = [*self.seconds, *(time.monotonic() - row.started + row.left() for row in self.rows.values())]
        known = [seconds for seconds in whole if math.isfinite(seconds)]
        waiting = max(0, self.total - len(self.seconds) - len(self.rows))
        if not known or not all(map(math.isfinite, now)):
            return math.inf
        return max([sum(now, waiting * fmean(known)) / max(1, len(self.rows)), *now])

    def line(self, text: str) -> None:
        """A line that stays."""
        print(text, file=sys.stderr, flush=True)

    def show(self) -> None:
        """Something has changed."""


class Display(Board):
    """A study's programs on a terminal: a line for the study, one for each program in hand, above them what stays."""

    row = LiveRow

    def __init__(self, workers: int = 1):
        from rich.console import Console as Terminal
        from rich.live import Live

        class Screen(Terminal):
            def show_cursor(self, show: bool = True) -> bool:
                """Leaves the cursor alone: a process that is killed could not bring it back."""
                return False

        super().__init__(workers)
        self.terminal = Screen(stderr=True, highlight=False)
        self.live = Live(
            console=self.terminal,
            get_renderable=self.drawn,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )
        self._last = 0.0

    def __enter__(self) -> Self:
        """The display is there, and lines that anything here writes to standard error go above it."""
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The lines that stay are left."""
        self.live.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.terminal.print(text, markup=False, soft_wrap=True)
        self.live.refresh()

    def show(self) -> None:
        """Draws, unless it has just drawn."""
        now = time.monotonic()
        if now - self._last >= PERIOD:
            self._last = now
            self.live.refresh()

    def done(self, row: Row) -> None:
        """A program is no longer in hand: it is done."""
        super().done(row)
        self.live.refresh()

    def drawn(self) -> Any:
        """What the display shows now."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for justify in ("right", "right", "right", "right", "right", "left", "left"):
            table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in sorted(self.rows.values(), key=lambda row: row.number):
            table.add_row(
                Text(f"program {row.number}"),
                Text(f"{row.runs} run(s)"),
                Text(f"step {row.step}/{row.steps}"),
                Text(f"loss {row.loss:.3f}" if row.speed else ""),
                Text(f"{row.speed:,.0f} tokens/s" if row.speed else ""),
                Text(f"{clock(row.left())} left" if row.speed else ""),
                Text(row.metric),
            )
        head = (
            f"{len(self.seconds)} of {self.total} program(s) done, {clock(time.monotonic() - self.began)} gone, "
            f"{clock(self.left())} left"
        )
        return Group(Text(head), table)


def board(workers: int = 1) -> Board:
    """What fits standard error: a display on a terminal, else a log."""
    return Display(workers) if sys.stderr.isatty() else Board(workers)


def described(members: Sequence[Config]) -> str:
    """A program in words: its data, what it is about, and what varies in it."""
    seeds = [member.seed for member in members]
    varied = [path for path in differences(list(members)) if path != "seed"]
    first = members[0]
    kind = [first.score.name, first.cell.name] if first.model == "recurrent" else [first.model]
    parts = [first.data.dataset, *kind, f"{len(members)} runs"]
    if len(set(seeds)) > 1:
        parts.append(f"seeds {min(seeds)}-{max(seeds)}")
    parts += [f"{path} {', '.join(str(get(m, path)) for m in members)}" for path in varied]
    return " | ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours too."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
