"""One run of a study, as its files tell it."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attn_jax import config as configs
from attn_jax import metrics, results, storage
from attn_jax.errors import UserError
from attn_jax.metrics import LOSS_METRICS
from attn_jax.storage import read_json, read_lines


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its flat configuration, the fingerprint of its data and, once it is done, its result.

    config: without the fields that matter to other kinds of model alone.
    """

    run_id: str
    folder: Path
    config: Mapping[str, Any]
    fingerprint: str
    result: Mapping[str, Any] | None

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.config["data.dataset"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    def value(self, split: str, metric: str) -> float | None:
        """The result's value; None where there is none or it is not finite."""
        found = ((self.result or {}).get("metrics", {}).get(split) or {}).get(metric)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        path = self.folder / "metrics.jsonl"
        lines = read_lines(path, {"step": int, "split": str})
        for number, line in enumerate(lines, 1):
            storage.check(line, dict.fromkeys(line.keys() - {"split"}, results.NUMBER), f"{path}:{number}")
        return lines

    def predictions(self, split: str) -> list[dict[str, Any]]:
        """The lines of `predictions.<split>.jsonl`."""
        kinds = {"source_length": int, "target_length": int, "prediction": str, "references": list[str]}
        path = self.folder / f"predictions.{split}.jsonl"
        lines = read_lines(path, kinds)
        for number, line in enumerate(lines, 1):
            if not line["references"]:
                raise UserError(f"{path}:{number}: expected 'references' with one text or more")
        return lines

    def statistics(self, split: str, metric: str) -> np.ndarray:
        """What `metrics.per_sentence` says of every sentence; empty without predictions. Computed once."""
        if (split, metric) not in self._statistics:
            lines, found = self.predictions(split), np.zeros((0, 0))
            if lines:
                options = metrics.options((self.result or {}).get("signatures", {}))
                outputs, references = [line["prediction"] for line in lines], [line["references"] for line in lines]
                found = metrics.per_sentence(metric, outputs, references, **options)
            self._statistics[split, metric] = found
        return self._statistics[split, metric]

    def scoring(self, metric: str) -> str:
        """How a metric was computed: its signature, but for the version of the library; "" without one.

        Of the metrics of teacher forcing, which are means over target symbols, what those are.
        """
        if metric in LOSS_METRICS:
            return configs.target_symbols(self.config)
        signature = (self.result or {}).get("signatures", {}).get(metric, "")
        return "|".join(part for part in signature.split("|") if not part.startswith("version:"))

    @functools.cached_property
    def _statistics(self) -> dict[tuple[str, str], np.ndarray]:
        return {}

    @functools.cached_property
    def attention(self) -> list[dict[str, Any]]:
        """The examples of `attention.json`, weights as [N][T][S]; none where the model has no attention."""
        path = self.folder / "attention.json"
        if not path.exists():
            return []
        examples = read_json(path, {"examples": list})["examples"]
        for example in examples:
            storage.check(example, results.MAP, str(path))
            # A map without a row is one head's: its sentence has no output.
            deep = any(isinstance(row[0], list) for row in example["weights"] if row)
            example["weights"] = heads = example["weights"] if deep else [example["weights"]]
            shape = (len(example["target"]), {len(example["source"])})
            if any(len(rows) != shape[0] or {len(row) for row in rows} - shape[1] for rows in heads):
                raise UserError(f"{path}: expected 'weights' with a row for each target symbol, as long as the source")
        return list(examples)

    @property
    def failed(self) -> bool:
        """Whether training met a loss or gradient that was not finite."""
        stopped = (self.result or {}).get("stopped")
        return stopped is not None and stopped["reason"] == results.NOT_FINITE

    @property
    def early(self) -> bool:
        """Whether training ended by early stopping, as it was asked to."""
        return (self.result or {}).get("stopped") is not None and not self.failed

    @property
    def status(self) -> str:
        """Finished, stopped or failed (where and why), or unfinished (where)."""
        if self.result is None:
            last = self.history[-1].get("step", 0) if self.history else 0
            return f"unfinished, last record at step {last}"
        stopped = self.result.get("stopped")
        return (
            f"{'failed' if self.failed else 'stopped'} at step {stopped['step']}: {stopped['reason']}"
            if stopped
            else "finished"
        )
