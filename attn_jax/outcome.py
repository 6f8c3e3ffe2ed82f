"""What a run leaves on disk: predictions, attention maps, parameters, vocabularies and, last, `result.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from attn_jax import checkpoint, evaluation, extensions, processes, provenance, results, storage
from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.errors import UserError
from attn_jax.evaluation import Evaluated
from attn_jax.metrics import signature
from attn_jax.results import Output
from attn_jax.shapes import Params


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A trained and tested run.

    evaluated: results by split, the first test split first. maps: attention of some examples of that split. stopped:
    None, or the reason and step of an early stop. steps: optimiser steps that changed the parameters or would have.
    """

    config: Config
    params: Params
    evaluated: dict[str, Evaluated]
    maps: list[dict[str, Any]]
    selected_step: int
    steps: int
    stopped: dict[str, Any] | None


def write(output: Output, outcome: Outcome, corpus: Corpus, program: str) -> None:
    """Writes the run's files. Processes that train as one must all call this; the first one writes.

    Raises UserError where they cannot be written, and if the directory has gone.
    """
    run_id = configs.run_id(outcome.config, corpus.fingerprint)
    folder = output.run(run_id)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: was removed while the run was trained; start the command again")
    vocabulary = {
        "source": corpus.source.to_json(),
        "target": corpus.target.to_json(),
        "max_length": evaluation.max_length(outcome.config, corpus),
    }
    if processes.leads():
        _write_beside(folder, outcome, corpus, vocabulary)
    checkpoint.save_parameters(folder / "parameters", outcome.params)
    if processes.leads():
        result = _result(run_id, outcome, corpus, program) | {"vocabulary": configs.digest(vocabulary)}
        storage.write_json(folder / "result.json", results.sealed(result))


def _write_beside(folder: Path, outcome: Outcome, corpus: Corpus, vocabulary: dict[str, Any]) -> None:
    """All but parameters and result."""
    for split, evaluated in outcome.evaluated.items():
        results.write_predictions(
            folder / f"predictions.{split}.jsonl",
            [example.source for example in corpus.dataset.splits[split]],
            evaluation.references(corpus, split),
            evaluated.predictions,
            [(len(source), len(target) - 1) for source, target in corpus.encoded[split]],
        )
    if outcome.maps:
        text = json.dumps({"examples": outcome.maps}, ensure_ascii=False, separators=(",", ":"))
        storage.write_text(folder / "attention.json", text + "\n")
    storage.write_json(folder / "vocabulary.json", vocabulary)


def _result(run_id: str, outcome: Outcome, corpus: Corpus, program: str) -> dict[str, Any]:
    info, first = corpus.dataset.info, next(iter(outcome.evaluated))
    references, options = evaluation.references(corpus, first), evaluation.scoring(corpus, outcome.config)
    names = evaluation.output_metrics(corpus, outcome.config.train.metric)
    return {
        "run_id": run_id,
        "dataset": {
            "name": info.name,
            "fingerprint": corpus.fingerprint,
            "sizes": {split: len(examples) for split, examples in corpus.dataset.splits.items()},
            "notes": [*info.notes, *_notes(corpus)],
            "metric": info.metric,
            "citation": info.citation,
            "licence": info.licence,
        },
        "metrics": {split: evaluated.metrics for split, evaluated in outcome.evaluated.items()},
        "signatures": {name: signature(name, references, **options) for name in names},
        "selected_step": outcome.selected_step,
        "steps": outcome.steps,
        "parameters": int(sum(np.prod(value.shape) for value in outcome.params.values())),
        "stopped": outcome.stopped,
        "program": program,
        "versions": provenance.versions(),
        "loaded": dict(extensions.LOADED),
        "device": provenance.device(),
        "git": provenance.git_commit(),
    }


def _notes(corpus: Corpus) -> list[str]:
    notes = [f"vocabulary: {len(corpus.source.vocabulary)} source, {len(corpus.target.vocabulary)} target symbols"]
    if corpus.left_out:
        notes.append(f"{corpus.left_out} training pairs left out by length")
    return notes
