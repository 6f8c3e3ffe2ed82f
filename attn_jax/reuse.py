"""Models from Python: configure, fit, decode; and trained runs taken back from disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from attn_jax import checkpoint, evaluation, results, sweep
from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, encode
from attn_jax.data.datasets import Dataset
from attn_jax.data.text import TextCodec
from attn_jax.errors import UserError, unknown
from attn_jax.search import with_changes
from attn_jax.seq2seq import Model, build, canonical, check, check_search
from attn_jax.shapes import Params
from attn_jax.training import Trainer
from attn_jax.translator import BATCH, Output, Translator


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to use it.

    corpus, losses: its data, and the training loss per token at every step, if it was trained just now.
    """

    config: Config
    model: Model
    params: Params
    source: TextCodec
    target: TextCodec
    max_length: int
    corpus: Corpus | None = None
    losses: np.ndarray | None = None

    @overload
    def decode(self, texts: Sequence[str], *, n_best: None = None, **options: Any) -> list[Output]: ...

    @overload
    def decode(self, texts: Sequence[str], *, n_best: int, **options: Any) -> list[list[Output]]: ...

    def decode(
        self, texts: Sequence[str], *, n_best: int | None = None, **options: Any
    ) -> list[Output] | list[list[Output]]:
        """The output of every text, or with `n_best` a list of so many, the best first; see `Ensemble.decode`."""
        return ensemble([self]).decode(texts, n_best=n_best, **options)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics on a split of the data that the run was fitted to. Raises UserError on an unknown split."""
        if self.corpus is None:
            raise UserError("this run was loaded without its data: use attn_jax.load and decode")
        splits = [name for name in self.corpus.encoded if name != "train"]
        if split not in splits:
            raise unknown("split", split, splits)
        evaluator = evaluation.Evaluator(
            self.model, self.corpus, split, max_output=self.max_length, seeds=[self.config.seed]
        )
        return evaluator({name: value[None] for name, value in self.params.items()})[0].metrics


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Runs whose probabilities are averaged at each step of a search, as are their weights."""

    runs: tuple[Run, ...]

    def translator(self, *, seed: int | None = None, **changes: Any) -> Translator:
        """The runs with a search: that of the first one's configuration, some fields of section `decode` changed.

        seed: of samples, by default the first run's. Raises UserError on fields that do not go together.
        """
        first = self.runs[0]
        settings = with_changes(first.config.decode, changes)
        if seed is not None and settings.name != "sample":
            raise UserError(f"seed={seed}: decode={settings.name} draws nothing; use decode=sample")
        for run in self.runs:
            check_search(dataclasses.replace(run.config, decode=settings))
        return Translator(
            models=tuple(run.model for run in self.runs),
            params=tuple(run.params for run in self.runs),
            source=first.source,
            target=first.target,
            limit=(settings.max_length if "max_length" in changes else 0) or max(run.max_length for run in self.runs),
            settings=dataclasses.replace(settings, max_length=0),
            seed=first.config.seed if seed is None else seed,
        )

    @overload
    def decode(self, texts: Sequence[str], *, n_best: None = None, **options: Any) -> list[Output]: ...

    @overload
    def decode(self, texts: Sequence[str], *, n_best: int, **options: Any) -> list[list[Output]]: ...

    def decode(
        self,
        texts: Sequence[str],
        *,
        n_best: int | None = None,
        unk_replace: bool = False,
        batch_size: int = BATCH,
        seed: int | None = None,
        **changes: Any,
    ) -> list[Output] | list[list[Output]]:
        """The output of every text, or with `n_best` a list of so many (fewer if there are no more), the best first.

        Args:
            texts: sources, in any number and order.
            n_best: outputs a text, of a beam or samples.
            unk_replace: whether each `<unk>` becomes the source symbol with the highest weight (Luong et al. 2015).
            batch_size: texts that are decoded at a time.
            seed: of samples; by default the first run's.
            changes: fields of section `decode` that differ from the configuration's, e.g. `beam_size=5`,
                `length_penalty="gnmt"`, `temperature=0.7`.

        Raises:
            UserError: a text has no symbols; options that do not go together; `unk_replace` without attention.
        """
        translator = self.translator(seed=seed, **changes)
        found = translator(
            texts, n_best=1 if n_best is None else n_best, unk_replace=unk_replace, batch_size=batch_size
        )
        return [outputs[0] for outputs in found] if n_best is None else found


def ensemble(runs: Sequence[Run]) -> Ensemble:
    """An ensemble. Raises UserError unless there are runs and all have the same vocabularies."""
    if not runs:
        raise UserError("an ensemble needs at least one run")
    for number, run in enumerate(runs[1:], 2):
        for side in ("source", "target"):
            if getattr(run, side).to_json() != getattr(runs[0], side).to_json():
                raise UserError(
                    f"ensemble: run {number} has another {side} vocabulary than run 1; members must be trained on "
                    "the same data, encoded alike"
                )
    return Ensemble(tuple(runs))


def configure(dataset: Dataset, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a data set recommends, with changes by path. Raises UserError if it describes no model."""
    config = sweep.base(dataset, changes or {})
    check(config)
    return canonical(config)


def fit(config: Config, dataset: Dataset) -> Run:
    """Trains one run to its last step, and keeps the parameters of that step.

    There are no evaluations on the way: `train.select`, `train.metric`, `train.eval_every` and `train.patience`, which
    a study follows, have no effect here, and the dev split is not looked at.
    """
    corpus = encode(dataset, config)
    trainer = Trainer([config], corpus)
    states, losses = trainer.start(), []
    length = min(100, trainer.total_steps)
    for start in range(0, trainer.total_steps, length):
        states, steps = trainer.chunk(states, start, min(length, trainer.total_steps - start), length)
        losses.append(steps.loss[:, 0])
    params = {name: value[0] for name, value in states.params.items()}
    limit = evaluation.max_length(config, corpus)
    return Run(config, trainer.model, params, corpus.source, corpus.target, limit, corpus, np.concatenate(losses))


def load_run(path: str | Path) -> Run:
    """A finished run, OUT/runs/<run id>, as a study left it, without its data. Raises UserError if it is incomplete."""
    folder = Path(path)
    if not (folder / "result.json").exists():
        raise UserError(f"{folder}: no finished run there (result.json is missing)")
    config = configs.from_dict(results.read_json(folder / "config.json"))
    vocabulary = results.read_json(folder / "vocabulary.json")
    source, target = (TextCodec.from_json(vocabulary[side]) for side in ("source", "target"))
    model = build(config, len(source.vocabulary), len(target.vocabulary))
    params = checkpoint.load_parameters(folder / "parameters")
    return Run(config, model, params, source, target, vocabulary["max_length"])
