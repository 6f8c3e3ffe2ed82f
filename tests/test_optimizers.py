import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import config as configs
from attn_jax.config import Optim
from attn_jax.optimizers import learning_rate, transformation

STEPS = 6
RATE = 0.1

pytestmark = pytest.mark.usefixtures("x64")


def numbers(optim: Optim) -> dict[str, float]:
    return configs.traced(configs.override(configs.Config(), {f"optim.{k}": v for k, v in vars(optim).items()}))


def gradients() -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [{"w": 3 * draw.normal(size=(2, 3)), "b": draw.normal(size=4)} for _ in range(STEPS)]


def start() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {"w": draw.normal(size=(2, 3)), "b": draw.normal(size=4)}


def trained(optim: Optim) -> dict[str, np.ndarray]:
    """Parameters after `STEPS` steps at the rate `RATE`; the numbers are traced, as they are in training."""

    @jax.jit
    def run(values, params, given):
        transform = transformation(optim, values)
        state = transform.init(params)
        for gradient in given:
            updates, state = transform.update(gradient, state, params, go=True)
            params = jax.tree.map(lambda p, u: p - RATE * u, params, updates)
        return params

    return jax.tree.map(np.asarray, run(numbers(optim), start(), gradients()))


def adam(given):
    """Kingma and Ba (2015), algorithm 1."""
    m = v = 0.0
    for t, g in enumerate(given, 1):
        m, v = 0.8 * m + 0.2 * g, 0.97 * v + 0.03 * g**2
        yield m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.97**t)) + 1e-3)


def rmsprop(given):
    """Torch's optim.rmsprop: the square starts at zero, epsilon is added to the root."""
    square = 0.0
    for g in given:
        square = 0.9 * square + 0.1 * g**2
        yield g / (np.sqrt(square) + 1e-2)


def adadelta(given):
    """Zeiler (2012), algorithm 1: RMS[x] = sqrt(E[x^2] + epsilon)."""
    square = moved = 0.0
    for g in given:
        square = 0.9 * square + 0.1 * g**2
        step = np.sqrt(moved + 1e-3) / np.sqrt(square + 1e-3) * g
        moved = 0.9 * moved + 0.1 * step**2
        yield step


def sgd(given):
    """The gradient itself."""
    yield from given


RULES = {
    adam: {"name": "adam", "beta1": 0.8, "beta2": 0.97, "epsilon": 1e-3},
    rmsprop: {"name": "rmsprop", "rho": 0.9, "epsilon": 1e-2},
    adadelta: {"name": "adadelta", "rho": 0.9, "epsilon": 1e-3},
    sgd: {"name": "sgd"},
}


def by_value(gradient, limit):
    return {name: np.clip(g, -limit, limit) for name, g in gradient.items()}


def by_norm(gradient, limit):
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    return {name: g * min(1, limit / norm) for name, g in gradient.items()}


def expected(rule, clip=lambda gradient: gradient, weight_decay=0.0):
    clipped = [clip(gradient) for gradient in gradients()]
    params = start()
    for name in params:
        for step in rule([gradient[name] for gradient in clipped]):
            params[name] = params[name] - RATE * (step + weight_decay * params[name])
    return params


def same(found, wanted):
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    same(trained(Optim(**RULES[rule], clip_norm=0.0)), expected(rule))


CLIPS = {
    "value": ({"clip_norm": 0.0, "clip_value": 0.7}, lambda g: by_value(g, 0.7)),
    "norm": ({"clip_norm": 2.0}, lambda g: by_norm(g, 2.0)),
    "large norm": ({"clip_norm": 1e6}, lambda g: g),
    "value before norm": ({"clip_norm": 2.0, "clip_value": 0.7}, lambda g: by_norm(by_value(g, 0.7), 2.0)),
}


@pytest.mark.parametrize("case", CLIPS)
def test_clipping(case):
    settings, clip = CLIPS[case]
    same(trained(Optim(name="sgd", **settings)), expected(sgd, clip))


def test_weight_decay_is_decoupled_from_the_rule():
    settings = RULES[adam] | {"clip_norm": 0.0, "weight_decay": 0.2}
    same(trained(Optim(**settings)), expected(adam, weight_decay=0.2))


def rates(optim: Optim, steps: int, steps_per_epoch: float, total: int) -> np.ndarray:
    rate = functools.partial(learning_rate, optim, numbers(optim), steps_per_epoch=steps_per_epoch, total_steps=total)
    return np.array(jax.vmap(rate)(jnp.arange(steps)))


@pytest.mark.parametrize("steps_per_epoch", [10, 24.0])
def test_decay_by_epoch(steps_per_epoch):
    for schedule, factor in (("decay", 0.9), ("halving", 0.5)):
        optim = Optim(schedule=schedule, decay_factor=0.9, decay_after=3, learning_rate=0.4)
        found = rates(optim, 144, steps_per_epoch, 144)
        for step in range(144):
            number = step // int(steps_per_epoch) + 1  # epochs count from 1; epochs 1 to 3 have the full rate
            assert found[step] == pytest.approx(0.4 * factor ** max(0, number - 3), rel=1e-9)


def test_decay_of_epochs_that_are_no_whole_number_of_steps():
    found = rates(Optim(schedule="decay", decay_factor=0.5, decay_after=1, learning_rate=1.0), 9, 2.25, 9)
    # Epochs end after 2.25, 4.5 and 6.75 steps: a step belongs to the epoch in which its middle lies.
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125])


def test_decay_after_a_part_of_an_epoch_begins_with_the_next_one():
    found = rates(Optim(schedule="halving", decay_after=1.5, learning_rate=1.0), 8, 2, 8)
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("steps", [20, 2000])
def test_warm_up_is_a_share_of_training_however_short(steps):
    found = rates(Optim(schedule="cosine", warmup_share=0.05, learning_rate=1.0), steps, 5, steps)
    assert found.argmax() + 1 == pytest.approx(0.05 * steps)
    assert found.max() > 0.99


def test_warmup_then_inverse_root():
    found = rates(Optim(schedule="warmup", warmup_share=0.25, learning_rate=0.8), 16, 5, 16)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[15] == pytest.approx(0.8 * 0.5)
    assert found[8] == pytest.approx(0.8 * 2 / 3)


def test_cosine_ends_at_zero():
    found = rates(Optim(schedule="cosine", warmup_share=0.2, learning_rate=0.8), 12, 5, 10)
    wave = [0.8 * (1 + np.cos(np.pi * s / 10)) / 2 for s in range(1, 11)]
    assert found[:10] == pytest.approx([wave[0] / 2, *wave[1:]])
    assert found[9:] == pytest.approx([0, 0, 0], abs=1e-15)


def test_constant():
    assert rates(Optim(learning_rate=0.3), 3, 5, 3) == pytest.approx([0.3] * 3)
