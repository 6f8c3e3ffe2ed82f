import jax
import jax.numpy as jnp
import numpy as np
import properties
import pytest
import reference
import tiny

from attn_jax import training
from attn_jax.data.corpus import encode
from attn_jax.data.text import BOS, PAD
from attn_jax.errors import UserError
from attn_jax.sweep import groups
from attn_jax.training import Trainer, steps_of

MECHANISMS = pytest.mark.parametrize("mechanism", tiny.mechanisms(), ids=lambda m: "-".join(map(str, m.values())))


@MECHANISMS
@pytest.mark.usefixtures("x64")
def test_group_equals_lone_run(mechanism):
    properties.group_equals_lone_run(tiny.config(**mechanism))


def test_group_equals_lone_run_for_one_step_in_single_precision():
    # The first gradients of attention are as small as Adam's usual epsilon: their rounding would decide on the step.
    config = tiny.config(cell="gru", score="additive", input_feeding="attentional", optim__epsilon=1e-3)
    corpus, runs = encode(tiny.dataset(), config), properties.members(config, properties.MEMBERS[:3])
    states, lone = [], Trainer(runs[2:], corpus)
    for trainer in (Trainer(runs, corpus), lone):
        start = trainer.start()
        states.append((start, trainer.chunk(properties.copied(start), 0, 1, 1)[0]))
    (group_start, group), (lone_start, alone) = states
    properties.assert_same(properties.only(group_start, 2), lone_start, 1e-6)
    properties.assert_same(properties.only(group, 2), alone, 1e-5)
    kernel = group_start.params["decoder.core.cells.0.recurrent"]
    assert not np.allclose(kernel[0], kernel[1]), "each seed has its own first parameters"


def derived(config, trainer, corpus, steps):
    """Parameters and losses by the definitions: one example after another, decoder step after decoder step, SGD."""
    model, smoothing = trainer.model, config.loss.label_smoothing
    longest = [max(len(pair[side]) for pair in corpus.encoded["train"]) for side in (0, 1)]

    @jax.jit
    def example(params, source, target):
        def loss(params):
            module = model.bind(params)
            state, prepared = module.decoder.start(module.encode(source[None], source[None] != PAD))

            def step(state, symbols):
                last, symbol = symbols
                state, logits, _ = reference.step(module.decoder, state, last[None], prepared)
                logp = jax.nn.log_softmax(logits[0])
                others = -jnp.sum(jnp.where(jnp.arange(len(logp)) == PAD, 0, logp)) / (len(logp) - 1)
                smoothed = (1 - smoothing) * -logp[symbol] + smoothing * others
                return state, (symbol != PAD) * jnp.stack([smoothed, -logp[symbol]])

            _, terms = jax.lax.scan(step, state, (jnp.append(BOS, target[:-1]), target))
            return tuple(terms.sum(axis=0))

        (_, nll), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return nll, gradient

    params, losses = jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 0)), []
    for step in range(steps):
        bucket = trainer.buckets[trainer.plan.buckets(step, 1)[0]]
        chosen = [corpus.encoded["train"][bucket.index[i]] for i in trainer.plan.indices(config.seed, step, 1)[0]]
        padded = [[np.pad(ids, (0, longest[side] - len(ids))) for side, ids in enumerate(pair)] for pair in chosen]
        found = [example(params, *pair) for pair in padded]
        tokens = sum(len(target) for _, target in chosen)
        losses.append(sum(float(nll) for nll, _ in found) / tokens)
        count = tokens if config.loss.per == "token" else len(chosen)
        gradient = {name: sum(np.asarray(g[name]) for _, g in found) / count for name in params}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        shrink = min(1.0, config.optim.clip_norm / norm)
        rate = config.optim.learning_rate * shrink
        params = {name: np.asarray(value) - rate * gradient[name] for name, value in params.items()}
    return params, losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("per", "buckets"), [("token", 3), ("sentence", 1)])
def test_training_is_what_the_definitions_say(per, buckets):
    config = tiny.config(
        cell="rnn",
        score="dot",
        loss__per=per,
        loss__label_smoothing=0.2,
        optim="sgd",
        optim__learning_rate=0.5,
        optim__clip_norm=0.4,
        train__buckets=buckets,
        train__batch_size=2,
        seed=3,
    )
    corpus = encode(tiny.dataset(), config)
    trainer = Trainer([config], corpus, dtype=jnp.float64)
    assert len(trainer.buckets) == buckets
    states, steps = trainer.chunk(trainer.start(), 0, 8, 8)
    assert len(set(trainer.plan.buckets(0, 8).tolist())) == buckets
    params, losses = derived(config, trainer, corpus, 8)
    np.testing.assert_allclose(steps.loss[:, 0], losses, rtol=1e-9)
    np.testing.assert_allclose(steps.learning_rate, 0.5)
    for name, value in params.items():
        np.testing.assert_allclose(states.params[name][0], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_stopped_runs_keep_their_state_and_seeds_may_be_any_integer():
    config = tiny.config(cell="rnn", score="dot")
    corpus = encode(tiny.dataset(), config)
    trainer = Trainer([tiny.changed(config, {"seed": seed}) for seed in (-1, 2**32 - 2)], corpus)
    start = trainer.start()
    before = properties.copied(start._replace(active=jnp.array([False, True])))
    after, _ = trainer.chunk(properties.copied(before), 0, 3, 3)
    properties.assert_same(properties.only(after, 0), properties.only(before, 0), 0.0)
    assert after.active.tolist() == [False, True]
    assert all((value[1] != before.params[name][1]).any() for name, value in after.params.items())
    assert (start.params["decoder.output.kernel"][0] != start.params["decoder.output.kernel"][1]).any()


def test_memory_counts_what_a_chunk_reads_and_writes():
    config = tiny.config()
    corpus, sizes = encode(tiny.dataset(), config), []
    for count in (1, 3):
        trainer = Trainer([tiny.changed(config, {"seed": seed}) for seed in range(count)], corpus)
        assert trainer.bytes is None, "nothing is compiled yet"
        states = trainer.start()
        # Keys have no size of their own.
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        data = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(trainer.buckets))
        trainer.chunk(states, 0, 1, 1)
        sizes.append(trainer.bytes)
        assert trainer.bytes >= held + data, "states are written over the old ones, and count once"
        # Gradients, and updates before they are taken, are as large as parameters.
        assert trainer.bytes < 20 * held + data
    assert 2 < sizes[1] / sizes[0] < 3.5


def test_operations_in_order_compute_the_same(x64, monkeypatch):
    """Wide models are compiled with an option of XLA's, which must exist and change nothing."""
    config = tiny.config(train__steps=3)
    corpus, found = encode(tiny.dataset(), config), []
    for least in (1, 10**6):
        monkeypatch.setattr(training, "IN_ORDER", least)
        trainer = Trainer([config], corpus, dtype=jnp.float64)
        found.append(trainer.chunk(trainer.start(), 0, 3, 3))
    properties.assert_same(found[0][0], found[1][0], 1e-9)
    np.testing.assert_allclose(found[0][1].loss, found[1][1].loss, rtol=1e-9)


def test_groups_are_runs_of_equal_structure():
    base = tiny.config()
    numbers = [tiny.changed(base, {"seed": n, "optim.learning_rate": 0.1 * (n + 1)}) for n in range(2)]
    changes = ({"dropout.word": 0.1}, {"score": "dot"}, {"train.batch_size": 2})
    other = [tiny.changed(base, change) for change in changes]
    assert groups([numbers[0], *other, numbers[1]]) == [numbers, *([run] for run in other)]
    with pytest.raises(ValueError, match="equal structure"):
        Trainer([numbers[0], other[0]], encode(tiny.dataset(), base))


def test_length_of_training():
    assert steps_of(tiny.config(train__steps=7), 2.5) == 7
    assert steps_of(tiny.config(train__steps=0, train__epochs=2), 2.5) == 5
    assert steps_of(tiny.config(train__steps=0, train__epochs=2), 2.25) == 5
    with pytest.raises(UserError, match=r"train.steps=0 and train.epochs=0.0: nothing to train"):
        steps_of(tiny.config(train__steps=0, train__epochs=0), 2.5)
