"""Weights against their definition; masked positions and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax.normalizers import NORMALIZERS


def bisected(weights):
    """The weights whose sum is 1, by bisection of the threshold, in no way by sorting."""

    def solve(e):
        low, high = e.min() - 2, e.max()
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if weights(e - middle).sum() > 1 else (low, middle)
        return weights(e - low)

    return solve


def linear(e):
    positive = np.maximum(e, 0)
    return positive / positive.sum() if positive.sum() > 0 else np.full(e.shape, 1 / e.size)


DEFINITIONS = {
    "softmax": lambda e: np.exp(e - e.max()) / np.exp(e - e.max()).sum(),
    "sparsemax": bisected(lambda x: np.maximum(x, 0)),
    "entmax15": lambda e: bisected(lambda x: np.maximum(x, 0) ** 2)(e / 2),
    "linear": linear,
}

MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)


def scores():
    return np.random.default_rng(0).normal(size=(2, *MASK.shape)) * 3


@pytest.mark.parametrize("name", NORMALIZERS)
def test_weights_are_the_definition_over_unmasked_positions(x64, name):
    weights = np.asarray(NORMALIZERS[name]()(jnp.asarray(scores()), jnp.broadcast_to(MASK, scores().shape)))
    for number, (e, w) in enumerate(zip(scores().reshape(-1, 4), weights.reshape(-1, 4), strict=True)):
        mask = MASK[number % len(MASK)]
        assert np.all(w[~mask] == 0)
        if mask.any():
            np.testing.assert_allclose(w[mask], DEFINITIONS[name](e[mask]), rtol=1e-12, atol=1e-14)
    assert not weights[:, 3].any(), "a row with nothing to attend to"


@pytest.mark.parametrize("name", NORMALIZERS)
def test_gradients_are_those_of_the_row_alone_and_never_nan(x64, name):
    normalize, factors = NORMALIZERS[name](), np.random.default_rng(1).normal(size=(2, *MASK.shape))
    mask = np.broadcast_to(MASK, scores().shape)
    gradient = np.asarray(jax.grad(lambda e: jnp.sum(factors * normalize(e, mask)))(jnp.asarray(scores())))
    assert np.all(gradient[~mask] == 0)
    step = 1e-6
    for b, row in np.ndindex(2, 3):
        kept, e = MASK[row], scores()[b, row, MASK[row]]
        for j in range(kept.sum()):
            ends = [DEFINITIONS[name](e + sign * step * np.eye(kept.sum())[j]) for sign in (1, -1)]
            expected = factors[b, row, kept] @ (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(gradient[b, row, kept][j], expected, rtol=1e-6, atol=1e-9)


def test_softmax_of_large_scores_and_of_what_lies_under_a_mask():
    softmax = NORMALIZERS["softmax"]()
    rows = jnp.array([[1e4, 1e4, -1e4], [-1e30, -1e30, 1e30], [0.0, jnp.inf, 1.0]])
    mask = jnp.array([[True, True, True], [True, True, False], [True, False, True]])
    expected = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [1 / (1 + np.e), 0, np.e / (1 + np.e)]])
    np.testing.assert_allclose(softmax(rows, mask), expected, rtol=1e-6)


def test_linear_as_documented():
    weights = NORMALIZERS["linear"]()(jnp.array([[40.0, 20, 20, 320], [-1, -2, 0, -3]]), jnp.ones((2, 4), bool))
    np.testing.assert_allclose(weights, [[0.1, 0.05, 0.05, 0.8], [0.25] * 4], rtol=1e-6)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_sparse_weights_of_large_shifted_and_tied_scores(x64, name):
    rows = np.array([[1e5, 1e5 + 0.1, 0, -1e5], [3, 3, 3, 3], [0, 0, -5, -9], [1e3, -1e3, 0.5, 1e3]])
    weights = np.asarray(NORMALIZERS[name]()(jnp.asarray(rows), jnp.ones(rows.shape, bool)))
    for row, w in zip(rows, weights, strict=True):
        np.testing.assert_allclose(w, DEFINITIONS[name](row), atol=1e-9)
    assert (weights == 0).sum() >= 6


def jacobian(name, w):
    """Of the weights w with respect to the scores: (diag(s) - s s' / sum s) with s the share of each position."""
    s = {"sparsemax": (w > 0).astype(float), "entmax15": np.sqrt(w), "softmax": w}[name]
    return np.diag(s) - np.outer(s, s) / s.sum()


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax15"])
def test_jacobians_are_the_published_ones_and_the_finite_differences(x64, name):
    """Martins and Astudillo 2016, equation 9; Peters et al. 2019, proposition 2. Long, sparse, masked, tied rows."""
    draw, normalize = np.random.default_rng(3), NORMALIZERS[name]()
    rows = draw.normal(size=(24, 12)) * np.geomspace(0.05, 8, 24)[:, None]
    rows[5, 3] = rows[5, 7]
    mask = draw.random(rows.shape) < np.linspace(1, 0.3, 24)[:, None]
    mask[:, 0] = True

    weights = jax.jit(normalize)
    derivatives = jax.jit(jax.vmap(jax.jacrev(normalize)))
    forwards = jax.jit(jax.vmap(jax.jacfwd(normalize)))
    found, reverse, forward = (np.asarray(f(rows, mask)) for f in (weights, derivatives, forwards))
    step, sparse = 1e-6, 0
    for n, (row, kept) in enumerate(zip(rows, mask, strict=True)):
        w = np.zeros(12)
        w[kept] = DEFINITIONS[name](row[kept])
        sparse += (w[kept] == 0).any()
        np.testing.assert_allclose(found[n], w, rtol=1e-9, atol=1e-12)
        expected = np.zeros((12, 12))
        expected[np.ix_(kept, kept)] = jacobian(name, w[kept])
        # The square root of a bisected weight near zero has half its digits.
        np.testing.assert_allclose(reverse[n], expected, atol=1e-6 if name == "entmax15" else 1e-10)
        np.testing.assert_allclose(forward[n], reverse[n], atol=1e-12)
        for j in np.flatnonzero(kept):
            ends = [DEFINITIONS[name]((row + sign * step * np.eye(12)[j])[kept]) for sign in (1, -1)]
            np.testing.assert_allclose(reverse[n][kept, j], (ends[0] - ends[1]) / (2 * step), atol=1e-5)
    assert sparse > 5 or name == "softmax"


def test_entmax_lies_between_softmax_and_sparsemax():
    rows, mask = jnp.array([[0.9, 0.3, -0.2, -1.5]]), jnp.ones((1, 4), bool)
    largest = [float(NORMALIZERS[name]()(rows, mask).max()) for name in ("softmax", "entmax15", "sparsemax")]
    assert largest == sorted(largest)
    assert largest[0] < largest[2]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_row_with_a_score_that_is_no_number_has_no_weights_that_are(name, wrong):
    e = jnp.array([[wrong, 0.0, 1.0], [wrong, 0.0, 1.0]])
    weights = np.asarray(NORMALIZERS[name]()(e, jnp.array([[True, True, True], [False, True, True]])))
    assert np.isnan(weights[0]).any()
    np.testing.assert_allclose(weights[1].sum(), 1, rtol=1e-6)
    assert weights[1, 0] == 0


@pytest.mark.parametrize("name", NORMALIZERS)
def test_weights_have_the_type_of_scores(x64, name):
    assert NORMALIZERS[name]()(jnp.ones((2, 3), jnp.float32), jnp.ones((2, 3), bool)).dtype == jnp.float32
