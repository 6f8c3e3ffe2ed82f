"""Models from Python: configure, fit, decode; and trained runs taken back from disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from attn_jax import alignment, checkpoint, evaluation, export, provenance, results, storage, sweep
from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.alignments import Link
from attn_jax.data.corpus import Corpus, encode, encode_split
from attn_jax.data.datasets import Dataset
from attn_jax.data.text import TextCodec
from attn_jax.errors import UserError, unknown
from attn_jax.search import with_changes
from attn_jax.seq2seq import Model, build, canonical, check, check_search
from attn_jax.shapes import Params
from attn_jax.training import Trainer, check_sources
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

    def align(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        method: str = "argmax",
        offset: str = "predicted",
        threshold: float = 0.0,
    ) -> list[frozenset[Link]]:
        """The links (source word, target word), from 0, between given texts and targets: see `alignment.align`."""
        options: dict[str, Any] = {"method": method, "offset": offset, "threshold": threshold}
        return alignment.align(self.model, self.params, self.source, self.target, pairs, **options)

    def evaluate(self, split: str = "test", *, dataset: Dataset | None = None) -> dict[str, float]:
        """The metrics on a split of a data set, by default of the one that the run was fitted to.

        A run that was loaded has none. Raises UserError on an unknown split, and without data.
        """
        data = dataset or (self.corpus.dataset if self.corpus else None)
        if data is None:
            raise UserError("this run was loaded without its data: give dataset=attn_jax.load(...)")
        splits = [name for name in data.splits if name != "train"]
        if split not in splits:
            raise unknown("split", split, splits)
        corpus = encode_split(data, split, self.source, self.target)
        check_sources(self.config, corpus)
        evaluator = evaluation.Evaluator(self.model, corpus, max_output=self.max_length, seeds=[self.config.seed])
        return evaluator({name: value[None] for name, value in self.params.items()}, split)[0].metrics

    def export(self, path: str | Path) -> None:
        """Writes the model to one safetensors file, for `import_run`: parameters, configuration and vocabularies.

        Parameters have their names here as tensors; the rest is JSON in the metadata entry "attn_jax". Raises UserError
        where the file cannot be written.
        """
        vocabulary = {"source": self.source.to_json(), "target": self.target.to_json(), "max_length": self.max_length}
        about = {"config": configs.to_dict(self.config), "vocabulary": vocabulary, "versions": provenance.versions()}
        export.write_tensors(Path(path), self.params, about)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Runs whose probabilities are averaged at each step of a search, as are their weights."""

    runs: tuple[Run, ...]

    def translator(self, *, n_best: int = 1, seed: int | None = None, **changes: Any) -> Translator:
        """The runs with a search: that of the first one's configuration, some fields of section `decode` changed.

        n_best: outputs that a text is to have; for several a beam takes the place of a greedy search. seed: of samples,
        by default the first run's. Raises UserError on fields that do not go together.
        """
        first = self.runs[0]
        settings = with_changes(first.config.decode, changes)
        if n_best > 1 and settings.name == "greedy" and "name" not in changes:
            settings = with_changes(first.config.decode, {**changes, "name": "beam"})
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
            n_best: outputs a text, of a beam (which several make of a greedy search) or samples.
            unk_replace: whether each `<unk>` becomes the source symbol with the highest weight (Luong et al. 2015).
            batch_size: texts that are decoded at a time.
            seed: of samples; by default the first run's.
            changes: fields of section `decode` that differ from the configuration's, e.g. `beam_size=5`,
                `length_penalty="gnmt"`, `temperature=0.7`.

        Raises:
            UserError: a text has no symbols; options that do not go together; `unk_replace` without attention.
        """
        count = 1 if n_best is None else n_best
        translator = self.translator(n_best=count, seed=seed, **changes)
        found = translator(texts, n_best=count, unk_replace=unk_replace, batch_size=batch_size)
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
    a study follows, have no effect here, and the dev split is not looked at. Raises UserError if the configuration
    describes no model, or does not go with the data.
    """
    check(config)
    config = canonical(config)
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
    """A finished run, OUT/runs/<run id>, as a study left it, without its data; or one from a file, see `import_run`.

    Nothing is written: the directory may be read-only, and a copy may have another name. Raises UserError if files are
    missing or damaged, or if they do not belong together.
    """
    folder = Path(path)
    if folder.is_file():
        return import_run(folder)
    if not (folder / "result.json").exists():
        raise UserError(f"{folder}: no finished run there (result.json is missing)")
    stored, vocabulary = results.read_run(folder), storage.read_json(folder / "vocabulary.json")
    if configs.digest(vocabulary) != (stored.result or {}).get("vocabulary", configs.digest(vocabulary)):
        raise UserError(f"{folder / 'vocabulary.json'}: not the vocabulary that the run was trained with; put it back")
    params = checkpoint.load_parameters(folder / "parameters")
    return _assembled(str(folder), stored.config, vocabulary, params)


def import_run(path: str | Path) -> Run:
    """A model from the file that `Run.export` wrote. Raises UserError on any other file, and on a damaged one."""
    params, about = export.read_tensors(Path(path))
    storage.check(about, {"config": dict, "vocabulary": dict}, f"{path}: metadata")
    return _assembled(str(path), about["config"], about["vocabulary"], params)


def _assembled(where: str, config: Mapping[str, Any], vocabulary: Any, params: Params) -> Run:
    """A run from its stored parts. Raises UserError, naming the place, where they are damaged or do not fit."""
    try:
        storage.check(vocabulary, {"source": dict, "target": dict, "max_length": int}, "vocabulary")
        if vocabulary["max_length"] < 1:
            raise UserError(f"vocabulary: max_length={vocabulary['max_length']}: must be greater than 0")
        source, target = (TextCodec.from_json(vocabulary[side]) for side in ("source", "target"))
        parsed = configs.from_dict(config)
        model = build(parsed, len(source.vocabulary), len(target.vocabulary))
        _check_fit(model, params)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Run(parsed, model, params, source, target, vocabulary["max_length"])


def _check_fit(model: Model, params: Any) -> None:
    """Raises UserError naming the first parameter that is not as the model has it."""
    found = params if isinstance(params, Mapping) else {}
    expected = jax.eval_shape(model.init, jax.random.key(0))
    for name in [*expected, *found]:
        wanted, given = expected.get(name), found.get(name)
        if wanted is None:
            raise UserError(f"parameters: '{name}' is none of the model's, which are {', '.join(expected)}")
        if given is None:
            raise UserError(f"parameters: '{name}' is missing, expected {_form(wanted)}")
        if not hasattr(given, "dtype") or (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
            raise UserError(f"parameters: '{name}' is {_form(given)}, expected {_form(wanted)}")


def _form(array: Any) -> str:
    """Type and shape of an array, e.g. float32[3, 4]."""
    return f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else type(array).__name__
