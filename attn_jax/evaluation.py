"""Evaluation of runs of equal structure on one split: teacher-forced loss, output, and the metrics of both."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import metrics
from attn_jax.config import Config, Decode
from attn_jax.data.buckets import Pairs, buckets, pad
from attn_jax.data.corpus import Corpus
from attn_jax.data.text import EOS, PAD
from attn_jax.decoding import Decoded
from attn_jax.devices import Placement, fetch
from attn_jax.errors import UserError
from attn_jax.losses import Totals
from attn_jax.metrics import LOSS_METRICS
from attn_jax.search import keys_of, search
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params
from attn_jax.training import batch_loss

BATCH = 128

SMALLEST_BATCH = 32
"""A beam takes fewer sentences at a time, since each becomes `beam_size`, but not fewer than these."""

EXAMPLES_PER_BUCKET, MOST_BUCKETS = 1000, 4
"""A shape of batches is worth its seconds of compilation for so many examples; and no more than so many are made."""

COMPANIONS = (("bleu", "chrf"), ("wer", "per"), ("exact_match",))
"""Metrics of output text that are computed together."""


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


class Batch(NamedTuple):
    """Examples of a split by their places in it, and what is computed with them, on the device.

    source, target: [B, S] and [B, T], zero where there is no symbol or no example. numbers: the places [B].
    """

    places: np.ndarray
    source: Array
    target: Array
    numbers: Array


class Evaluator:
    """Evaluates runs on the splits of a corpus, `train` apart.

    All splits have batches of the same few shapes, so that what is compiled for one serves the others.

    placement: the devices of the runs; by default one. seeds: of the runs, where the configured search draws samples.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        *,
        max_output: int,
        placement: Placement | None = None,
        seeds: Sequence[int] = (),
    ):
        self.model, self.corpus, self.max_output = model, corpus, max_output
        self._placement = placement or Placement()
        self._seeds = self._placement.place(as_keys(seeds))
        configured = model.config.decode
        most = max(BATCH // configured.beam_size, min(BATCH, SMALLEST_BATCH)) if configured.name == "beam" else BATCH
        splits = [pairs for split, pairs in corpus.encoded.items() if split != "train"]
        largest = max(map(len, splits), default=1)
        parts = self._placement.data  # each device of `data` has an equal part
        self._size = -(-min(most, largest) // parts) * parts
        pairs = list(itertools.chain(*splits))
        count = int(np.clip(len(pairs) // EXAMPLES_PER_BUCKET, 1, MOST_BUCKETS))
        found = buckets(pairs, smallest=BATCH, padding=0.25, most=count) if pairs else []
        self._widths = sorted(((b.source.shape[1], b.target.shape[1]) for b in found), key=sum)
        self._batches: dict[str, list[Batch]] = {}
        self._programs: dict[Decode | None, Any] = {}

    def batches(self, split: str) -> list[Batch]:
        """The batches of a split, each of sentences of similar lengths."""
        if split == "train":
            raise ValueError("the training split is filtered by length: evaluate on another one")
        if split not in self._batches:
            pairs, held = self.corpus.encoded[split], dict[tuple[int, int], list[int]]()
            for place in sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1]), i)):
                source, target = map(len, pairs[place])
                fitting = next(width for width in self._widths if source <= width[0] and target <= width[1])
                held.setdefault(fitting, []).append(place)
            self._batches[split] = [
                self._batch(pairs, places[start : start + self._size], width)
                for width, places in held.items()
                for start in range(0, len(places), self._size)
            ]
        return self._batches[split]

    def _batch(self, pairs: Pairs, places: list[int], width: tuple[int, int]) -> Batch:
        missing = self._size - len(places)
        sides = [pad([*(pairs[i][side] for i in places), *[()] * missing], width[side]) for side in (0, 1)]
        numbers = np.array([*places, *[0] * missing], np.int32)
        return Batch(np.array(places), *self._placement.put((*sides, numbers), "data"))

    def _program(self, settings: Decode | None) -> Any:
        """Totals and number of target tokens of a batch for each run, and its outputs [R, B, L] (L = 0: no search).

        Totals and numbers [R, parts] are of the parts in which the batch is cut.
        """

        def run(
            params: Params, seeds: Array | None, source: Array, target: Array, numbers: Array
        ) -> tuple[Totals, Array, Array]:
            def one(params: Params, seed: Array | None) -> tuple[Totals, Array, Array]:
                totals, count = batch_loss(self.model, params, source, target)
                if settings is None:
                    return *jax.tree.map(jnp.atleast_1d, (totals, count)), jnp.zeros((source.shape[0], 0), jnp.int32)
                found = searched(self.model, params, source, self.max_output, settings, seed, numbers)
                return *jax.tree.map(jnp.atleast_1d, (totals, count)), found.tokens[:, 0]

            return jax.vmap(one)(params, seeds)

        if settings not in self._programs:
            each, part, both = ("run",), ("data",), ("run", "data")
            into, out = (each, each, part, part, part), (both, both, both)
            self._programs[settings] = self._placement.jit(run, into=into, out=out)
        return self._programs[settings]

    def __call__(self, params: Params, split: str, *, decode: bool = True, greedily: bool = False) -> list[Evaluated]:
        """The results of every run of `params`, whose leaves have a leading R axis; without `decode` the loss alone.

        Of several processes each one gets them. greedily: search greedily whatever the configuration says.
        """
        configured = self.model.config.decode
        settings = (dataclasses.replace(configured, name="greedy") if greedily else configured) if decode else None
        runs = next(iter(params.values())).shape[0]
        sums, tokens = np.zeros((runs, 3)), 0.0
        outputs: list[list[list[int]]] = [[[] for _ in self.corpus.encoded[split]] for _ in range(runs)]
        batches = self.batches(split)
        # All are on their way before the first one is waited for.
        program = self._program(settings)
        found = [program(params, self._seeds, *batch[1:]) for batch in batches]
        for batch, (totals, count, ids) in zip(batches, map(fetch, found), strict=True):
            sums += np.stack([np.asarray(part, np.float64).sum(axis=1) for part in totals], axis=1)
            tokens += float(count[0].sum())
            for run, rows in enumerate(ids if decode else ()):
                for place, row in zip(batch.places, rows, strict=False):
                    outputs[run][place] = trim(row)
        return [self._scored(split, sums[run] / tokens, outputs[run] if decode else None) for run in range(runs)]

    def attention_maps(self, params: Params, split: str, chosen: Sequence[int]) -> list:
        """Outputs of some examples with their weights, for each run [{source, target, weights}]: tokens and rows.

        Outputs are those that a call finds; weights are [T, S], of a score with heads [N, T, S].
        """
        corpus, limit = self.corpus, self.max_output
        sources = [corpus.encoded[split][i][0] for i in chosen]
        source, numbers = pad(sources, max(map(len, sources))), np.array(chosen, np.int32)

        def one(params: Params, seed: Array | None) -> tuple[Array, Array]:
            settings = self.model.config.decode
            found = searched(self.model, params, jnp.asarray(source), limit, settings, seed, jnp.asarray(numbers))
            return found.tokens[:, 0], found.weights[:, 0]

        each = ("run",)
        program = self._placement.jit(jax.vmap(one), into=(each, each), out=(each, each))
        tokens, weights = fetch(program(params, self._seeds))
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

    def _scored(self, split: str, means: np.ndarray, outputs: list[list[int]] | None) -> Evaluated:
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
            references(self.corpus, split),
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
