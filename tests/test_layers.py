"""Dropout by site, first values, embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import reference

from attn_jax.layers import Dense, Embedding, Noise, dropped

# Threefry, the usual kind of key, takes seconds to compile for a whole model.
KEY = jax.random.key(0, impl="rbg")


def test_mask_is_zero_with_its_rate_and_keeps_the_expectation():
    for rate in (0.1, 0.5):
        mask = np.asarray(Noise(KEY, {"layer": rate}).mask("layer", "a", (200, 200)))
        assert {*np.unique(mask)} == {np.float32(0), np.float32(1) / np.float32(1 - rate)}
        # 40,000 draws: four standard deviations.
        deviation = (rate * (1 - rate) / mask.size) ** 0.5
        assert abs((mask == 0).mean() - rate) < 4 * deviation
        assert abs(mask.mean() - 1) < 4 * deviation / (1 - rate)


def test_sites_and_places_are_independent_and_repeatable():
    noise = Noise(KEY, {"layer": 0.5, "embedding": 0.5})
    draws = [noise.mask(site, place, (100, 100)) > 0 for site in noise.rates for place in ("a", "b")]
    draws.append(Noise(jax.random.key(1, impl="rbg"), noise.rates).mask("layer", "a", (100, 100)) > 0)
    for n, one in enumerate(draws):
        for other in draws[:n]:
            assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.05
    np.testing.assert_array_equal(draws[0], Noise(KEY, {"layer": 0.5}).mask("layer", "a", (100, 100)) > 0)


def test_a_site_without_rate_is_off():
    noise = Noise(KEY, {"layer": 0.5})
    x = jnp.ones((2, 3))
    assert noise.mask("embedding", "a", (2, 3)) is None
    assert dropped(x, noise, "embedding", "a") is x
    assert dropped(x, None, "layer", "a") is x
    np.testing.assert_array_equal(dropped(x, Noise(KEY, {"layer": 0.0}), "layer", "a"), x)


def test_a_broadcast_mask_drops_whole_symbols():
    x = jnp.ones((50, 4, 3))
    y = np.asarray(dropped(x, Noise(KEY, {"word": 0.5}), "word", "source", (50, 4, 1)))
    assert ((y == 0).all(-1) | (y == 2).all(-1)).all()
    assert 0.3 < (y == 0).mean() < 0.7


def test_every_site_acts_in_the_model_and_rate_zero_does_not(x64):
    model, _, params = reference.tiny_model(**{"encoder.layers": 2, "decoder.layers": 2, "score": "none"})
    source, inputs = np.full((3, 4), 5, np.int32), np.full((3, 6), 4, np.int32)
    off = dict.fromkeys(("embedding", "layer", "recurrent", "readout", "word"), 0.0)

    @reference.jit
    def features(params, key, rates):
        return model.bind(params).teacher_forced(source, source != 0, inputs, Noise(key, rates))[0]

    plain = np.asarray(reference.jit(lambda p: model.bind(p).teacher_forced(source, source != 0, inputs)[0])(params))
    np.testing.assert_allclose(features(params, KEY, off), plain, rtol=1e-12)
    for site in off:
        one, other = (
            np.asarray(features(params, jax.random.key(seed, impl="rbg"), {**off, site: 0.5})) for seed in (3, 4)
        )
        assert np.abs(one - plain).max() > 1e-3, site
        assert np.abs(one - other).max() > 1e-3, f"{site}: the same noise for two keys"
        if site == "readout":
            kept = one != 0
            assert 0.2 < kept.mean() < 0.8
            np.testing.assert_allclose(one[kept], 2 * plain[kept], rtol=1e-12)


def test_recurrent_mask_is_one_for_all_steps(x64):
    """With state dropout the model is the one whose recurrent rows are scaled by the mask."""
    model, config, params = reference.tiny_model(score="none", cell="rnn", input_feeding="none")
    source, inputs = np.array([[5, 6, 7, 8]], np.int32), np.array([[1, 4, 5, 6]], np.int32)
    noise = Noise(KEY, {"recurrent": 0.5})
    found = reference.jit(lambda p: model.bind(p).teacher_forced(source, source != 0, inputs, noise)[0])(params)
    scaled = dict(params)
    for place, name, size in [
        ("encoder/0/False", "encoder.layers.0.0.recurrent", config.encoder.size),
        ("decoder/0", "decoder.core.cells.0.recurrent", config.decoder.size),
    ]:
        mask = np.asarray(noise.mask("recurrent", place, (1, size), jnp.float64))[0]
        assert 0 < (mask == 0).sum() < size, "a mask of one kind shows nothing"
        scaled[name] = mask[:, None] * params[name]
    logits, _ = reference.model(scaled, config, list(source[0]), list(inputs[0]))
    expected = np.asarray(found[0]) @ params["decoder.output.kernel"] + params["decoder.output.bias"]
    np.testing.assert_allclose(expected, logits, rtol=1e-9)


def test_embedding_masks_act_on_elements_and_word_masks_on_symbols(x64):
    model, config, params = reference.tiny_model(score="none", cell="rnn")
    source = np.array([[5, 6, 7, 8, 4], [4, 5, 6, 0, 0]], np.int32)
    noise = Noise(KEY, {"word": 0.5, "embedding": 0.3})
    memory = reference.jit(lambda p: model.bind(p).encode(source, source != 0, noise))(params)
    words = np.asarray(noise.mask("word", "source", (5, 2, 1), jnp.float64))
    elements = np.asarray(noise.mask("embedding", "source", (5, 2, config.embedding.size), jnp.float64))
    assert {*np.unique(words)} == {0.0, 2.0}
    for row, length in enumerate((5, 3)):
        inputs = params["source_embedding.table"][source[row, :length]] * words[:length, row] * elements[:length, row]
        np.testing.assert_allclose(memory.states[row, :length], reference.encode(params, config, inputs)[0], rtol=1e-9)


def test_masks_are_the_same_step_by_step_and_all_at_once(x64):
    """A model that feeds, with a feeding matrix of zeros, is the one that does not, with noise at every site."""
    changes = {"decoder.layers": 2, "score": "dot", "cell": "gru"}
    plain, _, params = reference.tiny_model(**changes)
    feeding, config, _ = reference.tiny_model(**changes, input_feeding="attentional")
    silent = {**params, "decoder.core.cells.0.kernels.1": np.zeros((config.decoder.size, 3 * config.decoder.size))}
    source, inputs = np.full((2, 4), 5, np.int32), np.array([[1, 4, 5], [1, 6, 7]], np.int32)
    noise = Noise(KEY, dict.fromkeys(("embedding", "layer", "recurrent", "readout", "word"), 0.3))

    def features(model, params):
        return reference.jit(lambda p: model.bind(p).teacher_forced(source, source != 0, inputs, noise))(params)

    for found, expected in zip(features(feeding, silent), features(plain, params), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_first_values_by_name():
    shape, n = (100, 300), 100
    limits = {"uniform": 0.2, "fan_in": n**-0.5, "glorot": (6 / 400) ** 0.5}
    for name, limit in limits.items():
        values = np.asarray(reference.initializer(name=name).matrix(shape)[...])
        assert 0.99 * limit < np.abs(values).max() <= limit, name
        assert abs(values.std() - limit / 3**0.5) < 0.02 * limit, name
    normal = reference.initializer(name="normal")
    for values in (normal.matrix(shape), normal.recurrent(100, 3), normal.embedding(*shape), normal.bias(30000, 1)):
        assert abs(np.std(values[...]) - 0.2) < 0.005
    table = reference.initializer().embedding(1000, 16)[...]
    assert abs(np.std(table) - 0.25) < 0.01


def test_seeds_differ_and_repeat():
    def matrix(seed):
        return np.asarray(reference.initializer(seed=seed).matrix((3, 3))[...])

    np.testing.assert_array_equal(matrix(0), matrix(0))
    assert np.abs(matrix(0) - matrix(1)).min() > 0


def test_dense_and_embedding_by_hand(x64):
    init, rng = reference.initializer(jnp.float64, "normal"), np.random.default_rng(0)
    dense, x = Dense(3, 2, init=init), rng.normal(size=(4, 5, 3))
    expected = np.einsum("abi,io->abo", x, dense.kernel[...]) + np.asarray(dense.bias[...])
    np.testing.assert_allclose(dense(jnp.asarray(x)), expected, rtol=1e-12)
    np.testing.assert_allclose(dense(jnp.asarray(x[0, 0])), expected[0, 0], rtol=1e-12)
    table = Embedding(5, 2, init=init)
    np.testing.assert_array_equal(table(jnp.array([[3, 0]])), np.asarray(table.table[...])[[[3, 0]]])
