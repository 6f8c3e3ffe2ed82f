"""Models from Python: configure, fit, decode; and trained runs taken back from disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import alignment, checkpoint, evaluation, results, sweep
from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.alignments import Link
from attn_jax.data.corpus import Corpus, encode, pad
from attn_jax.data.datasets import Dataset
from attn_jax.data.text import PAD, TextCodec
from attn_jax.decoding import greedy
from attn_jax.errors import UserError, unknown
from attn_jax.seq2seq import Model, build, canonical, check
from attn_jax.shapes import Params
from attn_jax.training import Trainer


@dataclasses.dataclass(frozen=True)
class Output:
    """One decoded text.

    tokens: its symbols, `</s>` last if it ended. weights: [tokens, source symbols], of a score with heads [tokens,
    heads, source symbols]; None without attention.
    """

    text: str
    tokens: list[str]
    source: list[str]
    weights: np.ndarray | None


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

    def decode(self, texts: Sequence[str]) -> list[Output]:
        """Greedy outputs and their attention weights. Raises UserError on a text without symbols."""
        ids = [self.source.encode(text) for text in texts]
        for number, (text, row) in enumerate(zip(texts, ids, strict=True), 1):
            if not row:
                raise UserError(f"text {number} ({text!r}) has no symbols to decode")
        if not ids:
            return []
        source = jnp.asarray(pad(ids, max(map(len, ids))))

        @jax.jit
        def run(params: Params) -> Any:
            return greedy(self.model.bind(params), source, source != PAD, self.max_length)

        found = jax.tree.map(np.asarray, run(self.params))
        outputs = []
        for text, row, tokens, weights in zip(texts, ids, found.tokens, found.weights, strict=True):
            symbols = evaluation.trim(tokens)
            shown = [self.target.vocabulary.symbol(i) for i in symbols]
            shown += ["</s>"] * (len(symbols) < self.max_length)
            kept = weights[: len(shown), ..., : len(row)] if weights.shape[-1] else None
            outputs.append(Output(self.target.decode(symbols), shown, self.source.tokens(text), kept))
        return outputs

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

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics on a split of the data that the run was fitted to. Raises UserError on an unknown split."""
        if self.corpus is None:
            raise UserError("this run was loaded without its data: use attn_jax.load and decode")
        splits = [name for name in self.corpus.encoded if name != "train"]
        if split not in splits:
            raise unknown("split", split, splits)
        evaluator = evaluation.Evaluator(self.model, self.corpus, split, max_output=self.max_length)
        return evaluator({name: value[None] for name, value in self.params.items()})[0].metrics


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
