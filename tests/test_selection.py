import jax.numpy as jnp
import numpy as np

from attn_jax.selection import Selection


def params(step: int) -> dict:
    """Parameters of three runs that tell the step they are from."""
    return {"w": jnp.arange(6.0).reshape(3, 2) + 10 * step}


def evaluated(selection: Selection, *values: list[float]) -> Selection:
    for step, row in enumerate(values, 1):
        selection.update(np.array(row), params(step), step)
    return selection


def test_the_first_of_equally_good_parameters_is_selected():
    selection = evaluated(Selection.start(3, "bleu", 0, params(0)), [1, 5, np.nan], [2, 5, np.nan], [1, 4, np.nan])
    assert selection.step.tolist() == [2, 1, 0]
    assert selection.best.tolist() == [2, 5, -np.inf]
    np.testing.assert_array_equal(selection.params["w"], [[20, 21], [12, 13], [4, 5]])
    assert selection.going.all()


def test_less_is_better_for_errors_and_losses():
    for metric in ("loss", "perplexity", "wer", "per"):
        selection = evaluated(Selection.start(3, metric, 0, params(0)), [3, 2, 1], [2, 2, 2])
        assert selection.step.tolist() == [2, 1, 1]


def test_patience_counts_evaluations_without_a_better_one():
    selection = evaluated(Selection.start(3, "bleu", 2, params(0)), [3, 3, 3], [2, 4, 2], [3, 3, 4], [9, 3, 3])
    reason = "no better bleu in 2 evaluations"
    assert selection.stopped == [{"reason": reason, "step": 3}, {"reason": reason, "step": 4}, None]
    assert selection.step.tolist() == [1, 2, 3], "a run that has stopped is not selected from"
    assert selection.going.tolist() == [False, False, True]


def test_failures_keep_their_first_reason():
    selection = Selection.start(3, "bleu", 1, params(0))
    selection.note_failures(np.array([-1, 7, -1]))
    evaluated(selection, [1, 1, 1], [0, 9, 2])
    selection.note_failures(np.array([8, 7, -1]))
    assert selection.stopped == [
        {"reason": "no better bleu in 1 evaluations", "step": 2},
        {"reason": "loss or gradient was not finite", "step": 7},
        None,
    ]
    assert selection.step.tolist() == [1, 0, 2]


def test_what_is_selected_outlives_the_buffers_of_training():
    given = params(0)
    selection = Selection.start(3, "bleu", 0, given)
    given["w"].delete()
    np.testing.assert_array_equal(selection.params["w"], [[0, 1], [2, 3], [4, 5]])
