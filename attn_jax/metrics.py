"""Metrics of decoded output, all in percent, over predictions and one or more references a sentence.

Every metric is a function of *sums over sentences*: `per_sentence` gives each sentence's statistics,
`aggregate` turns their sum into the score. Resampling sentences (see `bootstrap`) therefore costs no second
scoring.

| metric | meaning |
|---|---|
| `exact_match` | sentences whose output equals a reference, after the data set's normalisation |
| `wer` | words whose output equals no reference (grapheme to phoneme) |
| `per` | symbol error rate: edits to the nearest reference / its length; symbols are split at spaces |
| `bleu` | corpus BLEU of sacrebleu; `tokenize="none"` for tokenised text, `"13a"` for raw text |
| `chrf` | chrF2 of sacrebleu |

Words are what stands between ASCII spaces, as everywhere (`data.reading`): runs of spaces count as one.
With `case="lc"` both sides are lower-cased first.

`loss`, `perplexity` and `token_accuracy` come from the teacher-forced loss and `aer` from alignments; they
are known here only by name, for `higher_is_better`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from attn_jax.data.reading import words
from attn_jax.errors import UserError, unknown

TOKENIZERS = ("none", "13a", "intl", "char", "zh")
"""What `tokenize` may be: sacrebleu's tokenisers that need no further package."""

CASES = ("mixed", "lc")
"""What `case` may be: as it stands, or lower-cased; the names of sacrebleu's signatures."""

_HIGHER_IS_BETTER = {
    "exact_match": True,
    "bleu": True,
    "chrf": True,
    "wer": False,
    "per": False,
    "token_accuracy": True,
    "loss": False,
    "perplexity": False,
    "aer": False,
}

LOSS_METRICS = ("loss", "perplexity", "token_accuracy")
"""The metrics of teacher forcing."""

OUTPUT_METRICS = ("exact_match", "bleu", "chrf", "wer", "per")
"""The metrics that `score` computes from output text."""


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric is the better one. Raises UserError on an unknown name."""
    if metric not in _HIGHER_IS_BETTER:
        raise unknown("metric", metric, _HIGHER_IS_BETTER)
    return _HIGHER_IS_BETTER[metric]


def score(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "none",
    normalize: str = "none",
    case: str = "mixed",
) -> dict[str, float]:
    """The metrics of a test set, in percent.

    Args:
      names: metrics of `OUTPUT_METRICS`.
      predictions: [N] outputs.
      references: [N] lists of at least one reference; their number may differ between sentences.
      tokenize: BLEU's tokeniser (`TOKENIZERS`).
      normalize: what exact match applies to both sides first (`NORMALIZATIONS`).
      case: whether both sides are lower-cased (`CASES`).

    Raises UserError on an unknown name, no predictions, unequal lengths, and a sentence without reference.
    """
    options = {"tokenize": tokenize, "normalize": normalize, "case": case}
    return {name: aggregate(name, per_sentence(name, predictions, references, **options).sum(axis=0)) for name in names}


def per_sentence(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "none",
    normalize: str = "none",
    case: str = "mixed",
) -> np.ndarray:
    """Statistics [N, K] of N sentences whose sum `aggregate` turns into the score.

    K = 2 for exact_match (matches, sentences), wer (errors, words) and per (edits, reference symbols); for
    bleu and chrf sacrebleu's n-gram counts and lengths. Raises UserError as `score` does.
    """
    _check(metric, predictions, references, tokenize, normalize, case)
    if case == "lc":
        predictions, references = (
            [text.lower() for text in predictions],
            [[r.lower() for r in own] for own in references],
        )
    if metric in ("exact_match", "wer"):
        canonical = NORMALIZATIONS[normalize if metric == "exact_match" else "none"]
        matches = [
            canonical(prediction) in {canonical(reference) for reference in own}
            for prediction, own in zip(predictions, references, strict=True)
        ]
        hits = matches if metric == "exact_match" else [not match for match in matches]
        return np.stack([np.array(hits, float), np.ones(len(hits))], axis=1)
    if metric == "per":
        pairs = zip(predictions, references, strict=True)
        return np.array([_edits(prediction, own) for prediction, own in pairs], float)
    statistics = _sacrebleu(metric, tokenize, case)._extract_corpus_statistics(predictions, _streams(references))
    return np.array(statistics, float)


def aggregate(metric: str, totals: np.ndarray) -> float:
    """The score, in percent, of statistics [K] summed over sentences; text was split and canonicalised before."""
    value = float(aggregates(metric, totals[None])[0])
    if math.isnan(value):
        raise UserError(f"{metric}: every reference is empty: expected at least one symbol")
    return value


def aggregates(metric: str, totals: np.ndarray) -> np.ndarray:
    """The scores [B], in percent, of B sums [B, K] of statistics; NaN where every reference is empty."""
    if metric in ("bleu", "chrf"):
        formula = _sacrebleu(metric, "none", "mixed")._compute_score_from_stats
        # BLEU counts words and n-grams: its formula wants integers.
        return np.array([formula([round(total) for total in row]).score for row in totals.tolist()], float)
    return 100 * totals[:, 0] / np.where(totals[:, 1] == 0, np.nan, totals[:, 1])


def signature(
    metric: str,
    references: Sequence[Sequence[str]],
    *,
    tokenize: str = "none",
    normalize: str = "none",
    case: str = "mixed",
) -> str:
    """How a metric was computed, to be stored with its value; for bleu and chrf sacrebleu's own signature.

    >>> signature("exact_match", [["a"]], normalize="logic")
    'exact_match|norm:logic|nrefs:1'
    """
    _check(metric, [""] * len(references), references, tokenize, normalize, case)
    if metric in ("bleu", "chrf"):
        scorer = _sacrebleu(metric, tokenize, case)
        scorer.corpus_score([""] * len(references), _streams(references))  # sacrebleu counts references here
        return f"{metric}|{scorer.get_signature()}"
    numbers = {len(own) for own in references}
    count = f"nrefs:{numbers.pop() if len(numbers) == 1 else 'var'}"
    settings = {"exact_match": f"norm:{normalize}|", "wer": "", "per": "symbols:space|ref:nearest|"}[metric]
    return f"{metric}|{settings}{'case:lc|' if case == 'lc' else ''}{count}"


def options(signatures: Mapping[str, str]) -> dict[str, str]:
    """The `tokenize`, `normalize` and `case` of stored signatures, as keyword arguments for `score`."""
    fields = dict(part.split(":", 1) for text in signatures.values() for part in text.split("|") if ":" in part)
    return {
        "tokenize": fields.get("tok", "none"),
        "normalize": fields.get("norm", "none"),
        "case": fields.get("case", "mixed"),
    }


# -- normalisation before exact match ------------------------------------------------------------------------


def logic_form(text: str) -> str:
    """The canonical form of a logical form: brackets repaired, children of `and` and `or` sorted.

    The metric of Dong and Lapata (2016) is exact match after bracket repair and without regard to the order
    below `and` and `or`. In detail:

    1. Bracket repair. With more `(` than `)`, the missing `)` are appended; with more `)` than `(`, as many
       tokens are removed from the end. A form whose brackets do not nest then is returned unrepaired.
    2. A bracket whose first child is `and` or `or` has its other children sorted, from the innermost bracket
       outwards, so that the order in which nested conjunctions were written cannot matter.
    3. Equal children of one `and` or `or` are merged. This is ours: saying a thing twice means what saying it
       once means.

    The comma of Prolog forms (JOBS) is not reordered. Tokens are separated by spaces or brackets; the result is
    joined by single spaces.

    >>> logic_form("( and ( state:t $0 ) ( loc:t $0 s0 )")
    '( and ( loc:t $0 s0 ) ( state:t $0 ) )'
    >>> logic_form("job ( ANS ) , loc ( ANS , locid0")
    'job ( ANS ) , loc ( ANS , locid0 )'
    """
    tokens = words(text.replace("(", " ( ").replace(")", " ) "))
    missing = tokens.count("(") - tokens.count(")")
    children: list[list[str]] = [[]]
    for token in tokens + [")"] * missing if missing >= 0 else tokens[:missing]:
        if token == "(":
            children.append([])
        elif token != ")":
            children[-1].append(token)
        elif len(children) == 1:
            return " ".join(tokens)
        else:
            head, *rest = children.pop() or [""]
            # A typed operator of the raw corpus reads `and:<t*,t>`.
            rest = sorted(set(rest)) if head.split(":")[0] in ("and", "or") else rest
            children[-1].append(" ".join(["(", *filter(None, [head, *rest]), ")"]))
    return " ".join(children[0])


NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "none": lambda text: " ".join(words(text)),
    "logic": logic_form,
}
"""What exact match may apply to predictions and references before it compares them."""


# -- parts ---------------------------------------------------------------------------------------------------


def _check(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str,
    normalize: str,
    case: str,
) -> None:
    if metric not in OUTPUT_METRICS:
        raise unknown("metric of output text", metric, OUTPUT_METRICS)
    if tokenize not in TOKENIZERS:
        raise unknown("tokenizer", tokenize, TOKENIZERS)
    if normalize not in NORMALIZATIONS:
        raise unknown("normalization", normalize, NORMALIZATIONS)
    if case not in CASES:
        raise unknown("case", case, CASES)
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"{metric}: {len(predictions)} predictions and {len(references)} lists of references: "
            "expected the same number, at least 1"
        )
    for index, own in enumerate(references):
        if isinstance(own, str) or not own:
            raise UserError(f"{metric}: references[{index}] is {own!r}: expected a list of at least one text")


def _edits(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """Edits to the nearest reference and its length; of equally near ones the longest."""
    from rapidfuzz.distance import Levenshtein

    symbols = words(prediction)
    candidates = [words(reference) for reference in references]
    distance, negative = min((Levenshtein.distance(symbols, own), -len(own)) for own in candidates)
    return distance, -negative


def _sacrebleu(metric: str, tokenize: str, case: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    lowercase = case == "lc"
    # force: tokenised text is what the caller means to score, so no warning about it.
    return BLEU(tokenize=tokenize, lowercase=lowercase, force=True) if metric == "bleu" else CHRF(lowercase=lowercase)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References by number instead of by sentence, filled up with None, as sacrebleu wants them."""
    width = max(len(own) for own in references)
    return [[own[n] if n < len(own) else None for own in references] for n in range(width)]
