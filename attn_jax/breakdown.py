"""Quality in parts: by length of source or reference, and by frequency of the words; the sharpness of attention."""

import collections
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from attn_jax.data.reading import words

LENGTH_BINS = 8

FREQUENCY_BINS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, 999), (1000, None))
"""Ranges (first, last) of how often a word stands in the training targets: those of compare-mt."""


def length_bins(lengths: Sequence[int], bins: int = LENGTH_BINS) -> list[tuple[int, int]]:
    """Ranges (first, last) of lengths, at most `bins`, that hold about equally many sentences each."""
    ranges: list[tuple[int, int]] = []
    counts = collections.Counter(lengths)
    first, held = None, 0
    for length in sorted(counts):
        first = length if first is None else first
        held += counts[length]
        if held >= len(lengths) / bins:
            ranges.append((first, length))
            first, held = None, 0
    if first is not None:
        # What is left is too few for a range of its own.
        start = ranges.pop()[0] if ranges else first
        ranges.append((start, max(lengths)))
    return ranges


def range_name(low: int, high: int | None) -> str:
    """A range as an axis shows it, e.g. "3", "5-9", "1000+"."""
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"


class WordMatches:
    """Words of outputs and of references, and how many match, by frequency of the word in the training targets.

    In every sentence a word matches as often as it stands in both: with o and r its numbers in output and reference,
    min(o, r). Of the words of a bin, precision is matches / words of the outputs, recall matches / words of the
    references, and F1 = 2 matches / (words of the outputs + words of the references).

    Source: Neubig et al. (2019), compare-mt, section 3.2 (word accuracy by bucket).
    """

    def __init__(self, frequencies: Mapping[str, int]):
        self._frequencies = frequencies
        self.outputs, self.references, self.matches = ([0] * len(FREQUENCY_BINS) for _ in range(3))

    def add(self, output: str, reference: str) -> None:
        """Counts one sentence; words are what stands between spaces."""
        found, wanted = collections.Counter(words(output)), collections.Counter(words(reference))
        for counter, totals in ((found, self.outputs), (wanted, self.references), (found & wanted, self.matches)):
            for word, count in counter.items():
                totals[self._bin(word)] += count

    def _bin(self, word: str) -> int:
        frequency = self._frequencies.get(word, 0)
        return next(n for n, (_, last) in enumerate(FREQUENCY_BINS) if last is None or frequency <= last)

    def f1(self) -> list[float | None]:
        """In percent, a bin; None where neither side has a word."""
        sums = [output + reference for output, reference in zip(self.outputs, self.references, strict=True)]
        return [200 * match / total if total else None for match, total in zip(self.matches, sums, strict=True)]


def lowered(frequencies: Mapping[str, int]) -> dict[str, int]:
    """The frequencies of lower-cased words."""
    found: collections.Counter[str] = collections.Counter()
    for word, count in frequencies.items():
        found[word.lower()] += count
    return dict(found)


def pooled(sentences: Iterable[tuple[str, str]], frequencies: Mapping[str, int]) -> WordMatches:
    """The matches of (output, reference) pairs."""
    matches = WordMatches(frequencies)
    for output, reference in sentences:
        matches.add(output, reference)
    return matches


def attended(weights: np.ndarray) -> list[float]:
    """Effective numbers of source positions of rows of weights [*, S]: exp(-sum_j p_j log p_j), p = |w| / sum |w|.

    From 1, where one position has all the weight, to S; k where k positions have equal weights. Rows without weight,
    and those whose sum is not finite, are left out.
    """
    sizes = np.abs(np.asarray(weights, np.float64)).reshape(-1, np.shape(weights)[-1])
    totals = sizes.sum(axis=1)
    shares = sizes[(totals > 0) & np.isfinite(totals)]
    shares = shares / shares.sum(axis=1, keepdims=True)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return [float(value) for value in np.exp(-(shares * logs).sum(axis=1))]
