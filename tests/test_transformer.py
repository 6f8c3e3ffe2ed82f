"""The transformer against its definition in NumPy: one sentence, one position and one head at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import properties
import pytest
import reference
import tiny

from attn_jax import config as configs
from attn_jax.combinators import grid
from attn_jax.config import Config
from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.decoding import greedy
from attn_jax.errors import UserError
from attn_jax.layers import Noise
from attn_jax.seq2seq import build, canonical, check, with_hidden_size
from attn_jax.sweep import base, merged, variants
from attn_jax.training import batch_loss

SOURCES = [[4, 5, 6, 7, 4, 8, 8], [8], [5, 5, 4]]
TARGETS = [[4, 2], [7, 3, 5, 4, 6, 2], [2]]

SIZES = {"model": "transformer", "transformer.size": 6, "transformer.heads": 2, "transformer.feedforward": 5}


LAYERS = {"transformer.encoder_layers": 1, "transformer.decoder_layers": 1}
SMALL = tiny.changed(tiny.config(), SIZES | LAYERS | {"transformer.window": 1})


def tiny_model(**changes):
    return reference.tiny_model(**(SIZES | {f"transformer.{name}": value for name, value in changes.items()}))


# -- the definition ------------------------------------------------------------------------------------------------


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    return np.array([reference.norm(row) * p["gain"] + p["bias"] for row in x])


def attend(queries, keys, values, heads, allowed):
    """Contexts [T, E] and weights [N, T, S]; allowed(t, s) says whether position t may attend to s."""
    width = queries.shape[1] // heads
    kind = np.result_type(queries, keys, values)
    contexts, weights = np.zeros(queries.shape, kind), []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for t, query in enumerate(queries):
            row = np.zeros(len(keys), kind)
            near = [s for s in range(len(keys)) if allowed(t, s)]
            if near:
                row[near] = reference.softmax(np.array([query[part] @ keys[s, part] for s in near]) / np.sqrt(width))
            contexts[t, part] = row @ values[:, part]
            rows.append(row)
        weights.append(rows)
    return contexts, np.array(weights)


def layer(params, settings, x, states=None):
    """One layer, of the decoder where there are states to attend to; and the weights of its last attention."""
    found = []

    def near(t, s):
        return (not settings.window or abs(s - t) <= settings.window) and (states is None or s <= t)

    def itself(x):
        queries, keys, values = np.split(dense(reference.under(params, "attention.projections."), x), 3, axis=1)
        contexts, weights = attend(queries, keys, values, settings.heads, near)
        found.append(weights)
        return dense(reference.under(params, "attention.joined."), contexts)

    def memory(x):
        queries = dense(reference.under(params, "cross.query."), x)
        keys, values = np.split(dense(reference.under(params, "cross.memory."), states), 2, axis=1)
        contexts, weights = attend(queries, keys, values, settings.heads, lambda t, s: True)
        found.append(weights)
        return dense(reference.under(params, "cross.joined."), contexts)

    def feed(x):
        hidden = dense(reference.under(params, "feed.first."), x)
        return dense(reference.under(params, "feed.second."), np.where(hidden.real > 0, hidden, 0))

    sublayers = [("attention", itself), *([("cross", memory)] if states is not None else []), ("feed", feed)]
    for name, f in sublayers:
        p = reference.under(params, f"around_{name}.norm.")
        x = x + f(norm(p, x)) if settings.norm == "pre" else norm(p, x + f(x))
    return x, found[-1]


def embedded(table, symbols):
    size = table.shape[1]
    angles = np.array([[p / 10000 ** (2 * (i // 2) / size) for i in range(size)] for p in range(len(symbols))])
    positions = np.where(np.arange(size) % 2, np.cos(angles), np.sin(angles)) if len(symbols) else angles
    return np.sqrt(size) * table[np.array(symbols, int)] + positions.reshape(len(symbols), size)


def stack(params, settings, side, x, states=None):
    weights = None
    for n in range(settings.encoder_layers if side == "encoder" else settings.decoder_layers):
        x, weights = layer(reference.under(params, f"{side}.layers.{n}."), settings, x, states)
    return (norm(reference.under(params, f"{side}.last."), x) if settings.norm == "pre" else x), weights


def defined(params, config, source, inputs):
    """Logits [T, V] and weights [T, S] of the whole model."""
    settings = config.transformer
    states, _ = stack(params, settings, "encoder", embedded(params["source_embedding.table"], source))
    x, weights = stack(params, settings, "decoder", embedded(params["decoder.embedding.table"], inputs), states)
    return dense(reference.under(params, "decoder.output."), x), weights.mean(axis=0)


# -- equality with it ----------------------------------------------------------------------------------------------

# The first window is narrow enough for the blocks of long sequences, the second is a mask.
MODELS = [
    {"norm": "post", "encoder_layers": 1, "decoder_layers": 2, "heads": 3},
    {"norm": "pre", "encoder_layers": 2, "decoder_layers": 1, "window": 1},
    {"norm": "post", "encoder_layers": 1, "decoder_layers": 1, "window": 2, "heads": 1},
]


@pytest.mark.parametrize("changes", MODELS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_loss_gradients_and_steps_are_the_definition(x64, changes):
    """Of padded batches; and step by step, in a state made for exactly so many steps, what all at once is."""
    model, config, params = tiny_model(**changes)
    source, target = reference.padded(SOURCES, 8), reference.padded(TARGETS, 7)
    inputs = np.concatenate([np.full((3, 1), BOS), target[:, :-1]], axis=1)

    def loss_of(params):
        total = 0.0
        for symbols, wanted in zip(SOURCES, TARGETS, strict=True):
            logits, _ = defined(params, config, symbols, [BOS, *wanted[:-1]])
            for row, symbol in zip(logits, wanted, strict=True):
                total -= row[symbol] - np.log(np.sum(np.exp(row)))
        return total

    @reference.jit
    def run(params):
        def loss(params):
            return batch_loss(model, params, source, target)[0].loss

        module = model.bind(params)
        features, weights = module.teacher_forced(source, source != PAD, inputs)
        memory = module.encode(source, source != PAD)
        state, prepared = module.decoder.start(memory, inputs.shape[1])

        def step(state, tokens):
            state, *made = reference.step(module.decoder, state, tokens, prepared)
            return state, made

        state, stepped = jax.lax.scan(step, state, inputs.T)
        _, late, _ = reference.step(module.decoder, state, inputs[:, 0], prepared)
        stepped = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), stepped)
        return jax.value_and_grad(loss)(params), (module.decoder.output(features), weights), stepped, late, memory

    (value, gradients), *ways, late, memory = run({name: jnp.asarray(value) for name, value in params.items()})
    np.testing.assert_allclose(value, loss_of(params), rtol=1e-9)
    reference.assert_gradients(loss_of, params, gradients)
    assert not np.any(gradients["source_embedding.table"][PAD])
    assert not np.any(memory.states[source == PAD])
    for logits, weights in ways:
        for row, symbols in enumerate(SOURCES):
            wanted_logits, wanted = defined(params, config, symbols, inputs[row])
            np.testing.assert_allclose(logits[row], wanted_logits, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(weights[row, :, : len(symbols)], wanted, rtol=1e-9)
            assert not np.any(weights[row, :, len(symbols) :]), "weights on padding"
    if config.transformer.window:
        assert np.isfinite(late).all(), "a state of the window's width is never full"
    else:
        assert np.isnan(late).all(), "a state that was made for fewer steps does not give wrong numbers"


@pytest.mark.parametrize("window", [0, 1])
def test_greedy_is_the_plain_loop(x64, window):
    model, config, params = tiny_model(window=window, encoder_layers=1, decoder_layers=1)
    sources, limit = [*SOURCES, []], 6
    source = reference.padded(sources)
    decode = reference.jit(lambda p: greedy(model.bind(p), source, source != PAD, limit))
    lengths = set()
    for seed in range(4):
        params = reference.random_like(params, seed=seed, scale=1.0)
        params["decoder.output.bias"][[PAD, BOS, EOS]] += [3, 3, 2 * seed]
        found = decode(params)
        for row, symbols in enumerate(sources):
            wanted: list[int] = []
            while symbols and len(wanted) < limit and EOS not in wanted:
                logits, weights = defined(params, config, symbols, [BOS, *wanted])
                logits[:, [PAD, BOS]] = -np.inf
                wanted.append(int(logits[-1].argmax()))
                np.testing.assert_allclose(
                    found.weights[row, len(wanted) - 1, : len(symbols)], weights[-1], rtol=1e-9, atol=1e-12
                )
            assert found.tokens[row].tolist() == wanted + [PAD] * (limit - len(wanted))
            assert not np.any(found.weights[row, len(wanted) :])
            lengths.add(len(wanted))
    assert {0, limit} < lengths, "the parameters do not show every ending"


def test_a_position_sees_its_window_and_no_future(x64):
    """Through gradients: with two layers of window w, target t depends on t - 2 w to t; the memory on both sides."""
    width = 2
    model, _, params = tiny_model(window=width)
    rng = np.random.default_rng(0)
    states, mask = rng.normal(size=(1, 3, 6)), np.ones((1, 3), bool)
    noise = rng.normal(size=6)

    @reference.jit
    def run(params):
        module = model.bind(params)
        memory = module.encode(np.full((1, 2), 4), np.ones((1, 2), bool))._replace(states=states, mask=mask)

        def features(table):
            decoder = model.bind({**params, "decoder.embedding.table": table}).decoder
            return decoder.teacher_forced(np.arange(11)[None], memory)[0][0] @ noise

        def encoded(x):
            return module.encoder(x, np.ones((1, 11), bool)).states[0] @ noise

        table, x = rng.normal(size=(11, 6)), rng.normal(size=(1, 11, 6))
        return jax.jacobian(features)(table), jax.jacobian(encoded)(x)[:, 0]

    of_target, of_source = (np.any(np.abs(slopes) > 1e-12, axis=-1) for slopes in run(params))
    back = np.arange(11)[:, None] - np.arange(11)[None]
    np.testing.assert_array_equal(of_target, (back >= 0) & (back <= 2 * width))
    np.testing.assert_array_equal(of_source, abs(back) <= 2 * width)


@pytest.mark.usefixtures("x64")
def test_group_equals_lone_run():
    properties.group_equals_lone_run(tiny.changed(SMALL, {f"dropout.{site}": 0.1 for site in ("attention", "layer")}))


# -- dropout, precision --------------------------------------------------------------------------------------------


class All(Noise):
    """Drops everything at one site and place, and nothing elsewhere; notes what is asked for."""

    def __init__(self, chosen):
        self.chosen, self.seen = chosen, []

    def mask(self, site, place, shape, dtype=jnp.float32):
        self.seen.append((site, place))
        return jnp.zeros(shape, dtype) if (site, place) == self.chosen else None


LAYER = [("layer", "self"), ("attention", "self"), ("layer", "feed")]
CROSS = [("layer", "cross"), ("attention", "cross")]
PLACES = (
    [(site, f"encoder/{n}/{part}") for n in range(2) for site, part in LAYER]
    + [(site, f"decoder/{n}/{part}") for n in range(2) for site, part in LAYER + CROSS]
    + [(site, side) for site in ("embedding", "word") for side in ("source", "target")]
    + [("readout", "target")]
)

# Dropping everything at a place is the model with these parameters zero.
SAME = {
    ("layer", "encoder/0/self"): ["encoder.layers.0.attention.joined."],
    ("attention", "encoder/1/self"): ["encoder.layers.1.attention.joined.kernel"],
    ("layer", "decoder/1/cross"): ["decoder.layers.1.cross.joined."],
    ("attention", "decoder/0/cross"): ["decoder.layers.0.cross.joined.kernel"],
    ("attention", "decoder/0/self"): ["decoder.layers.0.attention.joined.kernel"],
    ("layer", "decoder/0/feed"): ["decoder.layers.0.feed.second."],
    ("word", "source"): ["source_embedding."],
    ("word", "target"): ["decoder.embedding."],
}


def test_dropout_by_site(x64):
    model, _, params = tiny_model(norm="pre")
    source, inputs = reference.padded(SOURCES), reference.padded(TARGETS)
    seen = []

    def features(params, chosen):
        noise = All(chosen)
        found, weights = model.bind(params).teacher_forced(source, source != PAD, inputs, noise)
        seen.append(noise.seen)
        return found, weights

    def without(params, names):
        return {name: 0 * value if name.startswith(tuple(names)) else value for name, value in params.items()}

    @reference.jit
    def run(params):
        pairs = [(features(params, place), features(without(params, names), None)) for place, names in SAME.items()]
        return pairs, features(params, ("readout", "target"))[0], features(params, ("embedding", "source"))[1]

    pairs, readout, uniform = run(params)
    for place, (dropped, other) in zip(SAME, pairs, strict=True):
        np.testing.assert_allclose(dropped[0], other[0], rtol=1e-9, atol=1e-12, err_msg=str(place))
        np.testing.assert_allclose(dropped[1], other[1], rtol=1e-9, err_msg=str(place))
    assert not np.any(readout)
    # Not even positions are left of a source whose embeddings are dropped: nothing tells its states apart.
    for row, symbols in enumerate(SOURCES):
        np.testing.assert_allclose(uniform[row, :, : len(symbols)], 1 / len(symbols), rtol=1e-9)
    for asked in seen:
        assert sorted(asked) == sorted(PLACES), "every place has a mask of its own"


def products_of(jaxpr):
    """Every matrix product of a program, those in programs inside it too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        inside = [
            x for x in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")) if hasattr(x, "jaxpr")
        ]
        for inner in inside[:1] if equation.primitive.name == "cond" else inside:
            yield from products_of(inner.jaxpr)


def test_bfloat16_rounds_the_operands_of_every_product():
    model = build(tiny.changed(SMALL, {"precision": "bfloat16"}), 9, 8)
    source, inputs = reference.padded(SOURCES), reference.padded(TARGETS)

    def run(params):
        module = model.bind(params)
        features, _ = module.teacher_forced(source, source != PAD, inputs)
        state, prepared = module.decoder.start(module.encode(source, source != PAD))
        return module.decoder.output(features), reference.step(module.decoder, state, inputs[:, 0], prepared)

    products = list(products_of(jax.make_jaxpr(run)(jax.eval_shape(model.init, jax.random.key(0))).jaxpr))
    assert len(products) == 2 * 6 + 11 + 1 + 1 + 11
    for product in products:
        assert [str(x.aval.dtype) for x in (*product.invars, *product.outvars)] == ["bfloat16", "bfloat16", "float32"]


# -- configurations ------------------------------------------------------------------------------------------------


def other_value(path, field, annotation):
    """A value that is not the default."""
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int | float):
        return field.default + 1 if field.metadata["upper"] > field.default + 1 else 0.5
    if path in NAMES:
        return NAMES[path]
    return next(value for value in configs.choices(path) if value != field.default)


NAMES = {
    "cell.name": "gru",
    "embedding.name": "onehot",
    "encoder.name": "uni",
    "bridge": "zero",
    "score.name": "dot",
    "normalizer": "sparsemax",
    "window.name": "local_m",
    "combine.name": "add",
    "input_feeding": "context",
    "readout": "deep",
}
WITHOUT_EFFECT = [
    (model, row) for model in configs.MODEL_FIELDS for row in configs.fields() if not configs.matters(model, row[0])
]


@pytest.mark.parametrize(("model", "row"), WITHOUT_EFFECT, ids=lambda v: v if isinstance(v, str) else v[0])
def test_fields_of_the_other_kind_of_model_make_no_other_run(model, row):
    path = row[0]
    config = configs.override(Config(), {"model": model})
    changed = configs.override(config, {path: other_value(*row)})
    assert changed != config
    check(changed)
    assert canonical(changed) == canonical(config)
    (other,) = set(configs.MODEL_FIELDS) - {model}
    assert configs.matters(other, path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[("transformer.size", 4), ("transformer.window", 1)],
        *[(f"transformer.{name}", 1) for name in ("heads", "encoder_layers", "decoder_layers", "feedforward")],
        *[("transformer.norm", "post"), ("dropout.attention", 0.1), ("dropout.layer", 0.1), ("precision", "bfloat16")],
    ],
)
def test_fields_that_matter_to_a_transformer_are_kept(path, value):
    config = configs.override(Config(), {"model": "transformer", path: value})
    assert configs.get(canonical(config), path) == value != configs.get(Config(), path)


def test_a_sweep_over_scores_has_one_transformer():
    axes = {"model": ["recurrent", "transformer"], "score": ["dot", "general"], "cell": ["gru", "lstm"]}
    distinct, dropped = merged(variants(tiny.dataset(), {}, grid(axes)))
    assert [(one.model, one.score.name, one.cell.name) for one in distinct[:-1]] == [
        ("recurrent", score, cell) for score in ("dot", "general") for cell in ("gru", "lstm")
    ]
    assert (distinct[-1].model, dropped) == ("transformer", 3)


def test_sizes():
    config = configs.override(Config(), SIZES)
    with pytest.raises(UserError, match=r"^transformer.size=6 with transformer.heads=4: .* heads must divide size"):
        check(configs.override(config, {"transformer.heads": 4}))
    wide = with_hidden_size(config, 10).transformer
    assert (wide.size, wide.feedforward, wide.heads) == (10, 40, 2)
    # An odd width is a size like any other, for a transformer.
    odd = base(tiny.dataset(), {"model": "transformer", "encoder": "bi", "hidden_size": 5, "transformer.heads": 5})
    assert odd.transformer.size == 5
