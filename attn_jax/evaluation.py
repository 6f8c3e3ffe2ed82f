"""Evaluation of runs of equal structure on one split: teacher-forced loss, output, and the metrics of both."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import metrics
from attn_jax.config import Config, Decode
from attn_jax.data.corpus import Corpus, buckets, pad
from attn_jax.data.text import EOS, PAD
from attn_jax.decoding import Decoded
from attn_jax.devices import Placement, fetch
from attn_jax.errors import UserError
from attn_jax.search import keys_of, search
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params
from attn_jax.training import batch_loss

BATCH = 128

SMALLEST_BATCH = 32
"""A beam takes fewer sentences at a time, since each becomes `beam_size`, but not fewer than these."""

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
    """The longest output that is searched, in symbols with end-of-sentence.

    Raises UserError if no output could be as long as the shortest must be.
    """
    longest = max(len(target) for _, target in corpus.encoded["train"])
    limit = config.decode.max_length or 2 * longest + 10
    if config.decode.min_length > limit:
        raise UserError(
            f"decode.min_length={config.decode.min_length}: outputs on {corpus.dataset.info.name} have at most {limit} "
            "symbols; lower it or raise decode.max_length"
        )
    return limit


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One run on one split: metric values, and the output of every example as text."""

    metrics: dict[str, float]
    predictions: list[str]


class Evaluator:
    """Evaluates runs on a split; compiled once, used for every checkpoint of a program.

    placement: the devices of the runs; by default one. seeds: of the runs, where the configured search draws samples.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        split: str,
        *,
        max_output: int,
        placement: Placement | None = None,
        seeds: Sequence[int] = (),
    ):
        self.model, self.corpus, self.split, self.max_output = model, corpus, split, max_output
        placement = placement or Placement()
        self._seeds = placement.place(as_keys(seeds))
        self.examples = corpus.dataset.splits[split]
        pairs = corpus.encoded[split] if split != "train" else None
        if pairs is None:
            raise ValueError("the training split is filtered by length: evaluate on another one")
        configured = model.config.decode
        most = max(BATCH // configured.beam_size, min(BATCH, SMALLEST_BATCH)) if configured.name == "beam" else BATCH
        self._batches = []
        self._index: list[np.ndarray] = []
        for bucket in buckets(pairs, smallest=BATCH, padding=0.25, most=4):
            n = len(bucket.index)
            size = -(-min(most, n) // placement.data) * placement.data  # each device of `data` has an equal part
            count = -(-n // size)

            def shape(a: np.ndarray, count: int = count, size: int = size, n: int = n) -> np.ndarray:
                return np.pad(a, ((0, count * size - n), (0, 0))).reshape(count, size, a.shape[1])

            numbers = shape(bucket.index[:, None].astype(np.int32))[:, :, 0]
            batches = (shape(bucket.source), shape(bucket.target), numbers)
            self._batches.append(placement.put(batches, None, "data"))
            self._index.append(bucket.index)
        self._evaluate = placement.jit(self._run, out=((), (), ()), static_argnames=("settings",))

    def _run(
        self, params: Params, seeds: Array | None, sources: Array, targets: Array, numbers: Array, *, settings: Any
    ) -> tuple[Any, Any, Any]:
        def one(params: Params, seed: Any, source: Array, target: Array, number: Array) -> tuple[Any, Any, Any]:
            totals, count = batch_loss(self.model, params, source, target)
            if settings is None:
                return totals, count, jnp.zeros((source.shape[0], 0), jnp.int32)
            found = searched(self.model, params, source, self.max_output, settings, seed, number)
            return totals, count, found.tokens[:, 0]

        runs = jax.vmap(one, in_axes=(0, 0, None, None, None))
        return jax.lax.map(lambda batch: runs(params, seeds, *batch), (sources, targets, numbers))

    def __call__(self, params: Params, *, decode: bool = True, greedily: bool = False) -> list[Evaluated]:
        """The results of every run of `params`, whose leaves have a leading R axis; without `decode` the loss alone.

        Of several processes each one gets them. greedily: search greedily whatever the configuration says.
        """
        configured = self.model.config.decode
        settings = (dataclasses.replace(configured, name="greedy") if greedily else configured) if decode else None
        runs = next(iter(params.values())).shape[0]
        sums, tokens = np.zeros((runs, 3)), 0.0
        outputs: list[list[list[int]]] = [[[] for _ in self.examples] for _ in range(runs)]
        for batches, index in zip(self._batches, self._index, strict=True):
            totals, count, found = self._evaluate(params, self._seeds, *batches, settings=settings)
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


def searched(
    model: Model, params: Params, source: Array, limit: int, settings: Decode, seed: Array | None, numbers: Array
) -> Decoded:
    """The best hypothesis of every source [B, S] of one run, [B, 1, ...]; numbers: of the examples, for samples."""
    keys = None if seed is None else keys_of(seed, numbers)
    return search(model.bind(params), source, source != PAD, limit, settings, keys=keys)


def as_keys(seeds: Sequence[int]) -> np.ndarray | None:
    """Seeds of runs as `keys_of` takes them; None without any."""
    return np.array([seed % 2**32 for seed in seeds], np.uint32) if seeds else None


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


def attention_maps(
    model: Model,
    params: Params,
    corpus: Corpus,
    split: str,
    chosen: Sequence[int],
    limit: int,
    seeds: Sequence[int] = (),
) -> list:
    """Outputs of some examples with their weights, for each run [{source, target, weights}]: tokens and rows.

    Outputs are those that `Evaluator` finds; weights are [T, S], of a score with heads [N, T, S].
    """
    sources = [corpus.encoded[split][i][0] for i in chosen]
    source, numbers = pad(sources, max(map(len, sources))), np.array(chosen, np.int32)

    def one(params: Params, seed: Array | None) -> tuple[Array, Array]:
        found = searched(model, params, jnp.asarray(source), limit, model.config.decode, seed, jnp.asarray(numbers))
        return found.tokens[:, 0], found.weights[:, 0]

    tokens, weights = fetch(jax.jit(jax.vmap(one))(params, as_keys(seeds)))
    if weights.shape[-1] == 0:
        return [[] for _ in range(tokens.shape[0])]
    maps = []
    for run in range(tokens.shape[0]):
        examples = []
        for row, ids in enumerate(sources):
            output = trim(tokens[run, row])
            ended = len(output) < limit
            rows = weights[run, row, : len(output) + ended, ..., : len(ids)]
            examples.append(
                {
                    "source": corpus.source.tokens(corpus.dataset.splits[split][chosen[row]].source),
                    "target": [corpus.target.vocabulary.symbols[i] for i in output] + ["</s>"] * ended,
                    "weights": np.round(rows if rows.ndim == 2 else np.swapaxes(rows, 0, 1), 4).tolist(),
                }
            )
        maps.append(examples)
    return maps
