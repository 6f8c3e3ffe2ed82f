"""Which parameters of a run are tested, and when a run stops."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.metrics import higher_is_better
from attn_jax.results import NOT_FINITE
from attn_jax.shapes import Array, Params


@dataclasses.dataclass
class Selection:
    """The state of the selection, one entry a run.

    best: the best value of the metric so far. params, step: the selected parameters, with a leading R axis, and their
    step. waited: evaluations since then without a better value. stopped: why and at which step the run
    stopped, if it did.
    """

    metric: str
    patience: int
    best: np.ndarray
    step: np.ndarray
    waited: np.ndarray
    stopped: list[dict[str, Any] | None]
    params: Params

    @classmethod
    def start(cls, runs: int, metric: str, patience: int, params: Params) -> "Selection":
        """Nothing evaluated yet."""
        worst = -np.inf if higher_is_better(metric) else np.inf
        copied = jax.tree.map(jnp.copy, params)  # training gives its own buffers away
        counts = np.zeros((2, runs), np.int64)
        return cls(metric, patience, np.full(runs, worst), counts[0], counts[1], [None] * runs, copied)

    def to_json(self) -> dict[str, Any]:
        """All but the parameters. Numbers are written so that they come back to the last bit."""
        return {
            "best": [float(value).hex() for value in self.best],
            "step": self.step.tolist(),
            "waited": self.waited.tolist(),
            "stopped": self.stopped,
        }

    def restored(self, values: Mapping[str, Any], params: Params) -> "Selection":
        """The selection whose `to_json` gave these values, with its parameters."""
        return dataclasses.replace(
            self,
            best=np.array([float.fromhex(value) for value in values["best"]]),
            step=np.array(values["step"], np.int64),
            waited=np.array(values["waited"], np.int64),
            stopped=list(values["stopped"]),
            params=params,
        )

    @property
    def going(self) -> np.ndarray:
        """Whether each run goes on: [R] bool."""
        return np.array([stop is None for stop in self.stopped])

    def take(self, chosen: np.ndarray, params: Params, step: int) -> None:
        """Makes the present parameters of the chosen runs the selected ones."""
        if chosen.any():
            self.params = _where(chosen, params, self.params)
            self.step[chosen] = step

    def take_last(self, params: Params, step: int, *, every_run: bool) -> None:
        """At the end: selects the present parameters, of every run or of those that were never evaluated."""
        chosen = np.full(len(self.stopped), every_run) | ~np.isfinite(self.best)
        self.take(chosen, params, step)
        ends = np.array([stop["step"] if stop else step for stop in self.stopped])
        self.step[chosen] = ends[chosen]

    def update(self, values: np.ndarray, params: Params, step: int) -> None:
        """After an evaluation: takes what is better than before, and stops runs whose patience is over."""
        going = self.going
        better = going & (values > self.best if higher_is_better(self.metric) else values < self.best)
        self.best[better] = values[better]
        self.take(better, params, step)
        self.waited = np.where(better, 0, self.waited + going)
        if self.patience:
            reason = f"no better {self.metric} in {self.patience} evaluations"
            for run in np.flatnonzero(going & (self.waited >= self.patience)):
                self.stopped[int(run)] = {"reason": reason, "step": step}

    def note_failures(self, failed: np.ndarray) -> None:
        """Stops the runs that met a number that is not finite; failed: [R] steps at which they did, or -1."""
        for run, step in enumerate(failed.tolist()):
            if step >= 0 and self.stopped[run] is None:
                self.stopped[run] = {"reason": NOT_FINITE, "step": step}


@jax.jit
def _where(chosen: Array | np.ndarray, new: Params, old: Params) -> Params:
    """Leaves of `new` for the chosen runs, of `old` for the others."""
    return jax.tree.map(lambda n, o: jnp.where(chosen.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
