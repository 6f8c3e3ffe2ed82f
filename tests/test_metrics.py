"""Metrics against hand-computed figures, brute force, sacrebleu and the published targets."""

import doctest
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from attn_jax import metrics
from attn_jax.errors import UserError
from attn_jax.metrics import OUTPUT_METRICS, logic_form, score

PREDICTIONS = ["the cat sat on the mat .", "a b c", "", "x y z w"]
REFERENCES = [["the cat sat on a mat ."], ["a c", "a b d e"], ["q"], ["x y z w"]]


def test_doctests() -> None:
    assert doctest.testmod(metrics).failed == 0


def test_hand_computed() -> None:
    values = score(["exact_match", "wer", "per"], PREDICTIONS, REFERENCES)
    assert values["exact_match"] == pytest.approx(25.0)
    assert values["wer"] == pytest.approx(75.0)
    # Edits 1 of 7, 1 of 2 ("a c" is nearer than "a b d e", which is 2 away), 1 of 1, 0 of 4.
    assert values["per"] == pytest.approx(100 * 3 / 14)


def test_per_takes_the_longest_of_equally_near_references() -> None:
    # "a" is one edit away from both; the rate is 1/2, not 1/1.
    assert score(["per"], ["a"], [["b", "a b"]])["per"] == pytest.approx(50.0)
    assert score(["per"], ["a"], [["a b", "b"]])["per"] == pytest.approx(50.0)


def edit_distance(a: list[str], b: list[str]) -> int:
    """Textbook dynamic programme."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


@given(st.lists(st.tuples(st.text("abc", max_size=7), st.text("abc", min_size=1, max_size=7)), min_size=1))
def test_per_against_dynamic_programme(pairs: list[tuple[str, str]]) -> None:
    predictions, references = [" ".join(p) for p, _ in pairs], [[" ".join(r)] for _, r in pairs]
    expected = 100 * sum(edit_distance(list(p), list(r)) for p, r in pairs) / sum(len(r) for _, r in pairs)
    assert score(["per"], predictions, references)["per"] == pytest.approx(expected)


@pytest.mark.parametrize("tokenize", ["none", "13a"])
def test_bleu_and_chrf_against_sacrebleu(tokenize: str) -> None:
    predictions = ["Hello, world! This is (only) a test.", "The dog's bone, isn't it?"]
    references = [["Hello world! This is only a test."], ["The dog's bone, is it not?"]]
    streams = [[own[0] for own in references]]
    values = score(["bleu", "chrf"], predictions, references, tokenize=tokenize)
    assert values["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(predictions, streams, tokenize=tokenize, force=True).score
    )
    assert values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, streams).score)


def test_bleu_takes_any_number_of_references() -> None:
    # By hand: neither sentence has a 4-gram, so the corpus score is 0; the one with 6 words matches whole.
    assert score(["bleu"], ["a b c", "d e f"], [["a b c", "q"], ["d e f"]])["bleu"] == 0.0
    assert score(["bleu"], ["a b c d e f"], [["q", "a b c d e f"]])["bleu"] == pytest.approx(100.0)


def test_tokenizers_make_a_difference() -> None:
    text, reference = ["a, b, c, d, e"], [["a , b , c , d , e"]]
    assert score(["bleu"], text, reference, tokenize="13a")["bleu"] == pytest.approx(100.0)
    assert score(["bleu"], text, reference, tokenize="none")["bleu"] < 30


@pytest.mark.parametrize("name", OUTPUT_METRICS)
def test_score_of_a_sample_is_the_aggregate_of_its_statistics(name: str) -> None:
    statistics = metrics.per_sentence(name, PREDICTIONS, REFERENCES)
    sample = [0, 0, 3, 1, 0, 2]
    expected = score([name], [PREDICTIONS[i] for i in sample], [REFERENCES[i] for i in sample])[name]
    assert metrics.aggregate(name, statistics[sample].sum(axis=0)) == pytest.approx(expected)
    assert np.isfinite(expected)


def test_signatures_say_how_and_can_be_read_back() -> None:
    made = {name: metrics.signature(name, REFERENCES, tokenize="13a", normalize="logic") for name in OUTPUT_METRICS}
    scorer = sacrebleu.metrics.BLEU(tokenize="13a")
    scorer.corpus_score(PREDICTIONS, [[own[n] if n < len(own) else None for own in REFERENCES] for n in (0, 1)])
    assert made["bleu"] == f"bleu|{scorer.get_signature()}"
    assert "nrefs:var" in made["bleu"]
    assert made["exact_match"] == "exact_match|norm:logic|nrefs:var"
    assert metrics.options(made) == {"tokenize": "13a", "normalize": "logic", "case": "mixed"}
    assert metrics.options({}) == {"tokenize": "none", "normalize": "none", "case": "mixed"}


@pytest.mark.parametrize("name", OUTPUT_METRICS)
def test_lower_cased_scores_say_so(name: str) -> None:
    predictions, references = ["The CAT sat on a mat", "b"], [["the cat SAT on a mat"], ["c"]]
    lower = [text.lower() for text in predictions], [[text.lower() for text in own] for own in references]
    value = score([name], predictions, references, case="lc")
    assert value == score([name], *lower)
    assert value != score([name], predictions, references)
    made = metrics.signature(name, references, case="lc")
    assert "case:lc" in made.split("|")
    assert metrics.options({name: made})["case"] == "lc"


def test_runs_of_spaces_count_as_one_and_other_spaces_are_text() -> None:
    assert score(["exact_match", "wer", "per"], ["a b"], [["a  b "]]) == {"exact_match": 100.0, "wer": 0.0, "per": 0.0}
    # One symbol, as it is for the codec, not two.
    assert score(["per"], ["a\u00a0b"], [["a b"]])["per"] == pytest.approx(100.0)
    assert score(["exact_match"], ["a\u00a0b"], [["a b"]])["exact_match"] == 0.0
    assert logic_form("( a\u00a0b )") == "( a\u00a0b )"


def test_direction() -> None:
    better = {name: metrics.higher_is_better(name) for name in (*OUTPUT_METRICS, "loss", "perplexity", "aer")}
    assert better == {
        "exact_match": True,
        "bleu": True,
        "chrf": True,
        "wer": False,
        "per": False,
        "loss": False,
        "perplexity": False,
        "aer": False,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(["blue"], ["a"], [["a"]]), "did you mean 'bleu'"),
        (lambda: metrics.higher_is_better("exact-match"), "did you mean 'exact_match'"),
        (lambda: score(["bleu"], ["a"], [["a"]], tokenize="13b"), "did you mean '13a'"),
        (lambda: score(["exact_match"], ["a"], [["a"]], normalize="logik"), "did you mean 'logic'"),
        (lambda: score(["bleu"], ["a"], [["a"]], case="lcc"), "did you mean 'lc'"),
        (lambda: score(["per"], [], []), "0 predictions"),
        (lambda: score(["per"], ["a", "b"], [["a"]]), "2 predictions and 1 lists"),
        (lambda: score(["bleu"], ["a"], [[]]), r"references\[0\]"),
        (lambda: score(["bleu"], ["a"], ["a b"]), "expected a list of at least one text"),
        (lambda: score(["per"], ["a"], [[""]]), "every reference is empty"),
    ],
)
def test_wrong_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- logical forms -----------------------------------------------------------------------------


def test_logic_form_hand_made() -> None:
    canonical = "( lambda $0 e ( and ( a $0 ) ( b $0 ) ( or ( c ) ( d ) ) ) )"
    for same in (
        "( lambda $0 e ( and ( b $0 ) ( a $0 ) ( or ( c ) ( d ) ) ) )",
        "( lambda $0 e ( and ( or ( d ) ( c ) ) ( b $0 ) ( a $0 ) ) )",
        "(lambda $0 e (and (or (d) (c)) (b $0) (a $0)))",
        "( lambda $0 e ( and ( b $0 ) ( a $0 ) ( a $0 ) ( or ( c ) ( d ) ) ) )",
        "( lambda $0 e ( and ( b $0 ) ( a $0 ) ( or ( d ) ( c ) )",
        "( lambda $0 e ( and ( b $0 ) ( a $0 ) ( or ( d ) ( c ) ) ) ) ) )",
    ):
        assert logic_form(same) == canonical
    for other in (
        "( lambda $0 e ( or ( a $0 ) ( b $0 ) ( and ( c ) ( d ) ) ) )",
        "( lambda $0 e ( and ( a $0 ) ( b $1 ) ( or ( c ) ( d ) ) ) )",
        "( lambda e $0 ( and ( a $0 ) ( b $0 ) ( or ( c ) ( d ) ) ) )",
        "( lambda $0 e ( and ( a $0 ) ( b $0 ) ( c ) ( d ) ) )",
        "( lambda $0 e ( and ( a $0 ) ( b $0 ) ( or ( c ) ) ( d ) ) )",
    ):
        assert logic_form(other) != canonical


def test_order_matters_everywhere_but_below_and_and_or() -> None:
    assert logic_form("( next_to:t $0 $1 )") != logic_form("( next_to:t $1 $0 )")
    assert logic_form("( > ( a ) ( b ) )") != logic_form("( > ( b ) ( a ) )")
    assert logic_form("( x and ( b ) ( a ) )") == "( x and ( b ) ( a ) )"
    assert logic_form("job ( ANS ) , loc ( ANS , x )") != logic_form("loc ( ANS , x ) , job ( ANS )")


def test_bracket_repair() -> None:
    assert logic_form("job ( ANS ) , \\+ loc ( ANS , locid0") == "job ( ANS ) , \\+ loc ( ANS , locid0 )"
    assert logic_form("job ( ANS ) )") == "job ( ANS )"
    # The rule removes tokens from the end, whatever they are; what then does not nest stays as it was.
    assert logic_form("job ( ANS ) ) , x") == "job ( ANS ) ) , x"
    assert logic_form(") (") == ") ("
    assert logic_form("") == ""


@given(st.lists(st.sampled_from(["(", ")", "and", "or", "a", "b", ","]), max_size=14))
def test_logic_form_is_idempotent_on_anything(tokens: list[str]) -> None:
    once = logic_form(" ".join(tokens))
    assert logic_form(once) == once


def shuffled(tokens: list[str], rng: random.Random) -> str:
    """The same meaning written differently: children of and/or in random order, by an independent parser."""

    def parse(position: int) -> tuple[list, int]:  # type: ignore[type-arg]
        items: list = []  # type: ignore[type-arg]
        while position < len(tokens):
            if tokens[position] == "(":
                item, position = parse(position + 1)
                items.append(item)
            elif tokens[position] == ")":
                return items, position + 1
            else:
                items.append(tokens[position])
                position += 1
        return items, position

    def write(items: list) -> str:  # type: ignore[type-arg]
        if items and items[0] in ("and", "or"):
            items = [items[0], *rng.sample(items[1:], len(items) - 1)]
        return " ".join(item if isinstance(item, str) else f"( {write(item)} )" for item in items)

    return write(parse(0)[0])


def meaning(text: str) -> object:
    """A hashable tree in which and/or hold sets: the meaning that normalisation must keep."""
    stack: list[list] = [[]]  # type: ignore[type-arg]
    for token in text.split():
        if token == "(":
            stack.append([])
        elif token == ")":
            items = stack.pop()
            ordered = tuple(items)
            stack[-1].append((items[0], frozenset(items[1:])) if items[0] in ("and", "or") else ordered)
        else:
            stack[-1].append(token)
    return tuple(stack[0])


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("geo/geo_anonymous_lambda_*.txt", 880), ("job/jobs_anonymous_prolog_*.txt", 640)],
)
def test_logic_form_on_published_targets(pattern: str, count: int, manual_dir: Path) -> None:
    files = sorted((manual_dir / "semantic_parsing").glob(pattern))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert len(lines) == count
    targets = sorted({line.split("\t")[1].strip() for line in lines})
    rng = random.Random(0)
    for target in targets:
        once = logic_form(target)
        assert logic_form(once) == once
        assert meaning(once) == meaning(target)
        assert logic_form(shuffled(target.split(), rng)) == once
        # Losing the closing brackets at the end, as a decoder that stops early does, is repaired.
        assert logic_form(target.rstrip(" )")) == once
    for one, other in itertools.combinations(targets, 2):
        assert (logic_form(one) == logic_form(other)) == (meaning(one) == meaning(other))
