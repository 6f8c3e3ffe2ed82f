"""Properties that hold for every score and cell, as functions of a configuration."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from attn_jax.config import Config
from attn_jax.data.corpus import encode
from attn_jax.data.text import EOS, PAD
from attn_jax.decoding import greedy
from attn_jax.seq2seq import Model
from attn_jax.training import States, Trainer, batch_loss

STEPS = 20

MEMBERS = [
    {"optim.learning_rate": 0.05, "dropout.embedding": 0.3, "loss.label_smoothing": 0.1, "optim.clip_norm": 0.5},
    {"optim.learning_rate": 0.01, "dropout.embedding": 0.1, "loss.label_smoothing": 0.2, "optim.clip_norm": 9.0},
    {"optim.learning_rate": 0.20, "dropout.embedding": 0.5, "loss.label_smoothing": 0.3, "optim.clip_norm": 0.1},
    {"optim.learning_rate": 3e302, "dropout.embedding": 0.3, "loss.label_smoothing": 0.1, "optim.clip_norm": 0.5},
]
"""Runs that differ in numbers only. The last one overflows."""


def members(config: Config, changes: list[dict[str, float]] = MEMBERS) -> list[Config]:
    """The configuration with the numbers of each member, and seeds that are not in order."""
    # The rate rises, so that the last one overflows when some steps are done.
    rising = {"optim.schedule": "warmup", "optim.warmup_share": 0.5}
    common = {"train.steps": STEPS, "dropout.readout": 0.1, **rising}
    return [tiny.changed(config, {**common, **change, "seed": 7 - n}) for n, change in enumerate(changes)]


def random_like(shapes: Any) -> Any:
    """Arrays of these shapes, without a compiled program."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / 2, leaf.dtype), shapes)


def random_states(trainer: Trainer) -> States:
    """First states with random parameters."""
    shapes = jax.eval_shape(trainer.start)
    optimizer = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.optimizer)
    runs = len(trainer.members)
    return States(random_like(shapes.params), optimizer, jnp.ones(runs, bool), jnp.full(runs, -1, jnp.int32))


def only(states: States, run: int) -> States:
    """The state of one run as a group of its own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf[run : run + 1]), states)


def copied(states: States) -> States:
    """A copy that outlives training, which gives its own buffers away."""
    return jax.tree.map(jnp.array, states)


def assert_same(found: States, wanted: States, tolerance: float) -> None:
    """Equal parameters and optimiser states."""
    leaves = zip(jax.tree.leaves(found[:2]), jax.tree.leaves(wanted[:2]), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * 1e-2)


def group_equals_lone_run(config: Config) -> None:
    """Twenty steps in a group give what a run gives alone, in chunks of any length; one that overflows stops alone."""
    corpus, runs = encode(tiny.dataset(), config), members(config)
    group = Trainer(runs, corpus, dtype=jnp.float64)
    first = random_states(group)
    states, steps = group.chunk(copied(first), 0, STEPS, STEPS)

    lone = Trainer([runs[1]], corpus, dtype=jnp.float64)
    alone = only(first, 1)
    alone, early = lone.chunk(alone, 0, 7, STEPS)
    alone, late = lone.chunk(alone, 7, STEPS - 7, STEPS)
    assert_same(only(states, 1), alone, 1e-9)
    for part, before, after in zip(steps, early, late, strict=True):
        np.testing.assert_allclose(part[:, 1:2], np.concatenate([before, after]), rtol=1e-9)
    assert not np.allclose(only(states, 0).params["decoder.output.bias"], only(states, 1).params["decoder.output.bias"])

    assert states.active.tolist() == [True, True, True, False]
    assert states.failed[:3].tolist() == [-1, -1, -1]
    failed = int(states.failed[3])
    assert 0 < failed < STEPS
    assert np.isfinite(steps.loss[:, :3]).all()
    last_good, _ = group.chunk(copied(first), 0, failed, STEPS)
    assert bool(last_good.active.all())
    assert_same(only(states, 3), only(last_good, 3), 0.0)


def padding_changes_nothing(config: Config) -> None:
    """The loss, gradients and greedy output of an example alone equal those in a padded batch with others."""
    symbols, limit = 8, 6
    model = Model(config, symbols, symbols, jnp.float64)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))

    @jax.jit
    def outcome(params, source, target):
        def loss(params):
            return batch_loss(model, params, source, target)[0].loss

        return *jax.value_and_grad(loss)(params), greedy(model.bind(params), source, source != PAD, limit)

    draw = np.random.default_rng(0)
    for row in (0, 3):
        source, target = draw.integers(4, symbols, (1, 3)), np.append(draw.integers(4, symbols, (1, 3)), [[EOS]], 1)
        batch_source, batch_target = np.zeros((5, 6), int), np.zeros((5, 7), int)
        for other, length in enumerate((6, 1, 4, 5, 0)):  # the last one is an empty row
            batch_source[other, :length] = draw.integers(4, symbols, length)
        batch_source[row] = np.pad(source[0], (0, 3))
        batch_target[row] = np.pad(target[0], (0, 3))
        loss, gradients, decoded = outcome(params, source, target)
        batch_loss_, batch_gradients, batch_decoded = outcome(params, batch_source, batch_target)

        np.testing.assert_allclose(batch_loss_, loss, rtol=1e-9)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(batch_gradients[name], gradient, rtol=1e-9, atol=1e-13, err_msg=name)
        np.testing.assert_array_equal(batch_decoded.tokens[row], decoded.tokens[0])
        if decoded.weights.shape[-1]:
            np.testing.assert_allclose(batch_decoded.weights[row, ..., :3], decoded.weights[0], rtol=1e-9, atol=1e-15)
            assert not batch_decoded.weights[row, ..., 3:].any()
        assert not batch_decoded.tokens[4].any()
