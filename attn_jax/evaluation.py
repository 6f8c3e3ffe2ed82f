"""Evaluation of runs of equal structure on one split: teacher-forced loss, greedy output, and the metrics of both."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import metrics
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, buckets, pad
from attn_jax.data.text import EOS, PAD
from attn_jax.decoding import greedy
from attn_jax.devices import Placement, fetch
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params
from attn_jax.training import batch_loss

BATCH = 128

COMPANIONS = (("bleu", "chrf"), ("wer", "per"), ("exact_match",))
"""Metrics of output text that are computed together."""

LOSS_METRICS = ("loss", "perplexity", "token_accuracy")
"""The metrics of teacher forcing."""


def output_metrics(corpus: Corpus, selected_by: str = "") -> tuple[str, ...]:
    """The metrics of output text to compute: those that go with the data set's own, and what runs are selected by."""
    own = corpus.dataset.info.metric
    names = next((names for names in COMPANIONS if own in names), ("exact_match",))
    return names if selected_by in ("", *LOSS_METRICS, *names) else (*names, selected_by)


def max_length(config: Config, corpus: Corpus) -> int:
    """The longest output that is searched, in symbols with end-of-sentence."""
    longest = max(len(target) for _, target in corpus.encoded["train"])
    return config.decode.max_length or 2 * longest + 10


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One run on one split: metric values, and the output of every example as text."""

    metrics: dict[str, float]
    predictions: list[str]


class Evaluator:
    """Evaluates runs on a split; compiled once, used for every checkpoint of a program.

    placement: the devices of the runs; by default one.
    """

    def __init__(
        self, model: Model, corpus: Corpus, split: str, *, max_output: int, placement: Placement | None = None
    ):
        self.model, self.corpus, self.split, self.max_output = model, corpus, split, max_output
        placement = placement or Placement()
        self.examples = corpus.dataset.splits[split]
        pairs = corpus.encoded[split] if split != "train" else None
        if pairs is None:
            raise ValueError("the training split is filtered by length: evaluate on another one")
        self._batches = []
        self._index: list[np.ndarray] = []
        for bucket in buckets(pairs, smallest=BATCH, padding=0.25, most=4):
            n = len(bucket.index)
            size = -(-min(BATCH, n) // placement.data) * placement.data  # each device of `data` has an equal part
            count = -(-n // size)

            def shape(a: np.ndarray, count: int = count, size: int = size, n: int = n) -> np.ndarray:
                return np.pad(a, ((0, count * size - n), (0, 0))).reshape(count, size, a.shape[1])

            self._batches.append(placement.put((shape(bucket.source), shape(bucket.target)), None, "data"))
            self._index.append(bucket.index)
        self._evaluate = placement.jit(self._run, out=((), (), ()), static_argnames=("decode",))

    def _run(self, params: Params, sources: Array, targets: Array, *, decode: bool) -> tuple[Any, Any, Any]:
        def one(params: Params, source: Array, target: Array) -> tuple[Any, Any, Any]:
            totals, count = batch_loss(self.model, params, source, target)
            if not decode:
                return totals, count, jnp.zeros((source.shape[0], 0), jnp.int32)
            return totals, count, greedy(self.model.bind(params), source, source != PAD, self.max_output).tokens

        runs = jax.vmap(one, in_axes=(0, None, None))
        return jax.lax.map(lambda batch: runs(params, *batch), (sources, targets))

    def __call__(self, params: Params, *, decode: bool = True) -> list[Evaluated]:
        """The results of every run of `params`, whose leaves have a leading R axis; without `decode` the loss alone.

        Of several processes each one gets them.
        """
        runs = next(iter(params.values())).shape[0]
        sums, tokens = np.zeros((runs, 3)), 0.0
        outputs: list[list[list[int]]] = [[[] for _ in self.examples] for _ in range(runs)]
        for (sources, targets), index in zip(self._batches, self._index, strict=True):
            totals, count, found = self._evaluate(params, sources, targets, decode=decode)
            sums += np.stack([np.asarray(part, np.float64).sum(axis=0) for part in totals], axis=1)
            tokens += float(np.asarray(count)[:, 0].sum())
            if decode:
                ids = np.swapaxes(np.asarray(found), 0, 1).reshape(runs, -1, self.max_output)
                for run in range(runs):
                    for row, example in zip(ids[run], index, strict=False):
                        outputs[run][example] = trim(row)
        return [self._scored(sums[run] / tokens, outputs[run] if decode else None) for run in range(runs)]

    def _scored(self, means: np.ndarray, outputs: list[list[int]] | None) -> Evaluated:
        values = {
            "loss": float(means[1]),
            "perplexity": float(np.exp(min(means[1], 700.0))),
            "token_accuracy": 100 * float(means[2]),
        }
        if outputs is None:
            return Evaluated(values, [])
        predictions = [self.corpus.target.decode(ids) for ids in outputs]
        values |= metrics.score(
            output_metrics(self.corpus, self.model.config.train.metric),
            predictions,
            references(self.corpus, self.split),
            **scoring(self.corpus, self.model.config),
        )
        return Evaluated(values, predictions)


def references(corpus: Corpus, split: str) -> list[tuple[str, ...]]:
    """The accepted outputs of every example, lower-cased where the model's are."""
    lower = corpus.target.lowercase
    return [tuple(r.lower() for r in e.references) if lower else e.references for e in corpus.dataset.splits[split]]


def scoring(corpus: Corpus, config: Config) -> dict[str, str]:
    """How metrics treat text: BLEU's tokeniser, the normalisation of exact match, and case."""
    info, chosen = corpus.dataset.info, config.data.bleu_tokenizer
    return {
        "tokenize": info.tokenize if chosen == "own" else chosen,
        "normalize": info.normalization or "none",
        "case": "lc" if corpus.target.lowercase else "mixed",
    }


def trim(ids: Sequence[int] | np.ndarray) -> list[int]:
    """Output ids up to end-of-sentence, without it."""
    out: list[int] = []
    for number in ids:
        if number in (EOS, PAD):
            break
        out.append(int(number))
    return out


def attention_maps(model: Model, params: Params, corpus: Corpus, split: str, chosen: Sequence[int], limit: int) -> list:
    """Greedy outputs of some examples with their weights, for each run [{source, target, weights}]: tokens and rows."""
    sources = [corpus.encoded[split][i][0] for i in chosen]
    source = pad(sources, max(map(len, sources)))
    decode = jax.jit(jax.vmap(lambda p: greedy(model.bind(p), jnp.asarray(source), source != PAD, limit)))
    found = fetch(decode(params))
    if found.weights.shape[-1] == 0:
        return [[] for _ in range(found.tokens.shape[0])]
    tokens, weights = found.tokens, found.weights
    weights = weights.mean(axis=3) if weights.ndim == 5 else weights  # one map, the mean of all heads
    maps = []
    for run in range(tokens.shape[0]):
        examples = []
        for row, ids in enumerate(sources):
            output = trim(tokens[run, row])
            ended = len(output) < limit
            examples.append(
                {
                    "source": corpus.source.tokens(corpus.dataset.splits[split][chosen[row]].source),
                    "target": [corpus.target.vocabulary.symbols[i] for i in output] + ["</s>"] * ended,
                    "weights": np.round(weights[run, row, : len(output) + ended, : len(ids)], 4).tolist(),
                }
            )
        maps.append(examples)
    return maps
