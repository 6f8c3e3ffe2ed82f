"""Variants of what a data set recommends."""

import pytest
import tiny

from attn_jax import sweep
from attn_jax.combinators import grid
from attn_jax.encoders import memory_size
from attn_jax.errors import UserError

SIZES = {"encoder.name": "uni", "encoder.size": 6, "decoder.size": 6, "bridge": "last"}


def widths(variants):
    return [(one.encoder.name, one.encoder.size, memory_size(one), one.decoder.size) for one in variants]


@pytest.mark.parametrize("recommended", [SIZES, SIZES | {"encoder.name": "bi", "encoder.size": 3}])
def test_encoders_are_compared_at_one_width_of_memory(recommended):
    data, axes = tiny.dataset(recommended=recommended), {"encoder.name": ["uni", "bi", "reversed"]}
    expected = [("uni", 6, 6, 6), ("bi", 3, 6, 6), ("reversed", 6, 6, 6)]
    assert widths(sweep.variants(data, {"score": "dot"}, grid(axes))) == expected
    assert sweep.merged(sweep.variants(data, {"score": "dot"}, grid(axes)))[1] == 0, "all legal, with bridge=last"
    assert widths([sweep.base(data, {"encoder": "bi"})]) == expected[1:2]
    assert widths(sweep.variants(data, {"hidden_size": 8}, grid(axes))) == [
        ("uni", 8, 8, 8),
        ("bi", 4, 8, 8),
        ("reversed", 8, 8, 8),
    ]


def test_a_size_that_is_given_stays_as_it_is():
    data, axes = tiny.dataset(recommended=SIZES), {"encoder.name": ["uni", "bi"]}
    for size in ({"encoder.size": "5"}, {"encoder.size": "5", "hidden_size": "6"}):
        assert widths(sweep.variants(data, size, grid(axes))) == [("uni", 5, 5, 6), ("bi", 5, 10, 6)]
    swept = sweep.variants(data, {}, grid({"encoder.size": [2, 3], "encoder": ["bi"]}))
    assert widths(swept) == [("bi", 2, 4, 6), ("bi", 3, 6, 6)]


def test_an_odd_memory_has_no_two_halves():
    data = tiny.dataset(recommended=SIZES | {"encoder.size": 5})
    with pytest.raises(UserError, match=r"encoder=bi cannot give a memory of width 5, half .*: set encoder.size"):
        sweep.base(data, {"encoder": "bi"})


@pytest.mark.parametrize(
    ("path", "value"), [("train.patience", "3"), ("train.eval_every", "5"), ("train.metric", "loss")]
)
def test_what_needs_a_dev_split_is_refused_without_one(path, value):
    with pytest.raises(UserError, match=f"{path}={value}: toy/letters has no dev split to evaluate on"):
        sweep.base(tiny.dataset(dev=0), {path: value})
    assert str(getattr(sweep.base(tiny.dataset(), {path: value}).train, path.partition(".")[2])) == value


def test_without_a_dev_split_selection_makes_no_other_run():
    data = tiny.dataset(dev=0)
    best, last = (sweep.base(data, {"train.select": select}) for select in ("best_dev", "last"))
    assert best == last
    assert (last.train.select, last.train.eval_every) == ("last", 0), "tiny recommends 2"


def test_bleu_tokenizer():
    data = tiny.dataset(metric="bleu", tokenize="13a")
    own, same, other = (sweep.base(data, {"data.bleu_tokenizer": name}) for name in ("own", "13a", "char"))
    assert own == same != other
    with pytest.raises(UserError, match=r"data\.bleu_tokenizer=char: toy/letters is scored by wer, not by BLEU"):
        sweep.base(tiny.dataset(metric="wer"), {"data.bleu_tokenizer": "char"})
    sweep.base(tiny.dataset(metric="wer"), {"data.bleu_tokenizer": "char", "train.metric": "bleu"})
