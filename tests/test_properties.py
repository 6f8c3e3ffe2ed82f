"""What holds for every configuration, checked for all legal pairs of values of any two axes (see covering.py).

One compiled program a configuration holds the two ways in which a model is run: all steps of a padded batch at once, as
in training, and one lone example step by step, as in search.
"""

import functools
from typing import Any, NamedTuple

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from attn_jax.data.corpus import encode
from attn_jax.data.text import BOS, PAD
from attn_jax.seq2seq import Model
from attn_jax.training import Trainer, batch_loss

SYMBOLS = 8
SOURCES, TARGETS = [[4, 5, 6, 7, 5], [6, 4, 7], [5], []], [[4, 2], [7, 3, 2], [5, 6, 7, 2], [2]]
LENGTHS = np.array([len(source) for source in SOURCES])
ROW = 1
"""The example that is also run alone: shorter than the batch is wide, on both sides."""
SOURCE, TARGET = reference.padded(SOURCES, 6), reference.padded(TARGETS, 5)
INPUTS = np.concatenate([np.full((len(TARGETS), 1), BOS), TARGET[:, :-1]], axis=1)
IN_PLACE, TURNED = np.arange(SOURCE.shape[1]), np.array([3, 5, 0, 2, 4, 1])

BY_POSITION = {"location"}
"""Scores that look at positions."""

IDS = ["-".join(map(str, row)) for row in covering.array()]


class Run(NamedTuple):
    """Of the padded batch: loss of its ROW, logits and weights; of that example alone: the same."""

    loss: Any
    logits: Any
    weights: Any
    alone_loss: Any
    alone_logits: Any
    alone_weights: Any


def nll(logits, target):
    """Sum over the real symbols of a target."""
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(target == PAD, 0, logp))


def outcome(model: Model, params, order) -> tuple[Any, Run]:
    """Loss of ROW, and everything else. order: of the positions in which the decoder finds the memory of the batch."""
    module = model.bind(params)
    memory = module.encode(jnp.asarray(SOURCE), jnp.asarray(SOURCE != PAD))
    memory = memory._replace(states=memory.states[:, order], mask=memory.mask[:, order])
    features, weights = module.decoder.teacher_forced(jnp.asarray(INPUTS), memory)
    logits = module.decoder.output(features)
    loss = nll(logits[ROW], jnp.asarray(TARGET[ROW]))

    source, target = np.array([SOURCES[ROW]]), np.array(TARGETS[ROW])
    state, prepared = module.decoder.start(module.encode(jnp.asarray(source), jnp.ones(source.shape, bool)))

    def step(state, token):
        state, logits, weights = reference.step(module.decoder, state, token[None], prepared)
        return state, (logits[0], weights[0])

    _, (alone_logits, alone_weights) = jax.lax.scan(step, state, jnp.array([BOS, *target[:-1]]))
    return loss, Run(loss, logits, weights, nll(alone_logits, jnp.asarray(target)), alone_logits, alone_weights)


def randomised(model: Model) -> dict[str, Any]:
    return reference.random_like(jax.eval_shape(model.init, jax.random.key(0)))


def allowed_sums(config) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest sum of the weights of each row and step."""
    steps = np.arange(1, INPUTS.shape[1] + 1)[None]
    some = np.broadcast_to(LENGTHS[:, None] > 0, (len(SOURCES), steps.size))
    if config.window.name == "local_m":
        some = some & (steps <= LENGTHS[:, None] + config.window.width)
    least = np.zeros(some.shape) if config.window.name.startswith("local_p") else some
    return least.astype(float), some.astype(float)


def check_weights(config, weights) -> None:
    """Exactly zero on padding; sums as defined."""
    weights = np.asarray(weights)
    for row, length in enumerate(LENGTHS):
        assert not weights[row, ..., length:].any(), "weights on padding"
    assert (weights >= 0).all()
    sums = weights.sum(axis=-1)
    heads = (1,) * (sums.ndim - 2)
    least, most = (bound.reshape(*bound.shape, *heads) for bound in allowed_sums(config))
    assert (sums >= least - 1e-12).all()
    assert (sums <= most + 1e-12).all()
    assert ((sums > 0) == (most > 0)).all(), "something is attended to exactly where there is something"


def check_row(row: covering.Row) -> None:
    """All properties of one configuration."""
    config = covering.config_of(row)
    model = Model(config, SYMBOLS, SYMBOLS, jnp.float64)
    params = randomised(model)
    run = reference.jit(jax.value_and_grad(functools.partial(outcome, model), has_aux=True))
    (_, found), gradients = run(params, IN_PLACE)
    length, steps = LENGTHS[ROW], len(TARGETS[ROW])

    # Padding and the rest of the batch change nothing, and steps one by one are all steps at once.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    same(found.logits[ROW, :steps], found.alone_logits)
    same(found.loss, found.alone_loss)
    attends = found.weights.shape[-1] > 0
    assert attends == (config.score.name != "none")
    if attends:
        same(found.weights[ROW, :steps, ..., :length], found.alone_weights)
        check_weights(config, found.weights)

    # The gradient in the padded batch is the derivative of the lone example's loss, step by step. The step h leaves an
    # error of h^2 from the third derivative and of 1e-16 / h from rounding.
    direction, h = reference.random_like(params, seed=7, scale=1.0), 1e-5
    ends = [run({k: v + sign * h * direction[k] for k, v in params.items()}, IN_PLACE)[0][1] for sign in (1, -1)]
    slope = sum(float(np.sum(np.asarray(gradients[name]) * direction[name])) for name in params)
    assert abs(slope) > 1e-3, "the direction shows nothing"
    np.testing.assert_allclose(slope, (ends[0].alone_loss - ends[1].alone_loss) / (2 * h), rtol=1e-6)
    for name in ("source_embedding.table", "decoder.embedding.table"):
        # The table of a tied decoder is its output projection, too, which has a place for padding.
        if name in gradients and (config.embedding.tied == "none" or name.startswith("source")):
            assert not np.any(gradients[name][PAD]), f"padding reaches {name}"

    # Attention by content does not know where a memory lies.
    if attends and config.window.name == "global" and config.score.name not in BY_POSITION:
        (_, turned), turned_gradients = run(params, TURNED)
        same(turned.logits, found.logits)
        same(turned.weights, found.weights[..., TURNED])
        for name, gradient in gradients.items():
            same(turned_gradients[name], gradient, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", covering.array(), ids=IDS)
def test_all_properties(row):
    check_row(row)


def check_bfloat16(row: covering.Row) -> None:
    """Loss and gradients with rounded operands are finite, and the loss is near the exact one."""

    def loss(params, precision):
        config = tiny.changed(covering.config_of(row), {"precision": precision})
        model = Model(config, SYMBOLS, SYMBOLS)
        return batch_loss(model, params, jnp.asarray(SOURCE), jnp.asarray(TARGET))[0].loss

    shapes = jax.eval_shape(Model(covering.config_of(row), SYMBOLS, SYMBOLS).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), reference.random_like(shapes))
    rounded, gradients = reference.jit(jax.value_and_grad(functools.partial(loss, precision="bfloat16")))(params)
    for leaf in (rounded, *gradients.values()):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    exact = reference.jit(functools.partial(loss, precision="float32"))(params)
    assert rounded != exact, "nothing was rounded"
    np.testing.assert_allclose(rounded, exact, rtol=0.05)


@pytest.mark.parametrize("row", covering.each_value(covering.array()), ids=lambda row: "-".join(map(str, row)))
def test_bfloat16_stays_finite(row):
    """For every value of every axis once: a second program a configuration would double the time."""
    check_bfloat16(row)


ONE_OF_EACH_KIND = [
    {"score": "general", "normalizer": "entmax15", "window": "local_p"},
    {"score": "additive", "cell": "rnn", "placement": "before", "input_feeding": "attentional"},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("changes", ONE_OF_EACH_KIND, ids=lambda changes: "-".join(changes.values()))
def test_compiled_and_eager_agree_with_and_without_weights(changes):
    """Two configurations, with and without recurrent attention: operation by operation takes seconds.

    The logits are those of a program that makes no weights, and so are the first parameters.
    """
    config = covering.config_of(covering.row_of({**covering.PLAIN, **changes}))
    model = Model(config, SYMBOLS, SYMBOLS, jnp.float64)
    params = {name: jnp.asarray(value) for name, value in randomised(model).items()}

    def logits_and_weights(params):
        module = model.bind(params)
        features, weights = module.teacher_forced(jnp.asarray(SOURCE), jnp.asarray(SOURCE != PAD), jnp.asarray(INPUTS))
        return module.decoder.output(features), weights

    logits, weights = reference.jit(logits_and_weights)(params)
    np.testing.assert_allclose(reference.jit(lambda p: logits_and_weights(p)[0])(params), logits, rtol=1e-12)
    with jax.disable_jit():
        eager_logits, eager_weights = logits_and_weights(params)
    np.testing.assert_allclose(eager_logits, logits, rtol=1e-9)
    np.testing.assert_allclose(eager_weights, weights, rtol=1e-9, atol=1e-15)


# -- minutes ----------------------------------------------------------------------------------------------------------

SAMPLE = 60


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("number", range(SAMPLE))
def test_a_sample_of_the_full_product(number):
    check_row(covering.sample(SAMPLE)[number])


@pytest.mark.slow
@pytest.mark.parametrize("row", covering.array(), ids=IDS)
def test_bfloat16_stays_finite_for_all_pairs(row):
    check_bfloat16(row)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "value"), [(axis, value) for axis, values in covering.AXES.items() for value in values]
)
def test_a_few_reversed_sequences_are_learnt_by_heart(axis, value):
    row = next(filter(covering.legal, covering.singles(axis, value)))
    sizes = {"embedding.size": 32, "decoder.size": 32, "encoder.size": 32 if "bi" not in row else 16, "window.width": 2}
    training = {"train.steps": 300, "train.batch_size": 8, "optim.learning_rate": 0.01, "init": "glorot"}
    config = tiny.changed(covering.config_of(row), sizes | training)
    corpus = encode(tiny.dataset(train=8), config)
    trainer = Trainer([config], corpus)
    _, steps = trainer.chunk(trainer.start(), 0, 300, 300)
    assert steps.loss[0, 0] > 1
    assert steps.loss[-20:, 0].max() < 0.05
