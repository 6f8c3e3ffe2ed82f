"""The array holds every legal pair, each row counts, and the same array is made again."""

import covering
import pytest


def missing(rows, further):
    """Pairs that no row holds although a legal row with them exists among the plain ones with `further` changes."""
    absent = [pair for pair in covering.all_pairs() if pair not in covering.covered(rows)]
    return [pair for pair in absent if any(map(covering.legal, covering.completions(pair, further)))]


def test_every_legal_pair_is_in_the_array():
    rows = covering.array()
    assert all(map(covering.legal, rows))
    assert missing(rows, further=1) == []


@pytest.mark.slow
def test_no_pair_becomes_legal_by_two_further_changes():
    assert missing(covering.array(), further=2) == []


def test_a_row_taken_out_is_missed():
    rows = covering.array()
    lost = [{*covering.pairs_of(row)} - covering.covered([*rows[:n], *rows[n + 1 :]]) for n, row in enumerate(rows)]
    assert sum(map(bool, lost)) > 0.9 * len(rows), "few rows hold nothing that others do not"
    for n in (0, len(rows) // 2):
        assert lost[n]
        assert {*missing([*rows[:n], *rows[n + 1 :]], further=1)} == lost[n]


def test_the_array_is_short_and_the_same_every_time():
    longest = sorted(map(len, covering.AXES.values()))[-2:]
    assert len(covering.array()) < 1.5 * longest[0] * longest[1]
    assert covering.array.__wrapped__(0) == covering.array()


def test_few_rows_hold_every_value():
    chosen = covering.each_value(covering.array())
    for axis, values in zip(zip(*chosen, strict=True), covering.AXES.values(), strict=True):
        assert {*axis} == {*values}
    assert len(chosen) < 20


def test_what_is_legal():
    def legal(**changes):
        return covering.legal(covering.row_of({**covering.PLAIN, **changes}))

    assert legal()
    assert legal(score="none", bridge="zero", input_feeding="context")
    refused = [{"score": "none", "bridge": "zero"}, {"bridge": "backward"}, {"placement": "before", "score": "none"}]
    doubles = [{"score": "none", "window": "local_m"}, {"readout": "deep", "combine": "linear"}]
    assert not any(legal(**changes) for changes in [*refused, *doubles])
