"""Where a program stands: its intervals, the state that moves through them, and its checkpoints.

Everything that depends on results (logs, evaluations, early stopping) happens at the ends of *intervals*, which are a
function of the step alone. Within an interval training may be cut into dispatches, saved, stopped and resumed at any
step, and gives the same numbers to the last bit.
"""

import contextlib
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from attn_jax import config as configs
from attn_jax import processes, provenance, storage
from attn_jax.checkpoint import Checkpoints
from attn_jax.clock import Clock
from attn_jax.config import Config
from attn_jax.errors import UserError
from attn_jax.interruption import HANDLER
from attn_jax.results import Log
from attn_jax.selection import Selection
from attn_jax.shapes import PyTree
from attn_jax.training import States, Steps, Trainer

INTERVAL = 100
"""Steps of an interval, at most; also the length of the compiled program."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The intervals of `total` steps: evaluations every `every` steps, which need not be whole, and logs between."""

    total: int
    every: float
    length: int

    @classmethod
    def of(cls, trainer: Trainer, *, evaluates: bool) -> "Schedule":
        """The schedule of a program; without evaluations one at the end takes their place."""
        every: float = trainer.total_steps
        if evaluates:
            every = min(every, trainer.config.train.eval_every or max(1, trainer.plan.steps_per_epoch))
        return cls(trainer.total_steps, every, math.ceil(every / math.ceil(every / INTERVAL)))

    def _evaluation_after(self, step: int) -> int:
        number = int(step / self.every)
        while (at := min(self.total, math.ceil(number * self.every - 1e-6))) <= step < self.total:
            number += 1
        return at

    def end(self, step: int) -> int:
        """The end of the interval that begins at a step."""
        return min(step + self.length, self._evaluation_after(step))

    def evaluates(self, step: int) -> bool:
        """Whether an interval that ends here ends with an evaluation."""
        return self._evaluation_after(step - 1) == step


@dataclasses.dataclass
class Position:
    """All that a program needs to go on.

    states: of training, after `step` steps. settled: the end of the last interval that is done with; reports: of the
    steps since then.
    """

    states: States
    selection: Selection
    step: int = 0
    settled: int = 0
    reports: list[Steps] = dataclasses.field(default_factory=list)

    @classmethod
    def first(cls, trainer: Trainer, metric: str) -> "Position":
        """Before the first step."""
        states = trainer.start()
        patience = trainer.config.train.patience
        return cls(states, Selection.start(len(trainer.members), metric, patience, states.params))

    def take_reports(self) -> Steps:
        """The reports of the interval in one, each [steps, R]; they are forgotten."""
        taken, self.reports = self.reports, []
        return jax.tree.map(lambda *parts: np.concatenate(parts), *taken)


@dataclasses.dataclass(frozen=True)
class Saving:
    """When checkpoints are written, and how many of a program are kept.

    every: steps between them; 0: about once a minute.
    """

    every: int = 0
    keep: int = 2


SAVING = Saving()

SECONDS = 60.0
"""Between two checkpoints where no number of steps is given."""


class Vault:
    """Keeps a program's position on disk, by the clock or by steps, and whenever a signal asks to stop.

    As a context: inside, a signal waits for the next `keep`.
    """

    def __init__(self, folder: Path, members: Sequence[Config], trainer: Trainer, clock: Clock, saving: Saving):
        self.folder, self.trainer, self.clock, self.saving = folder, trainer, clock, saving
        self.members = [configs.run_id(member, trainer.corpus.fingerprint) for member in members]
        self.checkpoints = Checkpoints(folder / "checkpoints", saving.keep)
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(HANDLER.deferred())
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            self.checkpoints.close()
        except UserError:
            if kind is None:  # else it is a consequence, and hides what came first
                raise
        finally:
            self._stack.__exit__(kind, *rest)

    def restore(self, metric: str) -> Position | None:
        """The position of the newest checkpoint; None without one. Raises UserError if it is not this program's."""
        found = self.checkpoints.restore(self._abstract, self._refused)
        if found is None:
            return None
        tree, about = found
        now = (provenance.git_commit(), provenance.versions())
        if (about["git"], about["versions"]) != now:
            print(f"  the checkpoint is by another version of code or libraries ({about['git']})", file=sys.stderr)
        self.clock.resume(about["clock"])
        self._saved_step = about["step"]
        states = States(**tree["states"])
        start = Selection.start(len(self.members), metric, self.trainer.config.train.patience, {})
        selection = start.restored(about["selection"], tree["selected"])
        count = about["step"] - about["settled"]
        reports = jax.tree.map(lambda part: np.asarray(part)[:count], Steps(**tree["reports"]))
        return Position(states, selection, about["step"], about["settled"], [reports] if count else [])

    def _refused(self, about: Mapping[str, Any]) -> str:
        kinds = {"members": list, "step": int, "settled": int, "selection": dict, "clock": dict}
        storage.check(about, kinds | {"git": str, "versions": dict}, "what it says about itself")
        return "" if about["members"] == self.members else "this checkpoint is of a program with other runs"

    def _tree(self, states: States, selected: PyTree, reports: Mapping[str, Any]) -> PyTree:
        return {"states": states._asdict(), "selected": selected, "reports": dict(reports)}

    def _abstract(self) -> PyTree:
        """Shapes, types and devices of what is saved."""
        states = jax.eval_shape(self.trainer.start)
        part = jax.ShapeDtypeStruct((INTERVAL, len(self.members)), np.float32)
        tree = self._tree(states, states.params, dict.fromkeys(Steps._fields, part))
        place = self.trainer.placement
        reports = place.abstract(tree.pop("reports"))
        return place.abstract(tree, "run") | {"reports": reports}

    def keep(self, now: Position, logs: Mapping[int, Log]) -> None:
        """Writes a checkpoint if one is due, or a signal came, which raises Interrupted then. Raises UserError."""
        if not (self.folder / "program.json").exists():
            raise UserError(f"{self.folder}: was removed while its program trained; start the command again")
        # All processes do what one of them was asked to, and what the first one's clock says.
        leads = processes.leads()
        signal, due, self.clock.dispatch = processes.highest(
            [HANDLER.pending or 0, leads and self._due(now.step), leads and self.clock.dispatch]
        )
        if due or (signal and now.step > self._saved_step):
            self._save(now, logs.values())
        if not signal:
            return
        self.checkpoints.close()
        HANDLER.pending = signal
        HANDLER.check(f"at step {now.step} of {self.trainer.total_steps} of program {self.folder.name}, which is saved")

    def _due(self, step: int) -> bool:
        if step == self._saved_step:
            # The same step after an evaluation: what is there would be gone before the new one is written.
            return False
        if self.saving.every:
            return step // self.saving.every > self._saved_step // self.saving.every
        return time.monotonic() - self._saved_at >= SECONDS

    def _save(self, now: Position, logs: Iterable[Log]) -> None:
        # The lines up to the checkpoint's step must be on disk before it is.
        for log in logs:
            log.sync()
        reports = {}
        for name in Steps._fields:
            reports[name] = np.zeros((INTERVAL, len(self.members)), np.float32)
            parts = [getattr(report, name) for report in now.reports]
            reports[name][: now.step - now.settled] = np.concatenate([reports[name][:0], *parts])
        about = {
            "members": self.members,
            "step": now.step,
            "settled": now.settled,
            "selection": now.selection.to_json(),
            "clock": self.clock.to_json(),
            "git": provenance.git_commit(),
            "versions": provenance.versions(),
        }
        self.checkpoints.save(
            now.step, self._tree(now.states, now.selection.params, self.trainer.placement.put(reports)), about
        )
        self._saved_at, self._saved_step = time.monotonic(), now.step

    def remove(self) -> None:
        """Removes the checkpoints of a program whose runs have their results."""
        if processes.leads():
            shutil.rmtree(self.checkpoints.directory, ignore_errors=True)
            storage.remove_leftovers(self.folder)
