"""Texts in, texts out: trained models, alone or as an ensemble, with their vocabularies and a search."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.config import Decode
from attn_jax.data.buckets import pad
from attn_jax.data.text import EOS, PAD, UNK, TextCodec
from attn_jax.decoding import Decoded, one_row
from attn_jax.errors import UserError
from attn_jax.scores import NONE, SCORES
from attn_jax.search import keys_of, search
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params

BATCH = 64
"""Texts that are decoded at a time."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One decoded text.

    tokens: its symbols, `</s>` last if it ended. weights: [tokens, source symbols], of a score with heads [tokens,
    heads, source symbols]; None without attention. log_probability: of the tokens under the model. score: what
    hypotheses are ranked by, the log-probability unless a penalty changes it.
    """

    text: str
    tokens: list[str]
    source: list[str]
    weights: np.ndarray | None
    log_probability: float
    score: float


@dataclasses.dataclass(frozen=True)
class Translator:
    """Models of one pair of vocabularies, and how they are searched. seed: of samples. limit: longest output."""

    models: tuple[Model, ...]
    params: tuple[Params, ...]
    source: TextCodec
    target: TextCodec
    limit: int
    settings: Decode
    seed: int = 0

    def __post_init__(self) -> None:
        if self.settings.min_length > self.limit:
            raise UserError(f"decode.min_length={self.settings.min_length} is above decode.max_length={self.limit}")

    def __call__(
        self,
        texts: Sequence[str],
        *,
        n_best: int = 1,
        unk_replace: bool = False,
        batch_size: int = BATCH,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Output]]:
        """The best outputs of every text, at most `n_best` each, the best first; samples as they are drawn.

        Texts are decoded in batches of similar lengths, whatever their order.

        Args:
            texts: sources.
            n_best: outputs a text.
            unk_replace: whether each `<unk>` becomes the source symbol with the highest weight at its step (Luong et
                al. 2015), weights of heads averaged.
            batch_size: texts of a batch.
            numbers: of the texts, by default 0, 1, ...; a sample depends on the seed and on the number of its text.

        Raises:
            UserError: a text has no symbols, more outputs are asked for than the search has, or `unk_replace` is asked
                for without attention.
        """
        self.check(n_best=n_best, unk_replace=unk_replace)
        ids = [self.source.encode(text) for text in texts]
        for number, (text, row) in enumerate(zip(texts, ids, strict=True), 1):
            if not row:
                raise UserError(f"text {number} ({text!r}) has no symbols to decode")
        outputs: list[list[Output]] = [[] for _ in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = min(batch_size, _rounded(len(ids)))
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            rows = [ids[i] for i in chosen] + [[]] * (size - len(chosen))
            longest = max(map(len, rows))
            source = pad(rows, longest if self._counts_positions() else _rounded(longest))
            drawn = np.array([numbers[i] if numbers else i for i in chosen] + [0] * (size - len(chosen)), np.int32)
            found = jax.tree.map(np.asarray, self._search(source, drawn, n_best))
            for place, i in enumerate(chosen):
                hypotheses = (Decoded(*(part[place, rank] for part in found)) for rank in range(n_best))
                outputs[i] = [self._output(texts[i], h, unk_replace) for h in hypotheses if h.lengths]
        return outputs

    def _counts_positions(self) -> bool:
        """Whether a model has no more positions than its longest source."""
        scores = [model.config.score.name for model in self.models]
        return any(score != NONE and SCORES[score].uses_positions for score in scores)

    def check(self, *, n_best: int, unk_replace: bool) -> None:
        """Raises UserError if the search does not have so many outputs, or there are no weights to replace by."""
        name, most = self.settings.name, self.settings.beam_size
        if n_best < 1:
            raise UserError(f"n_best={n_best}: must be at least 1")
        if name == "greedy" and n_best > 1:
            raise UserError(f"n_best={n_best}: a greedy search has one output; use decode=beam or decode=sample")
        if name == "beam" and n_best > most:
            raise UserError(f"n_best={n_best} is above decode.beam_size={most}")
        if unk_replace and not self.attends:
            raise UserError("unk_replace with score=none: there are no weights to choose the source symbol by")

    @property
    def attends(self) -> bool:
        """Whether outputs have weights."""
        source = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        search = functools.partial(_search, self.models, 1, Decode(), 1, np.uint32(0))
        return jax.eval_shape(search, self.params, source, jax.ShapeDtypeStruct((1,), jnp.int32)).weights.shape[-1] > 0

    def _search(self, source: np.ndarray, numbers: np.ndarray, n_best: int) -> Decoded:
        seed = np.uint32(self.seed % 2**32)
        return _compiled(self.models, self.limit, self.settings, n_best, seed, self.params, source, numbers)

    def _output(self, text: str, found: Decoded, unk_replace: bool) -> Output:
        ids, source = found.tokens[: found.lengths].tolist(), self.source.tokens(text)
        ended = ids[-1] == EOS
        symbols = [self.target.vocabulary.symbol(i) for i in (ids[:-1] if ended else ids)]
        weights = np.asarray(found.weights)[: len(ids), ..., : len(source)] if found.weights.shape[-1] else None
        if unk_replace:
            assert weights is not None
            rows = one_row(weights)
            # Of a row of zeros, where a window has left the source, there is no highest weight.
            best = np.where(rows.max(axis=1) > 0, rows.argmax(axis=1), -1)
            symbols = [source[j] if i == UNK and j >= 0 else s for s, i, j in zip(symbols, ids, best, strict=False)]
        tokens = [*symbols, "</s>"] if ended else symbols
        numbers = float(found.log_probability), float(found.score)
        return Output(self.target.join(symbols), tokens, source, weights, *numbers)


def _search(
    models: tuple[Model, ...],
    limit: int,
    settings: Decode,
    n_best: int,
    seed: Any,
    params: tuple[Params, ...],
    source: Array,
    numbers: Array,
) -> Decoded:
    bound = [model.bind(p) for model, p in zip(models, params, strict=True)]
    keys = keys_of(seed, numbers) if settings.name == "sample" else None
    return search(bound, source, source != PAD, limit, settings, n_best=n_best, keys=keys, in_parts=True)


_compiled = jax.jit(_search, static_argnums=(0, 1, 2, 3))


def _rounded(length: int) -> int:
    """A length of 2^n or 3 2^n that is not smaller, 8 at least: few programs are compiled for all texts."""
    size = 8
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
