"""Model FLOPs: what the products of a recurrent encoder-decoder cost on real tokens, a multiply-add counting as two.

Padding, element-wise functions and the optimiser do not count. A training step costs three forward passes: the gradient
of a product is two products of the same size.
"""

from collections.abc import Sequence

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
STATES = {"rnn": 1, "gru": 1, "lstm": 2}


def recurrence(cell: str, inputs: int, size: int) -> int:
    """One step of a cell for one sequence, forward."""
    return 2 * GATES[cell] * size * (inputs + size)


def training_step(
    lengths: Sequence[tuple[int, int]],
    *,
    cell: str,
    embedding: int,
    encoder: int,
    decoder: int,
    vocabulary: int,
    feeding: bool,
    bridge: str,
) -> int:
    """A step of training on sentences of these (source, target) lengths.

    The model is one bidirectional layer of `encoder` units a direction, a decoder of one layer with attention `after`
    the cell and the score `general`, combined by one dense layer, read by one projection. bridge: zero, or any of one
    dense layer for each part of the state.
    """
    memory = 2 * encoder
    source, target = sum(s for s, _ in lengths), sum(t for _, t in lengths)
    pairs = sum(s * t for s, t in lengths)
    of_source = 2 * recurrence(cell, embedding, encoder) + 2 * memory * decoder  # with keys
    of_target = recurrence(cell, embedding + (decoder if feeding else 0), decoder)
    of_target += 2 * (memory + decoder) * decoder + 2 * decoder * vocabulary
    of_pair = 2 * decoder + 2 * memory  # score and context
    of_sentence = 2 * STATES[cell] * memory * decoder if bridge != "zero" else 0
    return 3 * (source * of_source + target * of_target + pairs * of_pair + len(lengths) * of_sentence)
