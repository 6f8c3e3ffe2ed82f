"""The whole model: values and gradients against the definition, refusals by name, canonical forms, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.errors import UserError
from attn_jax.scores import SCORES
from attn_jax.seq2seq import build, canonical, check, idle, with_hidden_size
from attn_jax.training import batch_loss

SOURCES = [[4, 5, 6, 7], [8], [5, 5, 4]]
TARGETS = [[7, 3, 5, 2], [4, 2], [2]]

# Every score; and since 2 and 3 have no common factor, every cell with and without feeding.
MODELS = [
    {
        "score": score,
        "input_feeding": ["none", "attentional"][n % 2],
        "cell": ["lstm", "gru", "rnn"][n % 3],
        "encoder.name": ["uni", "bi", "reversed", "bi"][n % 4],
        "encoder.layers": 1 + n % 2,
        "decoder.layers": 1 + n % 2,
    }
    for n, score in enumerate([*SCORES, "none"])
] + [
    {"score": "additive", "input_feeding": "attentional", "cell": "gru", "placement": "before", "readout": "maxout"},
    {"score": "general", "input_feeding": "none", "cell": "lnlstm", "placement": "between", "readout": "deep"},
    {"score": "dot", "input_feeding": "context", "cell": "gru_reset_before", "bridge": "mean", "decoder.layers": 2},
    {"score": "none", "input_feeding": "context", "cell": "gru", "bridge": "zero", "readout": "deep"},
    {"score": "cosine", "input_feeding": "none", "cell": "lstm", "encoder.name": "bi", "bridge": "backward"},
    {"score": "additive", "input_feeding": "none", "cell": "gru", "encoder.name": "bi", "coverage": True},
    {
        "score": "concat",
        "cell": "lstm",
        "placement": "before",
        "embedding": "onehot",
        "readout": "deep",
        "coverage": True,
        "input_feeding": "attentional",
    },
    {
        "score": "normed_additive",
        "cell": "gru",
        "encoder": "bi",
        "placement": "after",
        "coverage": True,
        "encoder.layers": 3,
        "encoder.residual": True,
        "decoder.layers": 3,
        "decoder.residual": True,
    },
    {
        "score": "none",
        "cell": "gru",
        "embedding": "onehot",
        "input_feeding": "none",
        "decoder.layers": 3,
        "decoder.residual": True,
    },
    {
        "score": "multihead",
        "input_feeding": "attentional",
        "cell": "gru",
        "window": "local_p",
        "embedding.tied": "decoder",
        "embedding.size": 4,
    },
]

COVERAGE = 0.7
"""Weight of the coverage loss, where there is coverage."""


def loss_of(params, config, smoothing):
    """The summed training loss from the definition."""
    total = 0.0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        logits, weights = reference.model(params, config, source, [reference.BOS, *target[:-1]])
        for t in range(len(target) if config.coverage else 0):
            covered = sum(weights[:t], np.zeros(len(source)))
            total += COVERAGE * np.sum(np.where(weights[t].real < covered.real, weights[t], covered))
        for row, symbol in zip(logits, target, strict=True):
            log_p = row - np.log(np.sum(np.exp(row)))
            total -= (1 - smoothing) * log_p[symbol] + smoothing * np.sum(log_p[1:]) / (len(row) - 1)
    return total


@pytest.mark.parametrize("changes", MODELS, ids=lambda changes: "-".join(list(changes.values())[:4]))
def test_loss_and_gradients_of_padded_batches_are_those_of_lone_examples(x64, changes):
    model, config, params = reference.tiny_model(**changes)
    source, target = reference.padded(SOURCES, 6), reference.padded(TARGETS, 5)

    @reference.jit
    @jax.value_and_grad
    def loss(params):
        coverage = COVERAGE if config.coverage else None
        return batch_loss(model, params, source, target, smoothing=0.2, coverage=coverage)[0].loss

    value, gradients = loss({name: jnp.asarray(value) for name, value in params.items()})
    np.testing.assert_allclose(value, loss_of(params, config, 0.2), rtol=1e-9)
    reference.assert_gradients(lambda p: loss_of(p, config, 0.2), params, gradients)
    # Padding is symbol 0: its vectors are looked up, and must not matter.
    for table in ("source_embedding.table", "decoder.embedding.table"):
        if table in params and config.embedding.tied == "none":
            assert not np.any(gradients[table][0])


REFUSED = [
    ({"cell": "lstn"}, "unknown cell 'lstn': did you mean 'lstm'"),
    ({"score": "dott"}, "unknown score 'dott': did you mean 'dot'.*none"),
    ({"bridge": "lost"}, "unknown bridge 'lost': did you mean 'last'"),
    ({"combine": "than"}, "unknown combine 'than': did you mean 'tanh'"),
    ({"encoder": "bidi"}, "unknown encoder 'bidi': did you mean 'bi'"),
    ({"input_feeding": "attention"}, "unknown input_feeding 'attention': did you mean 'attentional'"),
    ({"score": "none", "bridge": "zero"}, "score=none with bridge=zero"),
    ({"score": "dot", "score.memory_projection": False}, "'dot' needs equal widths.*query has 4.*memory 5"),
    ({"bridge": "last"}, "bridge 'last'"),
    ({"combine": "add"}, "combine 'add'"),
    ({"normalizer": "sofmax"}, "unknown normalizer 'sofmax': did you mean 'softmax'"),
    ({"window": "locl_p"}, "unknown window 'locl_p': did you mean 'local_p'"),
    ({"readout": "maxot"}, "unknown readout 'maxot': did you mean 'maxout'"),
    ({"placement": "before", "score": "none"}, "score=none with placement=before"),
    ({"placement": "between", "input_feeding": "context"}, "placement=between with input_feeding=context"),
    ({"bridge": "backward"}, "bridge 'backward' needs a backward direction"),
    (
        {"score": "none", "decode": "beam", "decode.coverage_penalty": 0.2},
        r"score=none with decode\.coverage_penalty=0\.2",
    ),
    ({"decode.min_length": 5, "decode.max_length": 4}, r"decode\.min_length=5 is above decode\.max_length=4"),
    ({"optim.schedule": "warmup"}, "optim.schedule=warmup with optim.warmup_share=0"),
    ({"coverage": True}, "coverage=true with score=general: .*concat, additive, normed_additive"),
    ({"score": "multihead", "score.heads": 4}, "score.heads=4: the memory's width 6 .*must be a multiple"),
    ({"embedding": "onehott"}, "unknown embedding 'onehott': did you mean 'onehot'"),
    ({"embedding": "onehot", "embedding.tied": "decoder"}, "embedding.tied=decoder with embedding=onehot"),
    ({"embedding.tied": "decoder"}, "embedding.tied=decoder needs equal widths.*have 3 .*read-out 4 .decoder.size"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_illegal_combinations_are_refused_by_name(changes, message):
    config = reference.tiny(**changes)
    for refuse in (check, lambda c: build(c, 9, 8)):
        with pytest.raises(UserError, match=message) as error:
            refuse(config)
        assert "\n" not in str(error.value)


def test_first_parameters_depend_on_the_seed_alone():
    """Not on a batch, nor on whether weights are asked for: making a model takes neither."""
    config = reference.tiny(init="uniform")
    # Threefry keys, the usual ones, take seconds to compile here.
    keys = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]
    init = reference.jit(build(config, 9, 8).init)
    one, again, other = init(keys[0]), init(keys[0]), init(keys[1])
    # Symbol tables and what comes before attention do not depend on its score either.
    plain = reference.jit(build(reference.tiny(init="uniform", score="none"), 9, 8).init)(keys[0])
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        assert not value.any() or np.abs(value - other[name]).max() > 0, name
        if name.startswith(
            ("source_embedding", "encoder", "decoder.embedding", "decoder.bridge", "decoder.core.cells")
        ):
            np.testing.assert_array_equal(value, plain[name])


def test_parameters_bind_in_any_order(x64):
    model, _, params = reference.tiny_model()
    for given in (params, dict(reversed(params.items()))):
        found = reference.by_name(nnx.state(model.bind(given), nnx.Param))
        assert found.keys() == params.keys()
        assert all(np.array_equal(found[name], value) for name, value in params.items())


@pytest.mark.parametrize(
    ("context", "field", "value"),
    [
        ({"score": "none"}, "score.size", 7),
        ({"score": "none"}, "combine", "linear"),
        ({"score": "none"}, "combine.bias", True),
        ({"score": "none"}, "score.memory_projection", True),
        ({"score": "general"}, "score.size", 7),
        ({"score": "additive"}, "score.memory_projection", True),
        ({"combine": "add"}, "combine.bias", True),
        ({"score": "none"}, "normalizer", "sparsemax"),
        ({"score": "none"}, "window", "local_m"),
        ({"window": "global"}, "window.width", 3),
        ({"readout": "deep"}, "combine", "linear"),
        ({"readout": "maxout", "input_feeding": "context"}, "combine.bias", True),
        ({"cell": "gru"}, "cell.forget_bias", 1.0),
        ({"init": "glorot"}, "init.scale", 0.5),
        ({"init": "fan_in"}, "init.scale", 0.5),
        ({}, "dropout.layer", 0.5),
        ({"data.source_unit": "words"}, "data.bpe_size", 100),
        ({"optim": "sgd"}, "optim.epsilon", 1.0),
        ({"optim": "adam"}, "optim.rho", 0.5),
        ({"optim": "rmsprop"}, "optim.beta1", 0.5),
        ({"optim.schedule": "constant"}, "optim.decay_factor", 0.5),
        ({"optim.schedule": "constant"}, "optim.decay_after", 1.0),
        ({"optim.schedule": "halving"}, "optim.decay_factor", 0.5),
        ({"optim.schedule": "decay"}, "optim.warmup_share", 0.1),
        ({"data.source_unit": "bpe"}, "data.source_min_count", 2),
        ({"data.target_unit": "bpe"}, "data.target_min_count", 2),
        ({"score": "additive", "decoder.size": 7}, "score.size", 7),
        ({"train.steps": 10}, "train.epochs", 3.0),
        ({"score": "none"}, "coverage", True),
        ({"score": "general"}, "score.heads", 3),
        ({"score": "none"}, "score.max_source_length", 3),
        ({"score": "additive"}, "loss.coverage", 1.0),
        ({"embedding": "onehot"}, "embedding.size", 7),
        ({"encoder.layers": 1}, "encoder.residual", True),
        ({"encoder.layers": 2}, "decoder.residual", True),
        ({}, "train.forcing_unit", "sentence"),
        ({"decode": "greedy"}, "decode.beam_size", 3),
        ({"decode": "sample"}, "decode.length_penalty", "gnmt"),
        ({"decode": "beam"}, "decode.temperature", 0.5),
        ({"decode": "beam"}, "decode.alpha", 0.2),
        ({"decode": "beam", "decode.length_penalty": "average"}, "decode.alpha", 0.2),
        ({"decode": "beam", "decode.alpha": 0}, "decode.length_penalty", "gnmt"),
        ({"decode.beam_size": 1}, "decode.name", "beam"),
        ({}, "decode.min_length", 1),
    ],
)
def test_a_field_that_cannot_matter_does_not_make_another_run(context, field, value):
    before = configs.override(Config(), context)
    assert canonical(configs.override(before, {field: value})) == canonical(before)


@pytest.mark.parametrize(
    ("context", "field", "value"),
    [
        ({"score": "additive"}, "score.size", 7),
        ({"score": "dot"}, "score.memory_projection", True),
        ({"score": "dot"}, "combine.bias", True),
        ({"cell": "lstm"}, "cell.forget_bias", 1.0),
        ({"cell": "lnlstm"}, "cell.forget_bias", 1.0),
        ({"score": "dot"}, "normalizer", "sparsemax"),
        ({"window": "local_p"}, "window.width", 3),
        ({"readout": "deep", "input_feeding": "attentional"}, "combine", "linear"),
        ({"score": "dot"}, "placement", "before"),
        ({"init": "uniform"}, "init.scale", 0.5),
        ({"decoder.layers": 2}, "dropout.layer", 0.5),
        ({"encoder.layers": 2}, "dropout.layer", 0.5),
        ({"data.target_unit": "bpe"}, "data.bpe_size", 100),
        ({"optim": "adam"}, "optim.beta1", 0.5),
        ({"optim": "rmsprop"}, "optim.rho", 0.5),
        ({"optim": "adadelta"}, "optim.epsilon", 1.0),
        ({"optim.schedule": "decay"}, "optim.decay_factor", 0.5),
        ({"optim.schedule": "halving"}, "optim.decay_after", 1.0),
        ({"optim.schedule": "cosine"}, "optim.warmup_share", 0.1),
        ({"data.source_unit": "bpe"}, "data.target_min_count", 2),
        ({}, "train.epochs", 3.0),
        ({"decode": "beam"}, "decode.beam_size", 3),
        ({"decode": "beam", "decode.length_penalty": "gnmt"}, "decode.alpha", 1.0),
        ({"decode.beam_size": 1, "decode.coverage_penalty": 0.1}, "decode.name", "beam"),
        ({"decode.beam_size": 1, "decode.length_penalty": "power"}, "decode.name", "beam"),
        ({"decode": "beam"}, "decode.length_penalty", "average"),
        ({"decode": "sample"}, "decode.temperature", 0.5),
        ({}, "decode.min_length", 2),
        ({}, "seed", 3),
        ({"score": "concat"}, "coverage", True),
        ({"score": "concat", "coverage": True}, "loss.coverage", 1.0),
        ({"score": "multihead"}, "score.heads", 4),
        ({"score": "location"}, "score.max_source_length", 4),
        ({"decoder.layers": 2}, "decoder.residual", True),
        ({"train.teacher_forcing": 0.0}, "train.forcing_unit", "sentence"),
    ],
)
def test_a_field_that_matters_is_kept(context, field, value):
    config = configs.override(Config(), {**context, field: value})
    assert configs.get(canonical(config), field) == value
    assert canonical(canonical(config)) == canonical(config)


def test_hidden_size_is_the_width_of_query_and_memory():
    for name, per_direction in [("uni", 6), ("bi", 3), ("reversed", 6)]:
        config = with_hidden_size(configs.override(Config(), {"encoder": name}), 6)
        assert (config.decoder.size, config.encoder.size, config.embedding.size) == (6, per_direction, 6)
        check(configs.override(config, {"score": "dot", "bridge": "last", "combine": "add"}))
    with pytest.raises(UserError, match="hidden_size=5: must be even"):
        with_hidden_size(configs.override(Config(), {"encoder": "bi"}), 5)


@pytest.mark.parametrize("feeding", ["none", "attentional"])
def test_loops_may_be_unrolled_and_computed_again(feeding):
    """Equal numbers, and loops that say so: two steps a turn, and segments of three."""
    plain = Config(cell=configs.Cell("lstm"), input_feeding=feeding)
    plain = configs.override(with_hidden_size(plain, 6), {"embedding.size": 4, "score": "general"})
    other = configs.override(plain, {"cell.keep_every": 3, "cell.unroll": 2})
    source, target = reference.padded(SOURCES), reference.padded(TARGETS)

    def gradient(config):
        model = build(config, 9, 9)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), shapes)
        function = jax.grad(lambda p: batch_loss(model, p, source, target)[0].loss)
        return jax.jit(function)(params), str(jax.make_jaxpr(function)(params))

    (found, loops), (wanted, _) = gradient(other), gradient(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, wanted)
    assert "unroll=2" in loops
    assert loops.count("length=3") >= 4, "segments of encoder and decoder, forwards and backwards"


BEAM = {"decode.name": "beam"}


@pytest.mark.parametrize(
    ("context", "path", "value", "expected"),
    [
        ({}, "decode.beam_size", 10, True),
        (BEAM, "decode.beam_size", 10, False),
        (BEAM, "decode.beam_size", 1, False),
        ({"decode.beam_size": 1}, "decode.name", "beam", False),
        (BEAM | {"decode.alpha": 1.0}, "decode.length_penalty", "power", False),
        (BEAM | {"decode.alpha": 0.0}, "decode.length_penalty", "gnmt", False),
        (BEAM | {"decode.length_penalty": "power"}, "decode.alpha", 1.0, False),
        (BEAM | {"decode.length_penalty": "gnmt"}, "decode.alpha", 0.0, False),
        (BEAM, "decode.alpha", 1.0, True),
        ({}, "decode.length_penalty", "gnmt", True),
        ({"score": "additive", "decoder.size": 32}, "score.size", 32, False),
        ({"score": "additive"}, "score.size", 33, False),
        ({"score": "dot"}, "score.size", 33, True),
        ({"score": "none"}, "normalizer", "sparsemax", True),
        ({}, "optim.decay_factor", 0.5, True),
        ({"optim.schedule": "decay"}, "optim.decay_factor", 0.5, False),
        ({"data.source_unit": "bpe"}, "data.bpe_size", 100, False),
        ({}, "data.bpe_size", 100, True),
        ({}, "optim.learning_rate", 1e-3, False),
        ({"score": "additive"}, "loss.coverage", 1.0, True),
        ({"model": "transformer"}, "cell.name", "gru", True),
        ({}, "transformer.size", 64, True),
        ({}, "train.epochs", 3.0, False),
        ({"train.steps": 9}, "train.epochs", 3.0, True),
    ],
)
def test_a_value_is_idle_if_the_default_would_do_the_same(context, path, value, expected):
    assert idle(configs.override(Config(), {**context, path: value}), path) == expected


def test_a_field_that_cannot_matter_does_nothing():
    """Coverage without attention, and a score beside a transformer."""
    silent = configs.override(with_hidden_size(Config(), 6), {"score": "none", "coverage": True})
    model = build(silent, 9, 9)
    params = model.init(jax.random.key(0))
    loss = batch_loss(model, params, reference.padded(SOURCES), reference.padded(TARGETS))[0].loss
    assert np.isfinite(float(loss))
    changes = {"model": "transformer", "score": "none", "decode": "beam", "decode.coverage_penalty": 0.2}
    check(configs.override(Config(), changes))
