"""Cross-entropy in chunks against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax import losses
from attn_jax.losses import cross_entropy

TOKENS, FEATURES, VOCABULARY = 7, 3, 5


def problem():
    rng = np.random.default_rng(0)
    targets = np.array([2, 0, 4, 1, 0, 3, 4], np.int32)
    arrays = {
        "x": rng.normal(size=(TOKENS, FEATURES)) * 2,
        "kernel": rng.normal(size=(FEATURES, VOCABULARY)),
        "bias": rng.normal(size=VOCABULARY),
    }
    return arrays, targets, np.where(targets == 0, 0, rng.random(TOKENS) + 0.5)


def definition(arrays, targets, weights, smoothing):
    """Loss, negative log-likelihood, and right predictions, token by token; q spreads over symbols 1 to V - 1."""
    loss = nll = correct = 0.0
    for x, target, weight in zip(arrays["x"], targets, weights, strict=True):
        logits = x @ arrays["kernel"] + arrays["bias"]
        log_p = logits - np.log(np.sum(np.exp(logits)))
        q = np.full(VOCABULARY, smoothing / (VOCABULARY - 1))
        q[0] = 0
        q[target] += 1 - smoothing
        loss = loss - weight * np.sum(q * log_p)
        nll = nll - weight * log_p[target]
        correct += weight * (np.argmax(logits.real) == target)
    return loss, nll, correct


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.3])
@pytest.mark.parametrize(
    ("chunk_bytes", "blocks"), [(1 << 20, 1), (2 * VOCABULARY * 8, 1), (2 * VOCABULARY * 8, 5), (1, 1), (1, 2), (1, 3)]
)
def test_totals_and_gradients_are_the_definition(x64, monkeypatch, smoothing, chunk_bytes, blocks):
    """In one chunk, in four chunks of two tokens (the last one padded), and token by token.

    The gradient of the kernel at once, and in blocks of one column, of three and two, and of two, two and one.
    """
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(losses, "BLOCK_BYTES", FEATURES * VOCABULARY * 8 // blocks)
    monkeypatch.setattr(losses, "FEWEST_BLOCKS", 2)
    arrays, targets, weights = problem()

    @reference.jit
    def run(arrays, weights, smoothing):
        def loss(arrays):
            # Three times the loss: a cotangent other than 1.
            totals = cross_entropy(arrays["x"], arrays["kernel"], arrays["bias"], targets, weights, smoothing)
            return 3 * totals.loss, totals

        return jax.value_and_grad(loss, has_aux=True)(arrays), loss(arrays)[1]

    ((_, differentiated), gradients), plain = run(arrays, weights, smoothing)
    expected = definition(arrays, targets, weights, smoothing or 0.0)
    np.testing.assert_allclose(plain, expected, rtol=1e-9)
    np.testing.assert_allclose(differentiated, expected, rtol=1e-9)
    reference.assert_gradients(lambda a: 3 * definition(a, targets, weights, smoothing or 0.0)[0], arrays, gradients)
    assert not np.any(gradients["x"][weights == 0]), "padding has a gradient"


@pytest.mark.parametrize("blocks", range(2, 9))
@pytest.mark.parametrize("vocabulary", [5, 6, 7, 8])
def test_every_column_of_a_kernel_gradient_is_added_once(x64, monkeypatch, vocabulary, blocks):
    monkeypatch.setattr(losses, "BLOCK_BYTES", 3 * vocabulary * 8 // blocks)
    monkeypatch.setattr(losses, "FEWEST_BLOCKS", 2)
    draw = np.random.default_rng(0)
    before, x, d_logits = (draw.normal(size=shape) for shape in ((3, vocabulary), (4, 3), (4, vocabulary)))
    found = jax.jit(losses._plus_product, static_argnums=0)(None, before, x, d_logits)
    np.testing.assert_allclose(found, before + x.T @ d_logits, rtol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 4])
def test_bfloat16_gradients_are_those_of_rounded_logit_gradients(monkeypatch, chunk_bytes):
    """With exact operands, d_bias is the sum of what is rounded: p - q to 8 bits, token by token."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk_bytes)
    targets, x = np.array([1, 3, 3], np.int32), np.ones((3, 1), np.float32)
    kernel = np.array([[0.5, -1, 2, 0.25]], np.float32)

    def loss(bias):
        return cross_entropy(x, kernel, bias, targets, jnp.ones(3), dtype=jnp.bfloat16).loss

    gradient = reference.jit(jax.grad(loss))(jnp.zeros(4))
    p = np.exp(kernel) / np.exp(kernel).sum()
    each = (p - np.eye(4)[targets]).astype(np.float32)
    rounded = np.asarray(jnp.asarray(each).astype(jnp.bfloat16), np.float32)
    np.testing.assert_allclose(gradient, rounded.sum(axis=0), rtol=1e-5)
    assert np.max(np.abs(rounded.sum(axis=0) - each.sum(axis=0))) > 1e-4, "nothing was rounded"


def test_smoothing_has_no_mass_on_padding(x64):
    """With uniform predictions except a certain padding symbol, the loss does not depend on what padding gets in q."""
    uniform = cross_entropy(jnp.ones((1, 1)), jnp.zeros((1, 5)), jnp.zeros(5), jnp.array([2]), jnp.ones(1), 0.4)
    np.testing.assert_allclose(uniform.loss, np.log(5), rtol=1e-12)
    # Padding has probability e^-20 or so: with mass on it the loss would grow by 0.08 * 20.
    bias = jnp.array([-20.0, 0, 0, 0, 0])
    found = cross_entropy(jnp.ones((1, 1)), jnp.zeros((1, 5)), bias, jnp.array([2]), jnp.ones(1), 0.4)
    np.testing.assert_allclose(found.loss, np.log(4 + np.exp(-20)), rtol=1e-12)


def test_large_logits_stay_finite():
    def loss(x):
        kernel = jnp.array([[1e4, -1e4, 0.0]])
        return cross_entropy(x, kernel, jnp.zeros(3), jnp.array([1]), jnp.ones(1)).loss

    value, gradient = jax.value_and_grad(loss)(jnp.ones((1, 1)))
    np.testing.assert_allclose([value, gradient[0, 0]], [2e4, 2e4], rtol=1e-6)


def test_under_vmap_each_run_has_its_own_smoothing(x64):
    arrays, targets, weights = problem()
    rates = np.array([0.0, 0.1, 0.5])
    runs = jax.vmap(lambda s: cross_entropy(*map(jnp.asarray, arrays.values()), targets, jnp.asarray(weights), s).loss)
    np.testing.assert_allclose(runs(rates), [definition(arrays, targets, weights, s)[0] for s in rates], rtol=1e-9)


def test_of_equal_logits_the_first_counts(x64):
    draw = np.random.default_rng(2)
    kernel, targets = np.eye(VOCABULARY), draw.integers(0, VOCABULARY, 200)
    logits = draw.integers(0, 3, (200, VOCABULARY)).astype(float)
    ones, zeros = np.ones(200), np.zeros(VOCABULARY)
    correct = reference.jit(cross_entropy)(logits, kernel, zeros, targets, ones).correct
    assert correct == np.sum(logits.argmax(axis=1) == targets)
    assert correct < np.sum(logits[np.arange(200), targets] == logits.max(axis=1)), "there are ties"
