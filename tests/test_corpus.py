import itertools

import numpy as np
import pytest
import tiny

from attn_jax.data.corpus import Bucket, Pairs, _best_cut, buckets, encode, pad, padding_share
from attn_jax.data.datasets import Dataset
from attn_jax.data.text import EOS, UNK
from attn_jax.errors import UserError


def random_pairs(count: int, seed: int, longest: int = 12) -> Pairs:
    draw = np.random.default_rng(seed)
    sides = draw.integers(1, longest + 1, (count, 2))
    return [tuple(draw.integers(4, 99, n).tolist() for n in row) for row in sides]


def positions(parts: list[list[tuple[int, int]]]) -> int:
    """Source and target positions of parts whose examples are padded to the longest of each side."""
    return sum(len(part) * (max(s for s, _ in part) + max(t for _, t in part)) for part in parts)


def least_after_one_cut(lengths: list[tuple[int, int]], smallest: int) -> int:
    """The fewest positions that one cut, at any length of either side, leaves; without a legal one all of them."""
    least = positions([lengths])
    for axis, limit in itertools.product((0, 1), range(1, 100)):
        short = [pair for pair in lengths if pair[axis] <= limit]
        long = [pair for pair in lengths if pair[axis] > limit]
        if min(len(short), len(long)) >= max(smallest, 1):
            least = min(least, positions([short, long]))
    return least


def lengths_of(pairs: Pairs) -> list[tuple[int, int]]:
    return [(len(s), len(t)) for s, t in pairs]


@pytest.mark.parametrize(("count", "smallest", "most"), [(1, 4, 8), (40, 1, 8), (57, 5, 3), (200, 16, 16), (7, 9, 8)])
def test_every_example_is_in_exactly_one_bucket_unchanged(count, smallest, most):
    pairs = random_pairs(count, seed=count)
    found = buckets(pairs, smallest=smallest, padding=0.05, most=most)

    assert sorted(np.concatenate([bucket.index for bucket in found])) == list(range(count))
    assert len(found) <= most
    assert all(len(bucket.index) >= min(smallest, count) for bucket in found)
    for bucket in found:
        chosen = [pairs[i] for i in bucket.index]
        assert bucket.source.shape == (len(chosen), max(len(s) for s, _ in chosen))
        assert bucket.target.shape == (len(chosen), max(len(t) for _, t in chosen))
        for row, (source, target) in enumerate(chosen):
            assert [*source, *[0] * (bucket.source.shape[1] - len(source))] == bucket.source[row].tolist()
            assert [*target, *[0] * (bucket.target.shape[1] - len(target))] == bucket.target[row].tolist()


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.3])
def test_buckets_are_cut_until_padding_is_low_enough(limit):
    pairs = random_pairs(60, seed=1, longest=5)
    found = buckets(pairs, smallest=3, padding=limit, most=100)
    if padding_share(found) > limit:
        # Then no bucket has a legal cut that saves anything.
        for bucket in found:
            part = [lengths_of(pairs)[i] for i in bucket.index]
            assert least_after_one_cut(part, 3) == positions([part])
    else:
        fewer = buckets(pairs, smallest=3, padding=limit, most=max(1, len(found) - 1))
        assert len(found) == 1 or padding_share(fewer) > limit


@pytest.mark.parametrize("smallest", [1, 3, 10])
def test_the_cut_is_the_best_of_all(smallest):
    for seed in range(20):
        pairs = random_pairs(20, seed, longest=9)
        lengths = lengths_of(pairs)
        cut = _best_cut(np.array(lengths), smallest)
        assert positions([lengths]) - cut.saved == least_after_one_cut(lengths, smallest)
        two = buckets(pairs, smallest=smallest, padding=0.0, most=2)
        assert sum(b.source.size + b.target.size for b in two) == least_after_one_cut(lengths, smallest)


def test_equal_lengths_need_one_bucket():
    assert len(buckets([([4, 5], [6])] * 9, padding=0.0)) == 1


def test_padding_share_by_hand():
    bucket = Bucket(np.array([[4, 5, 6], [4, 0, 0]]), np.array([[7, 2], [2, 0]]), np.array([0, 1]))
    assert padding_share([bucket]) == pytest.approx(3 / 10)
    assert padding_share([bucket, bucket]) == pytest.approx(3 / 10)


def test_pad_refuses_what_does_not_fit():
    assert pad([[4, 5], [], [6]], 2).tolist() == [[4, 5], [0, 0], [6, 0]]
    with pytest.raises(ValueError, match="broadcast"):
        pad([[4, 5, 6]], 2)


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
