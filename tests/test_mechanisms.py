"""What reaches from the decoder into training and decoding: own symbols, coverage, heads, limits of sources."""

import jax
import jax.numpy as jnp
import numpy as np
import properties
import pytest
import reference
import tiny

from attn_jax import config as configs
from attn_jax import evaluation, study
from attn_jax.config import Config
from attn_jax.data.corpus import encode
from attn_jax.data.text import BOS, PAD
from attn_jax.decoding import likeliest
from attn_jax.errors import UserError
from attn_jax.layers import Noise
from attn_jax.losses import repeated_attention
from attn_jax.reuse import Run
from attn_jax.seq2seq import Model
from attn_jax.training import Trainer, batch_loss

KEY = jax.random.key(0, impl="rbg")

SOURCES = [[4, 5, 6, 7], [8], [5, 5, 4]]
TARGETS = [[4, 3, 5, 6, 2], [7, 3, 5, 2], [3, 6, 2]]
GIVEN = np.array([[0, 0, 1, 0, 0], [1, 0, 0, 0, 1], [1, 1, 0, 1, 0]], bool)


def inputs_of(params, config, row):
    """The inputs of one sentence, prefix by prefix: the true previous symbol, or the likeliest after the prefix."""
    inputs = [BOS]
    for t in range(1, len(TARGETS[row])):
        logits, _ = reference.model(params, config, SOURCES[row], inputs)
        allowed = [symbol for symbol in range(logits.shape[1]) if symbol not in (PAD, BOS)]
        own = max(allowed, key=lambda symbol: logits[-1, symbol])
        inputs.append(TARGETS[row][t - 1] if GIVEN[row, t] else own)
    return inputs


def test_own_symbols_are_the_likeliest_of_each_prefix_and_carry_no_gradient(x64):
    model, config, params = reference.tiny_model(score="additive", input_feeding="attentional", cell="gru")
    params["decoder.output.bias"][[PAD, BOS]] += 5
    source, target = reference.padded(SOURCES), reference.padded(TARGETS)

    @reference.jit
    def run(params):
        module = model.bind(params)
        true = jnp.concatenate([jnp.full((3, 1), BOS), target[:, :-1]], axis=1)
        inputs = module.decoder.own_inputs(true, jnp.asarray(GIVEN), module.encode(source, source != PAD), likeliest)
        loss = jax.value_and_grad(lambda p: batch_loss(model, p, source, target, forced=jnp.asarray(GIVEN))[0].loss)
        return inputs, *loss(params)

    inputs, loss, gradients = run(params)
    expected = [inputs_of(params, config, row) for row in range(3)]
    for row, symbols in enumerate(expected):
        assert inputs[row, : len(symbols)].tolist() == symbols
    assert any(symbols[1:] != target[:-1] for symbols, target in zip(expected, TARGETS, strict=True))

    def defined(params):
        total = 0.0
        for source, symbols, target in zip(SOURCES, expected, TARGETS, strict=True):
            logits, _ = reference.model(params, config, source, symbols)
            total += sum(np.log(np.sum(np.exp(row))) - row[symbol] for row, symbol in zip(logits, target, strict=True))
        return total

    np.testing.assert_allclose(loss, defined(params), rtol=1e-9)
    reference.assert_gradients(defined, params, gradients)


@pytest.mark.parametrize("embedding", ["learned", "onehot"])
def test_own_symbols_come_from_the_masks_under_which_they_are_learned(x64, embedding):
    model, _, params = reference.tiny_model(score="dot", embedding=embedding, **{"decoder.layers": 2})
    source = reference.padded(SOURCES)
    true, given = jnp.full((3, 6), 4), jnp.asarray(np.random.default_rng(0).random((3, 6)) < 0.4)

    @reference.jit
    def run(params, key):
        sites = ("embedding", "layer", "recurrent", "readout", "word")
        module, noise = model.bind(params), Noise(key, dict.fromkeys(sites, 0.3))
        memory = module.encode(source, source != PAD, noise)
        inputs = module.decoder.own_inputs(true, given, memory, likeliest, noise)
        features, _ = module.decoder.teacher_forced(inputs, memory, noise)
        logits = module.decoder.output(features)
        return inputs, jax.vmap(likeliest)(logits), logits

    (inputs, chosen, logits), other = run(params, KEY), run(params, jax.random.key(1, impl="rbg"))
    own = ~np.asarray(given)[:, 1:]
    np.testing.assert_array_equal(np.asarray(inputs)[:, 1:][own], np.asarray(chosen)[:, :-1][own])
    assert (np.asarray(inputs)[:, 1:][~own] == 4).all()
    assert (inputs[:, 0] == 4).all()
    assert np.abs(logits - other[2]).max() > 1e-3, "the noise has no effect"


def test_one_hot_vectors_have_word_and_element_masks(x64):
    model, config, params = reference.tiny_model(score="none", cell="rnn", embedding="onehot")
    assert not any("embedding" in name for name in params)
    source, noise = np.array([[5, 6, 7, 8, 4, 4]], np.int32), Noise(KEY, {"word": 0.3, "embedding": 0.4})
    memory = reference.jit(lambda p: model.bind(p).encode(source, source != 0, noise))(params)
    masks = [np.asarray(noise.mask(site, "source", (6, 1, 1), jnp.float64)) for site in ("word", "embedding")]
    scale = (masks[0] * masks[1])[:, 0]
    assert 0 < (scale == 0).sum() < 6
    inputs = np.eye(reference.SOURCE_SIZE)[source[0]] * scale
    np.testing.assert_allclose(memory.states[0], reference.encode(params, config, inputs)[0], rtol=1e-9)


def test_a_residual_layer_adds_what_it_reads_before_dropout(x64):
    changes = {"score": "none", "cell": "rnn", "encoder": "bi", "encoder.residual": True}
    model, _, params = reference.tiny_model(**changes, **{"encoder.layers": 2})
    one_layer = reference.tiny(**changes)
    source, noise = np.array([[5, 6, 7, 8]], np.int32), Noise(KEY, {"layer": 0.5})
    memory = reference.jit(lambda p: model.bind(p).encode(source, source != 0, noise))(params)
    mask = np.asarray(noise.mask("layer", "encoder/1", (4, 1, memory.states.shape[-1]), jnp.float64))[:, 0]
    below, _ = reference.encode(params, one_layer, params["source_embedding.table"][source[0]])
    upper = reference.under(params, "encoder.layers.1.")
    cells, _ = reference.encode({f"encoder.layers.0.{name}": v for name, v in upper.items()}, one_layer, below * mask)
    np.testing.assert_allclose(memory.states[0], cells + below, rtol=1e-9)


MIXED = {
    "score": "additive",
    "cell": "gru",
    "coverage": True,
    "loss.coverage": 0.3,
    "embedding": "onehot",
    "encoder.layers": 2,
    "encoder.residual": True,
    "decoder.layers": 2,
    "decoder.residual": True,
    "train.teacher_forcing": 0.5,
}


@pytest.mark.usefixtures("x64")
def test_a_group_with_all_of_them_equals_lone_runs():
    properties.group_equals_lone_run(tiny.changed(tiny.config(), MIXED))


@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing_with_all_of_them():
    properties.padding_changes_nothing(tiny.changed(tiny.config(), MIXED))


def test_coins_are_drawn_for_steps_or_sentences_and_off_costs_nothing():
    base = tiny.changed(tiny.config(), {"score": "none", "train.teacher_forcing": 0.3})
    for unit, shape in (("step", (200, 50)), ("sentence", (200, 1))):
        config = tiny.changed(base, {"train.forcing_unit": unit})
        trainer = Trainer([config], encode(tiny.dataset(), config))
        numbers = {name: value[0] for name, value in trainer.numbers.items()}
        coins = np.asarray(trainer._forced(numbers, KEY, jnp.zeros((200, 50))))
        assert (coins == coins[:, :1]).all() == (unit == "sentence")
        draws = coins[:, : shape[1]]
        assert abs(draws.mean() - 0.3) < 4 * (0.3 * 0.7 / draws.size) ** 0.5
        other = np.asarray(trainer._forced(numbers, jax.random.key(1, impl="rbg"), jnp.zeros((200, 50))))
        assert (coins != other).any()
    structures = {
        rate: configs.structure(tiny.changed(base, {"train.teacher_forcing": rate})) for rate in (0.0, 0.3, 0.5, 1.0)
    }
    assert structures[0.0] == structures[0.3] == structures[0.5] != structures[1.0]
    config = tiny.changed(base, {"train.teacher_forcing": 1.0})
    assert Trainer([config], encode(tiny.dataset(), config))._forced({}, KEY, jnp.zeros((2, 2))) is None
    with pytest.raises(UserError, match=r"train.teacher_forcing=1.5: must be at least 0 and at most 1"):
        configs.override(Config(), {"train.teacher_forcing": 1.5})


def test_coverage_loss_by_hand(x64):
    """Step 2 repeats 0.2 + 0.5, step 3 min(0.9, 0.7) + min(0.1, 1.3); the second sentence has one real step."""
    weights = jnp.array([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]] * 2)
    real = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(repeated_attention(weights, real), 0.2 + 0.5 + 0.7 + 0.1, rtol=1e-12)


def test_sources_that_a_score_of_positions_cannot_hold_are_refused_before_training(tmp_path):
    config = tiny.changed(tiny.config(), {"score": "location", "score.max_source_length": 6})
    data = tiny.with_splits(tiny.dataset(), test=[("a b c d a b c", "c b a d c b a")])
    message = "6 source positions .*longest source of toy/letters's test split has 7: .*max_source_length=7"
    with pytest.raises(UserError, match=message):
        Trainer([config], encode(data, config))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        study.run([config], seeds=[0], out=str(out), corpora=study.Corpora(lambda name: data))
    assert not out.exists()

    corpus = encode(tiny.dataset(), config)
    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    params = properties.random_like(jax.eval_shape(model.init, jax.random.key(0)))
    run = Run(config, model, params, corpus.source, corpus.target, 3)
    with pytest.raises(UserError, match=r"6 source positions .*but a source has 7"):
        run.decode(["a", "a b c d a b c"])


def test_heads_in_outputs_and_maps():
    """Outputs and maps keep the weights of every head."""
    config = tiny.changed(tiny.config(), {"score": "multihead", "cell": "rnn"})
    corpus = encode(tiny.dataset(), config)
    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    params = properties.random_like(jax.eval_shape(model.init, jax.random.key(0)))
    texts = [example.source for example in corpus.dataset.splits["test"]]
    chosen = sorted(range(len(texts)), key=lambda i: -len(texts[i]))[:2]
    outputs = Run(config, model, params, corpus.source, corpus.target, 5).decode([texts[i] for i in chosen])
    evaluator = evaluation.Evaluator(model, corpus, max_output=5)
    (maps,) = evaluator.attention_maps({name: value[None] for name, value in params.items()}, "test", chosen)
    for output, shown in zip(outputs, maps, strict=True):
        assert output.weights.shape == (len(output.tokens), 2, len(output.source))
        assert np.abs(output.weights[:, 0] - output.weights[:, 1]).max() > 1e-3
        np.testing.assert_allclose(output.weights.sum(axis=2), 1, rtol=1e-5)
        np.testing.assert_allclose(shown["weights"], np.swapaxes(output.weights, 0, 1), atol=1e-4)
