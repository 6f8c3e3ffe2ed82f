import itertools

import numpy as np
import pytest

from attn_jax.data.plan import Plan

SIZES = [[64], [10, 7], [3], [5, 1, 12], [100, 33, 9, 2]]
"""Also buckets that are smaller than a batch, and sizes that no batch divides."""

BATCH = 4


def plan(sizes: list[int], **options: bool) -> Plan:
    return Plan("fingerprint", sizes, BATCH, **options)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("replacement", [False, True])
def test_any_chunking_gives_the_same_plan(sizes, replacement):
    whole = plan(sizes, replacement=replacement)
    ids, rows = whole.buckets(0, 90), whole.indices(5, 0, 90)
    assert ids.shape == (90,)
    assert rows.shape == (90, BATCH)
    for chunk in (1, 7, 45):
        fresh = plan(sizes, replacement=replacement)
        starts = list(range(0, 90, chunk))[::-1]  # in any order: nothing is remembered
        counts = [min(chunk, 90 - start) for start in starts]
        parts = [(fresh.buckets(s, c), fresh.indices(5, s, c)) for s, c in zip(starts, counts, strict=True)][::-1]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), ids)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), rows)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_pass_through_a_bucket_takes_each_example_once(sizes):
    subject, steps = plan(sizes), 400
    ids, rows = subject.buckets(0, steps), subject.indices(2, 0, steps)
    for bucket, size in enumerate(sizes):
        stream = rows[ids == bucket].reshape(-1)
        passes = [stream[i : i + size].tolist() for i in range(0, len(stream) - size + 1, size)]
        assert passes
        assert all(sorted(one) == list(range(size)) for one in passes)
        if size >= 9:
            assert len({tuple(one) for one in passes}) == len(passes), "each pass has its own order"


@pytest.mark.parametrize("sizes", SIZES)
def test_an_epoch_holds_each_bucket_by_its_share(sizes):
    subject = plan(sizes)
    assert subject.steps_per_epoch == sum(sizes) / BATCH
    for epoch in range(1, 60):
        # After e epochs a bucket of n examples has given as many whole batches as fit in e n examples.
        given = [epoch * size // BATCH for size in sizes]
        ids = subject.buckets(0, sum(given))
        assert [int((ids == bucket).sum()) for bucket in range(len(sizes))] == given


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_a_step_is_located_in_its_epoch(sizes, batch):
    subject, expected = Plan("fingerprint", sizes, batch), []
    for epoch in itertools.count():
        before, after = (sum(e * size // batch for size in sizes) for e in (epoch, epoch + 1))
        expected += [(epoch, place) for place in range(after - before)]
        if len(expected) > 1000:
            break
    assert [subject._locate(step) for step in range(1000)] == expected[:1000]


def test_locating_far_steps_is_exact():
    subject = Plan("fingerprint", [7, 100_003], 64)
    for epoch in (10**3, 10**6, 10**9):
        first = sum(epoch * size // 64 for size in (7, 100_003))
        assert subject._locate(first) == (epoch, 0)
        assert subject._locate(first - 1)[0] == epoch - 1


def test_buckets_depend_on_data_and_batch_size_and_examples_on_the_seed():
    sizes = [40, 40]
    ids = plan(sizes).buckets(0, 60)
    assert (ids != Plan("another", sizes, BATCH).buckets(0, 60)).any()
    assert (ids[:40] != Plan("fingerprint", sizes, 2).buckets(0, 40)).any()
    np.testing.assert_array_equal(ids, plan(sizes, replacement=True).buckets(0, 60))
    first, second = (plan(sizes).indices(seed, 0, 60) for seed in (0, 1))
    assert (first != second).mean() > 0.9


def test_epochs_are_in_different_order():
    ids = plan([40, 40]).buckets(0, 200).reshape(10, 20)
    assert len({tuple(epoch) for epoch in ids.tolist()}) == 10


def test_seeds_of_any_size_and_sign():
    rows = [plan([50]).indices(seed, 0, 5) for seed in (-1, 0, 2**31, 2**32 - 2)]
    assert all((a != b).any() for a, b in itertools.combinations(rows, 2))


def test_replacement_draws_uniformly_and_independently():
    size = 10
    rows = plan([size], replacement=True).indices(3, 0, 2000)
    counts = np.bincount(rows.reshape(-1), minlength=size)
    expected = rows.size / size
    assert ((counts - expected) ** 2 / expected).sum() < 27.9, "chi-squared with 9 degrees of freedom, p = 0.001"
    repeats = np.mean([len(set(row)) < BATCH for row in rows.tolist()])
    assert repeats == pytest.approx(1 - (9 * 8 * 7) / 10**3, abs=0.05)
    assert (rows != plan([size], replacement=True).indices(4, 0, 2000)).any()
