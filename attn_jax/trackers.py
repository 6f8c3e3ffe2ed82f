"""Trackers: services that get the lines of every run's `metrics.jsonl` besides. The only file that imports them.

Each run is one run of the service, with the same numbers at the same steps, under the study's directory as its project
or experiment and the run's id as its name. A run that goes on from a checkpoint goes on there, too: lines that were
sent before are not sent again. Where a tracker keeps things, and whether it is online, its own variables say
(`WANDB_MODE`, `WANDB_DIR`, `MLFLOW_TRACKING_URI`).
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from attn_jax import storage
from attn_jax.errors import UserError, unknown


class Tracker(Protocol):
    """A run of a service."""

    def write(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """The values of a line of the log, by split/name. number: of the line, from 1."""

    def close(self) -> None:
        """There are no more lines for now."""


class Wandb:
    """Weights & Biases. What was sent cannot be read back offline: the number of lines is kept beside the log."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        import wandb

        self._sent = folder / "wandb.sent"
        said = self._sent.read_text() if self._sent.exists() else ""
        self._count = int(said) if said.isdecimal() else 0
        with _told("wandb"):
            self._run = wandb.init(
                project=_study(folder),
                id=folder.name,
                name=folder.name,
                config=dict(config),
                dir=os.environ.get("WANDB_DIR") or str(folder),
                resume="allow",
                reinit="create_new",  # the runs of a program are open together
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )

    def write(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """A line that was not sent before."""
        if number > self._count:
            with _told("wandb"):
                self._run.log(dict(values), step=step)
            self._count = number
            storage.write_text(self._sent, str(number))

    def close(self) -> None:
        """Waits until everything is sent, or on disk."""
        with _told("wandb"):
            self._run.finish()


class MLflow:
    """MLflow. What its store has is asked of it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        with _told("mlflow"):
            self._client = MlflowClient()
            name = _study(folder)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            runs = self._client.search_runs([experiment], f"attributes.run_name = '{folder.name}'")
            if runs:
                self._run = runs[0].info.run_id
                self._client.update_run(self._run, "RUNNING")
            else:
                self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
                params = [Param(path, str(value)) for path, value in config.items()]
                for start in range(0, len(params), 100):  # as many as it takes at once
                    self._client.log_batch(self._run, params=params[start : start + 100])
            names = self._client.get_run(self._run).data.metrics
            self._there = {
                (one.key, one.step) for name in names for one in self._client.get_metric_history(self._run, name)
            }

    def write(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """What its store has not."""
        now = int(time.time() * 1000)
        new = [
            self._metric(name, value, now, step) for name, value in values.items() if (name, step) not in self._there
        ]
        if new:
            with _told("mlflow"):
                self._client.log_batch(self._run, metrics=new)

    def close(self) -> None:
        """The run is ended; it may be taken up again."""
        with _told("mlflow"):
            self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": MLflow}

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny sqlalchemy alembic"}


def check(names: Sequence[str]) -> None:
    """Raises UserError if a tracker is not known or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--log_to: {unknown('tracker', name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--log_to={name}: it is not installed: python -m pip install {_PACKAGES[name]}")


def _study(folder: Path) -> str:
    """The name of the study's directory, of a run's."""
    return folder.resolve().parent.parent.name


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Raises UserError where a tracker refuses."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--log_to={name}: {type(error).__name__}: {reason}") from error
