"""What is told of a study that goes on, by a log and by a display, here and from other processes."""

import io
import math

import pytest
import tiny

from attn_jax import progress
from attn_jax.progress import Board, Display, Told

MEMBERS = [tiny.config(seed=3), tiny.config(seed=4)]


class Time:
    """A clock that stands."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    clock = Time()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def play(begin, time):
    """Two programs, one after another; begin: makes what is told of one."""
    for name in "ab":
        row = begin(name)
        row.begin(MEMBERS, 100, 20)
        for step, seconds in ((30, 0.0), (60, 12.0), (70, 0.1), (100, 20.0)):
            time.now += seconds
            row.advance(step, 1 / step, 1000.0)
            if step == 60:
                row.evaluated(step, "bleu", [10.0, 20.0])
        time.now += 1.0
        row.finish("test bleu", [30.0, 31.5])


def test_a_log_and_the_same_from_another_process(time, capsys):
    here = Board()
    here.total = 2
    play(here.program, time)
    lines = capsys.readouterr().err
    assert lines.splitlines()[:5] == [
        "program 1 of 2: scan/simple | additive | gru | 2 runs | seeds 3-4 | 100 steps".replace(
            "additive | gru", f"{MEMBERS[0].score.name} | {MEMBERS[0].cell.name}"
        ),
        "  goes on from step 20",
        "  step 60/100  loss 0.017  1,000 target tokens/s  0:12 left",
        "  step 100/100  loss 0.010  1,000 target tokens/s  0:00 left  dev bleu 15.00",
        "  test bleu 30.00, 31.50  (0:33)",
    ]
    time.now = 0.0
    there = Board()
    there.total = 2
    play(lambda name: Told(lambda told: there.told(name, MEMBERS, told)), time)
    assert capsys.readouterr().err == lines
    assert there.seconds == here.seconds == pytest.approx([33.1, 33.1])


def test_several_at_a_time_are_told_apart_and_one_that_begins_again_keeps_its_number(time, capsys):
    board = Board(2)
    board.total = 3
    for name in "aba":
        board.program(name).begin(MEMBERS, 10)
    time.now = 20.0
    board.rows["b"].advance(5, 1.0, 10.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"program {n} of 3" for n in (1, 2, 1)] + ["  program 2"]


def test_time_left(time):
    board = Board(2)
    board.total = 6
    assert board.left() == math.inf
    for name in "ab":
        board.program(name).begin(MEMBERS, 100)
    time.now = 10.0
    board.rows["a"].advance(50, 1.0, 1.0)
    assert board.left() == math.inf, "nothing is known of b"
    board.rows["b"].advance(20, 1.0, 1.0)
    # a takes 20 s, b 50; four more of 35 s each; two at a time.
    assert board.left() == pytest.approx((10 + 40 + 4 * 35) / 2)
    time.now = 20.0
    board.rows["a"].finish("test bleu", [1.0])
    board.total = 2
    board.rows["b"].advance(40, 1.0, 1.0)
    assert board.left() == pytest.approx(30.0), "one program cannot be done by two"
    board.lost("b")
    assert list(board.rows) == []


def test_the_display_shows_all_that_is_in_hand(time, monkeypatch):
    from rich.console import Console

    board = Display(2)
    board.total, screen = 5, io.StringIO()
    board.terminal = Console(file=screen, width=150)
    for name, step in (("a", 25), ("b", 50)):
        row = board.program(name)
        row.begin(MEMBERS, 100)
        time.now += 10.0
        row.advance(step, 0.5, 12345.0)
        row.evaluated(step, "bleu", [10.0, 20.0])
    board.program("c").begin(MEMBERS, 100)
    time.now += 10.0
    board.rows["c"].advance(50, 0.25, 1.0)
    board.rows["c"].finish("test bleu", [1.0])
    told = screen.getvalue()
    assert "program 3 of 5: " in told
    assert "  program 3: test bleu 1.00  (0:10)" in told
    screen.truncate(0)
    board.terminal.print(board.drawn())
    head, *rows = (" ".join(line.split()) for line in screen.getvalue().strip("\0\n").splitlines())
    assert head.startswith("1 of 5 program(s) done, 0:30 gone, ")
    assert rows == [
        "program 1 2 run(s) step 25/100 loss 0.500 12,345 tokens/s 1:30 left dev bleu 15.00",
        "program 2 2 run(s) step 50/100 loss 0.500 12,345 tokens/s 0:20 left dev bleu 15.00",
    ]


def test_a_terminal_gets_the_display(monkeypatch):
    assert type(progress.board(2)) is Board
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert type(progress.board(2)) is Display
