"""Beam search and exhaustive search as plain loops over the definition of the model."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import reference

from attn_jax.config import Config
from attn_jax.data.text import BOS, EOS, PAD

LP: dict[str, Callable[[int, float], float]] = {
    "none": lambda n, a: 1.0,
    "gnmt": lambda n, a: (5 + n) ** a / 6**a,
    "power": lambda n, a: float(n) ** a,
    "average": lambda n, a: float(n),
}

Predictor = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]
"""Symbols so far -> log-probabilities [T + 1, V] of each next symbol, and weights [T + 1, S]."""


def predictor(config: Config, members: Sequence[reference.Params], source: list[int]) -> Predictor:
    """The mean of the members' probabilities and weights."""

    def predict(symbols: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        found = [reference.model(params, config, source, [BOS, *symbols]) for params in members]
        probabilities = [np.array([reference.softmax(row) for row in logits]) for logits, _ in found]
        return np.log(np.mean(probabilities, axis=0)), np.mean([weights for _, weights in found], axis=0)

    return predict


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    symbols: tuple[int, ...]
    log_probability: float
    score: float
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ranked:
    """How complete sequences are scored."""

    penalty: str = "none"
    alpha: float = 0.6
    beta: float = 0.0

    def hypothesis(self, symbols: Sequence[int], predict: Predictor) -> Hypothesis:
        logs, weights = predict(symbols[:-1])
        total = sum(logs[t, symbol] for t, symbol in enumerate(symbols))
        coverage = sum(math.log(min(column, 1)) for column in weights.sum(axis=0)) if self.beta else 0.0
        score = total / LP[self.penalty](len(symbols), self.alpha) + self.beta * coverage
        return Hypothesis(tuple(symbols), total, score, weights)


def allowed(vocabulary: int, length: int, min_length: int) -> list[int]:
    """Symbols that may come at a place, from 1."""
    return [v for v in range(vocabulary) if v not in (PAD, BOS) and (v != EOS or length >= min_length)]


def exhaustive(predict: Predictor, vocabulary: int, limit: int, ranked: Ranked, min_length: int) -> list[Hypothesis]:
    """Every sequence that ends, and every one that reaches the limit, the best first."""
    inner = [v for v in range(vocabulary) if v not in (PAD, BOS, EOS)]
    found = [
        [*symbols, EOS] for n in range(limit) for symbols in itertools.product(inner, repeat=n) if n + 1 >= min_length
    ]
    found += [list(symbols) for symbols in itertools.product(inner, repeat=limit)]
    return sorted((ranked.hypothesis(s, predict) for s in found), key=lambda h: -h.score)


def beam(
    predict: Predictor, vocabulary: int, limit: int, k: int, ranked: Ranked, min_length: int = 0
) -> list[Hypothesis]:
    """The rule of the docstring of attn_jax.beam_search, without an early stop."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[list[int]] = []
    for length in range(1, limit + 1):
        candidates = [
            ([*symbols, v], total + predict(symbols)[0][-1, v])
            for symbols, total in live
            for v in allowed(vocabulary, length, min_length)
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        finished += [symbols for symbols, _ in candidates[:k] if symbols[-1] == EOS]
        live = [candidate for candidate in candidates if candidate[0][-1] != EOS][:k]
    found = [*finished, *(symbols for symbols, _ in live)]
    return sorted((ranked.hypothesis(s, predict) for s in found), key=lambda h: -h.score)[:k]
