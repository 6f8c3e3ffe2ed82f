"""Encoders, bridges and combinations in padded batches, against their definitions one example at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax import encoders
from attn_jax.bridges import BRIDGES
from attn_jax.combines import COMBINES
from attn_jax.config import Combine as CombineSettings
from attn_jax.errors import UserError
from attn_jax.scores import Memory

SOURCES = [[4, 5, 6, 7], [], [8, 4]]


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "uni", "cell": "gru"},
        {"encoder": "reversed", "encoder.layers": 2, "cell": "rnn"},
        {"encoder": "bi", "encoder.layers": 2, "decoder.layers": 2, "cell": "lstm"},
        {"encoder": "bi", "bridge": "mean", "cell": "lnlstm"},
        {"encoder": "bi", "encoder.layers": 2, "decoder.layers": 2, "bridge": "backward", "cell": "gru_reset_before"},
        {"encoder": "reversed", "bridge": "backward", "cell": "lstm"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_memory_and_bridge_are_the_definition(x64, changes):
    model, config, params = reference.tiny_model(**changes)
    source = reference.padded(SOURCES, 6)

    @reference.jit
    def run(params):
        module = model.bind(params)
        memory = module.encode(source, source != 0)
        return memory, module.decoder.bridge(memory)

    memory, carries = run(params)
    assert memory.states.shape == (3, 6, encoders.memory_size(config))
    for row, symbols in enumerate(SOURCES):
        embedded = params["source_embedding.table"][np.array(symbols, int)]
        states, summary = reference.encode(params, config, embedded)
        np.testing.assert_allclose(memory.states[row, : len(symbols)], states, rtol=1e-9)
        assert not np.any(memory.states[row, len(symbols) :])
        for part, expected in zip(memory.summary, summary, strict=True):
            np.testing.assert_allclose(part[row], expected, rtol=1e-9)
        for carry, expected in zip(carries, reference.bridge(params, config, states, summary), strict=True):
            np.testing.assert_allclose([part[row] for part in carry], expected, rtol=1e-9)


def test_a_reversed_encoder_ends_at_the_first_symbol(x64):
    """Its summary is the state at position 1; the forward one's at the true end."""
    model, config, params = reference.tiny_model(encoder="bi", cell="gru")
    source = reference.padded(SOURCES)
    memory = reference.jit(lambda p: model.bind(p).encode(source, source != 0))(params)
    n = config.encoder.size
    for row, last in [(0, 3), (2, 1)]:
        np.testing.assert_allclose(memory.summary[0][row, 0, :n], memory.states[row, last, :n], rtol=1e-12)
        np.testing.assert_allclose(memory.summary[0][row, 0, n:], memory.states[row, 0, n:], rtol=1e-12)


def random_memory(config, parts):
    rng = np.random.default_rng(0)
    width = encoders.memory_size(config)
    summary = tuple(jnp.asarray(rng.normal(size=(2, config.encoder.layers, width))) for _ in range(parts))
    return Memory(jnp.asarray(rng.normal(size=(2, 3, width))), jnp.ones((2, 3), bool), summary)


@pytest.mark.parametrize("name", ["zero", "last"])
def test_bridges_without_parameters_keep_parts_and_layers_apart(x64, name):
    config = reference.tiny(bridge=name, **{"encoder.layers": 2, "decoder.layers": 2, "encoder.size": 4})
    memory = random_memory(config, 2)
    carries = BRIDGES[name](2, config, init=reference.initializer(jnp.float64))(memory)
    for row in range(2):
        summary = [[part[row, layer] for layer in range(2)] for part in memory.summary]
        for carry, expected in zip(carries, reference.bridge({}, config, np.zeros((0, 4)), summary), strict=True):
            np.testing.assert_array_equal([part[row] for part in carry], expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder.size": 4, "encoder.layers": 2}, "2 layer.s. of 4 .*decoder 1 of 4"),
        ({"encoder.size": 5}, "1 layer.s. of 5 .*decoder 1 of 4"),
        ({"encoder.size": 4, "encoder.name": "bi"}, "1 layer.s. of 8 .*decoder 1 of 4"),
    ],
)
def test_bridge_last_refuses_unequal_shapes(changes, words):
    with pytest.raises(UserError, match=f"'last'.*{words}.*bridge=dense"):
        BRIDGES["last"](1, reference.tiny(bridge="last", **changes), init=reference.initializer())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", COMBINES)
def test_combination_is_the_definition(x64, name, bias):
    rng, settings = np.random.default_rng(0), CombineSettings(name, bias)
    context_size = 4 if name == "add" else 6
    combine = COMBINES[name](
        context_size, 4, settings=settings, init=reference.initializer(jnp.float64, "normal"), dtype=None
    )
    config = reference.tiny(combine=name)
    params = {}
    if name != "add":
        params["decoder.core.combine.dense.kernel"] = np.asarray(combine.dense.kernel[...])
        assert (combine.dense.bias is not None) == bias
        if bias:
            params["decoder.core.combine.dense.bias"] = np.asarray(combine.dense.bias[...])
    c, h = rng.normal(size=(2, 3, context_size)), rng.normal(size=(2, 3, 4))
    found = combine(jnp.asarray(c), jnp.asarray(h))
    for b, t in np.ndindex(2, 3):
        np.testing.assert_allclose(found[b, t], reference.combine(params, config, c[b, t], h[b, t]), rtol=1e-9)
    np.testing.assert_allclose(combine(jnp.asarray(c[:, 1]), jnp.asarray(h[:, 1])), found[:, 1], rtol=1e-12)


def test_combine_add_refuses_unequal_widths():
    with pytest.raises(UserError, match=r"'add'.*context has 6.*decoder 4"):
        COMBINES["add"](6, 4, settings=CombineSettings("add"), init=reference.initializer(), dtype=None)


def test_memory_size_names_the_allowed_encoders():
    with pytest.raises(UserError, match="unknown encoder 'revers': did you mean 'reversed'"):
        encoders.memory_size(reference.tiny(encoder="revers"))


def test_bridge_backward_needs_a_backward_direction():
    with pytest.raises(UserError, match=r"'backward'.*encoder=bi or encoder=reversed"):
        BRIDGES["backward"](1, reference.tiny(encoder="uni"), init=reference.initializer())
