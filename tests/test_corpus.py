import pytest
import tiny

from attn_jax.data.corpus import encode
from attn_jax.data.datasets import Dataset
from attn_jax.data.text import EOS, UNK
from attn_jax.errors import UserError


def letters(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> Dataset:
    return tiny.with_splits(tiny.dataset(), train=train, test=test)


def test_vocabularies_come_from_train_only():
    corpus = encode(letters([("a b", "x"), ("a", "x y")], [("a c", "z x")]), tiny.config())
    assert corpus.source.vocabulary.symbols[4:] == ("a", "b")
    assert corpus.target.vocabulary.symbols[4:] == ("x", "y")
    assert corpus.encoded["train"] == [([4, 5], [4, EOS]), ([4], [4, 5, EOS])]
    assert corpus.encoded["test"] == [([4, UNK], [UNK, 4, EOS])]


def test_rare_symbols_and_case():
    data = letters([("A b", "X"), ("a", "x Y")], [("b", "x")])
    plain = encode(data, tiny.config(data__source_min_count=2))
    assert plain.source.vocabulary.symbols[4:] == ()
    lower = encode(data, tiny.config(data__source_min_count=2, data__target_min_count=2, data__lowercase="true"))
    assert lower.source.vocabulary.symbols[4:] == ("a",)
    assert lower.target.vocabulary.symbols[4:] == ("x",)


def test_only_training_pairs_are_left_out_by_length():
    pairs = [("a", "x x x"), ("a a", "x x"), ("a a a", "x")]
    corpus = encode(letters(pairs, pairs), tiny.config(data__max_source_length=2, data__max_target_length=2))
    assert corpus.encoded["train"] == [([4, 4], [4, 4, EOS])]
    assert corpus.left_out == 2
    assert len(corpus.encoded["test"]) == 3


def test_a_split_without_pairs_is_refused():
    with pytest.raises(UserError, match=r"toy/letters: no training pair is left with data.max_source_length=1 and"):
        encode(letters([("a a", "x")], [("a", "x")]), tiny.config(data__max_source_length=1))
