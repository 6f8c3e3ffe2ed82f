"""Gradients by source symbol, against derivatives of the definition and against powers of a known matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax import gradients
from attn_jax.errors import UserError
from attn_jax.seq2seq import build

SOURCES = [[4, 5, 4, 7], [8, 4]]
TARGETS = [[3, 3, 5, 2], [6, 7, 2]]


def log_probabilities(params, config, embedded, target):
    """The log p(y_t) of every target symbol from the embedded source, by the definition."""
    states, summary = reference.encode(params, config, embedded)
    inputs = [reference.BOS, *target[:-1]]
    carries = reference.bridge(params, config, states, summary)
    logits, _ = reference.decode(params, config, states, carries, inputs, summary[0][-1])
    return np.array(
        [np.log(reference.softmax(row))[symbol] for row, symbol in zip(logits, target, strict=True)]
    ), logits


def by_complex_step(params, config, source, target):
    """Norms [T, S] and [T] of the derivatives of the definition."""
    embedded = reference.vectors(params, config, "source_embedding", source)
    found = np.zeros((len(target), *embedded.shape))
    for place in np.ndindex(embedded.shape):
        moved = embedded.astype(complex)
        moved[place] += 1e-30j
        found[(slice(None), *place)] = log_probabilities(params, config, moved, target)[0].imag / 1e-30
    _, logits = log_probabilities(params, config, embedded, target)
    wrong = np.array([np.eye(len(row))[y] - reference.softmax(row) for row, y in zip(logits, target, strict=True)])
    return np.linalg.norm(found, axis=-1), np.linalg.norm(wrong @ params["decoder.output.kernel"].T, axis=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "lstm", "score": "additive"},
        {"cell": "gru", "score": "none", "encoder.layers": 2, "decoder.layers": 2},
        {"cell": "rnn", "score": "general", "encoder": "bi", "placement": "before", "input_feeding": "attentional"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_norms_are_those_of_the_definition_and_zero_on_padding(x64, changes):
    model, config, params = reference.tiny_model(**changes)
    source, target = reference.padded(SOURCES, 5), reference.padded(TARGETS, 6)
    # Of the six steps four are taken together, then two.
    found = reference.jit(lambda p: gradients.gradients(model, p, source, target, at_a_time=4))(params)
    for row, (symbols, wanted) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        expected, errors = by_complex_step(params, config, symbols, wanted)
        np.testing.assert_allclose(found.source[row, : len(wanted), : len(symbols)], expected, rtol=1e-9)
        np.testing.assert_allclose(found.error[row, : len(wanted)], errors, rtol=1e-9)
        assert not np.any(found.source[row, len(wanted) :])
        assert not np.any(found.source[row, :, len(symbols) :])
        assert not np.any(found.error[row, len(wanted) :])


def test_a_transformers_norms_are_finite_differences(x64):
    sizes = {"size": 4, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 5}
    config = reference.tiny(model="transformer", **{f"transformer.{name}": value for name, value in sizes.items()})
    model = build(config, reference.SOURCE_SIZE, reference.TARGET_SIZE, jnp.float64)
    params = reference.random_like(jax.eval_shape(model.init, jax.random.key(0)))
    # Every symbol occurs once, so that its row of the table is its position.
    symbols, target = [4, 6, 5], np.array([[3, 5, 2]], np.int32)
    table, step = params["source_embedding.table"], 1e-6

    def log_p(table):
        module, source = model.bind({**params, "source_embedding.table": table}), jnp.array([symbols])
        features, _ = module.teacher_forced(source, source != 0, jnp.array([[reference.BOS, 3, 5]]))
        scores = jax.nn.log_softmax(module.decoder.output(features))[0]
        return scores[jnp.arange(3), target[0]]

    moves = np.zeros((len(symbols), 4, *table.shape))
    for s, e in np.ndindex(moves.shape[:2]):
        moves[s, e, symbols[s], e] = step
    moves = moves.reshape(-1, *table.shape)
    differences = reference.jit(jax.vmap(lambda move: (log_p(table + move) - log_p(table - move)) / (2 * step)))(moves)
    expected = np.linalg.norm(np.asarray(differences).reshape(len(symbols), 4, 3), axis=1).T
    found = reference.jit(lambda p: gradients.gradients(model, p, np.array([symbols]), target))(params)
    np.testing.assert_allclose(found.source[0], expected, rtol=1e-6)


def test_on_a_linear_path_the_norm_is_that_of_a_power_of_the_matrix():
    """Where all states are zero tanh is the identity. In float32, whose squares would be zero here."""
    config = reference.tiny(
        cell="rnn", score="none", bridge="last", **{"encoder.size": 4, "decoder.size": 4, "embedding.size": 3}
    )
    model = build(config, reference.SOURCE_SIZE, reference.TARGET_SIZE)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = {name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes.items()}
    rng = np.random.default_rng(3)
    matrix = (0.01 * rng.normal(size=(4, 4))).astype(np.float32)
    params["encoder.layers.0.0.recurrent"] = params["decoder.core.cells.0.recurrent"] = matrix
    for name in ("encoder.layers.0.0.kernels.0", "decoder.output.kernel", "decoder.output.bias"):
        params[name] = rng.normal(size=params[name].shape).astype(np.float32)
    sources = [rng.integers(3, 9, size=length).tolist() for length in (14, 9)]
    source, target = reference.padded(sources), reference.padded([[3, 4, 5, 6, 2], [4, 3, 2]])
    found = reference.jit(lambda p: gradients.gradients(model, p, source, target))(params)
    away = gradients.distances(np.array([14, 9]), 5, 14)
    assert away.min() < 1 < away.max() == 18
    assert (away[0, 0, 13], away[1, 0, 8], away[1, 2, 0]) == (1, 1, 11)
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    probabilities = reference.softmax(wide["decoder.output.bias"])
    for b, t, s in np.argwhere((source != 0)[:, None, :] & (target != 0)[:, :, None]):
        error = wide["decoder.output.kernel"] @ (np.eye(len(probabilities))[target[b, t]] - probabilities)
        power = np.linalg.matrix_power(matrix.astype(np.float64), away[b, t, s])
        expected = np.linalg.norm(wide["encoder.layers.0.0.kernels.0"] @ power @ error)
        np.testing.assert_allclose(found.source[b, t, s], expected, rtol=1e-4)
        np.testing.assert_allclose(found.error[b, t], np.linalg.norm(error), rtol=1e-5)
    assert 0 < np.min(found.source[0, 4]) < 1e-20


def test_means_by_distance_and_what_is_read_off_them():
    values = np.array([[[1.0, 2.0, 9.0], [4.0, 8.0, 9.0]], [[10.0, np.inf, 30.0], [40.0, 50.0, 60.0]]])
    away = gradients.distances(np.array([2, 3]), 2, 3)
    np.testing.assert_array_equal(away, [[[2, 1, 0], [3, 2, 1]], [[3, 2, 1], [4, 3, 2]]])
    counted = np.ones((2, 2, 3), bool)
    counted[0, :, 2] = False  # padding
    found = gradients.by_distance(values, away, counted, 5)
    # By hand: 2, 30; then 1, 8, 60 without the infinite one; 4, 10, 50; 40.
    np.testing.assert_allclose(found, [np.nan, 16, 23, 64 / 3, 40, np.nan])
    np.testing.assert_allclose(gradients.by_distance(values, away, counted, 2), found[:3])
    curve = np.concatenate([[np.nan], 3 * 0.5 ** np.arange(1, 12), [0, np.nan]])
    assert gradients.decay(curve) == pytest.approx(0.5)
    assert gradients.decay(curve[:2]) is None
    # Of 1.5, 0.75, ..., the eighth is the first that is not above 0.012.
    assert (gradients.falls_to(curve, 0.012), gradients.falls_to(curve, 0.75)) == (8, 2)
    assert gradients.falls_to(curve[:5], 0.01) is None


def test_one_hot_sources_are_refused():
    with pytest.raises(UserError, match="embedding=onehot: there are no source vectors"):
        gradients.check(reference.tiny(embedding="onehot"))
    gradients.check(reference.tiny())
