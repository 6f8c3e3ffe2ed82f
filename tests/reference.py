"""The definitions in plain NumPy, one example at a time and without padding, with which tests compare.

Everything here takes complex numbers too, so that Im f(x + ih) / h is a derivative to the last digit.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_jax import config as configs
from attn_jax.config import Config, Init
from attn_jax.layers import Initializer
from attn_jax.scores import SCORES, Extra
from attn_jax.seq2seq import Model, build
from attn_jax.windows import WINDOWS

BOS = 1
SOURCE_SIZE, TARGET_SIZE = 9, 8
HEADS = 2

Params = Mapping[str, np.ndarray]
Row = Callable[[Params, np.ndarray, np.ndarray], np.ndarray]


jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Tests compile much and compute little."""


EVERYWHERE = WINDOWS["global"](1, settings=configs.Window(), init=Initializer(Init(), nnx.Rngs(params=0)))
"""The window that leaves attention as it is."""


def tiny(**changes: Any) -> Config:
    """A configuration of tiny sizes, no two of them equal where they may differ; `a__b` stands for the path a.b."""
    sizes = {"embedding.size": 3, "encoder.name": "uni", "encoder.size": 5, "decoder.size": 4}
    sizes |= {"score.memory_projection": True, "score.size": 6, "combine.bias": True, "cell.forget_bias": 0.5}
    sizes |= {"score.heads": HEADS, "score.max_source_length": 7}
    if changes.get("score") == "multihead":
        sizes["encoder.size"] = 6  # the heads share it
    return configs.override(Config(), sizes | {path.replace("__", "."): value for path, value in changes.items()})


def tiny_model(**changes: Any) -> tuple[Model, Config, dict[str, np.ndarray]]:
    """A float64 model of `tiny(**changes)`, its configuration, and parameters."""
    config = tiny(**changes)
    model = build(config, SOURCE_SIZE, TARGET_SIZE, jnp.float64)
    return model, config, random_like(jax.eval_shape(model.init, jax.random.key(0)))


def random_like(shapes: Any, seed: int = 0, scale: float = 0.6) -> Any:
    """Normal float64 arrays of the shapes in a pytree: other than first values, none of them is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), shapes)


def random_module(make: Callable[[Initializer], nnx.Module]) -> tuple[Any, Any]:
    """The structure of a float64 module and random parameters: `nnx.merge(*random_module(make))` is the module."""
    abstract = nnx.eval_shape(lambda: make(initializer(jnp.float64)))
    graph, state = nnx.split(abstract, nnx.Param)
    return graph, random_like(state)


def initializer(dtype: Any = jnp.float32, name: str = "glorot", scale: float = 0.2, seed: int = 0) -> Initializer:
    return Initializer(Init(name, scale), nnx.Rngs(params=jax.random.key(seed)), dtype)


def by_name(state: Any) -> dict[str, Any]:
    """The parameters of a module by their paths."""
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def step(decoder: Any, state: Any, tokens: Any, source: Any) -> tuple[Any, Any, Any]:
    """One step of a decoder after `tokens`: state, logits and weights."""
    state, features, weights = decoder.step(state, tokens, source)
    return state, decoder.output(features), weights


def assert_gradients(f: Callable[[dict], Any], params: Params, gradients: Params, tolerance: float = 1e-9) -> None:
    """Compares the gradient of every parameter, along a random direction, with the complex step of `f`."""
    directions, step = random_like(dict(params), seed=7), 1e-30
    assert gradients.keys() == params.keys()
    for name, direction in directions.items():
        expected = np.imag(f({**params, name: params[name] + 1j * step * direction})) / step
        found = np.sum(np.asarray(gradients[name]) * direction)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-11, err_msg=name)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - np.max(x.real, initial=-np.inf))
    return shifted / np.sum(shifted)


def under(params: Params, prefix: str) -> dict[str, np.ndarray]:
    """The parameters below a path, by the rest of their paths."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.sum() / x.size
    return centred / np.sqrt((centred * centred).sum() / x.size + 1e-6)


def cell_step(name: str, p: Params, carry: tuple, x: np.ndarray, forget_bias: float, mask: Any = 1.0) -> tuple:
    """One step of a cell with parameters `recurrent`, `bias` and blocks `kernels.N`, on the joined inputs x."""
    w = np.concatenate([p[f"kernels.{n}"] for n in range(sum(key.startswith("kernels.") for key in p))])
    h = carry[0]
    if name == "lnlstm":
        gates = norm(x @ w) * p["input_gain"] + norm((h * mask) @ p["recurrent"]) * p["recurrent_gain"] + p["bias"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f + forget_bias) * carry[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(norm(c) * p["cell_gain"] + p["cell_bias"]), c
    if name == "gru_reset_before":
        xr, xz, xn = np.split(x @ w + p["bias"], 3)
        ur, uz = np.split(p["recurrent"], 2, axis=1)
        r, z = sigmoid(xr + (h * mask) @ ur), sigmoid(xz + (h * mask) @ uz)
        return ((1 - z) * np.tanh(xn + (r * h * mask) @ p["candidate"]) + z * h,)
    from_input = np.split(x @ w + p["bias"], w.shape[1] // h.size)
    from_state = np.split((h * mask) @ p["recurrent"], w.shape[1] // h.size)
    if name == "rnn":
        return (np.tanh(from_input[0] + from_state[0]),)
    if name == "gru":
        r, z = (sigmoid(from_input[k] + from_state[k]) for k in range(2))
        n = np.tanh(from_input[2] + r * (from_state[2] + p["candidate_bias"]))
        return ((1 - z) * n + z * h,)
    assert name == "lstm"
    i, f, g, o = (a + b for a, b in zip(from_input, from_state, strict=True))
    c = sigmoid(f + forget_bias) * carry[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def encode(params: Params, config: Config, inputs: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """States [S, K] of the last layer, and for each part of the carry the last state [K] of every layer."""
    parts = 2 if config.cell.name in ("lstm", "lnlstm") else 1
    summary: list[list[np.ndarray]] = [[] for _ in range(parts)]
    x = inputs
    for layer in range(config.encoder.layers):
        outputs, last = [], []
        for number, backward in enumerate(
            {"uni": [False], "reversed": [True], "bi": [False, True]}[config.encoder.name]
        ):
            p = under(params, f"encoder.layers.{layer}.{number}.")
            carry = tuple(np.zeros(config.encoder.size) for _ in range(parts))
            states = []
            for row in x[::-1] if backward else x:
                carry = cell_step(config.cell.name, p, carry, row, config.cell.forget_bias)
                states.append(carry[0])
            states = states[::-1] if backward else states
            outputs.append(np.array(states).reshape(len(x), config.encoder.size))
            last.append(carry)
        above = np.concatenate(outputs, axis=1)
        x = above + x if config.encoder.residual and layer > 0 else above
        for part in range(parts):
            summary[part].append(np.concatenate([carry[part] for carry in last]))
    return x, summary


def bridge(
    params: Params, config: Config, states: np.ndarray, summary: list[list[np.ndarray]]
) -> list[tuple[np.ndarray, ...]]:
    """The first carry of every decoder layer."""
    parts = range(len(summary))
    if config.bridge == "zero":
        return [tuple(np.zeros(config.decoder.size) for _ in parts)] * config.decoder.layers
    if config.bridge == "last":
        return [tuple(summary[part][layer] for part in parts) for layer in range(config.decoder.layers)]
    if config.bridge == "mean":
        mean = np.sum(states, axis=0) / max(1, len(states))
        inputs = [mean for _ in parts]
    elif config.bridge == "backward":
        # The last layer's backward direction is the second half of a summary of both.
        inputs = [np.split(summary[part][-1], 2 if config.encoder.name == "bi" else 1)[-1] for part in parts]
    else:
        assert config.bridge == "dense"
        inputs = [np.concatenate(summary[part]) for part in parts]
    return [
        tuple(
            np.tanh(
                inputs[part] @ params[f"decoder.bridge.dense.{layer * len(parts) + part}.kernel"]
                + params[f"decoder.bridge.dense.{layer * len(parts) + part}.bias"]
            )
            for part in parts
        )
        for layer in range(config.decoder.layers)
    ]


def _equal_width(p: Params, m: np.ndarray) -> np.ndarray:
    return m @ p["projection"] if "projection" in p else m


def _cosine(p: Params, q: np.ndarray, m: np.ndarray) -> np.ndarray:
    def norm(x: np.ndarray) -> Any:
        return np.maximum(np.sqrt(np.sum(x * x)), 1e-6)

    return np.array([q @ row / (norm(q) * norm(row)) for row in _equal_width(p, m)])


def _tanh(p: Params, q: np.ndarray, m: np.ndarray, covered: np.ndarray | None = None) -> np.ndarray:
    hidden = q @ p["query_kernel"] + m @ p["memory_kernel"]
    if covered is not None:
        hidden = hidden + np.outer(covered, p["coverage_kernel"][0])
    return np.tanh(hidden) @ p["v"]


def _normed(p: Params, q: np.ndarray, m: np.ndarray, covered: np.ndarray | None = None) -> np.ndarray:
    hidden = q @ p["query_kernel"] + m @ p["memory_kernel"] + p["bias"]
    if covered is not None:
        hidden = hidden + np.outer(covered, p["coverage_kernel"][0])
    return np.tanh(hidden) @ p["v"] * p["g"] / np.sqrt(np.sum(p["v"] ** 2))


def _multihead(p: Params, q: np.ndarray, m: np.ndarray) -> np.ndarray:
    queries, keys = np.split(q @ p["query_kernel"], HEADS), np.split(m @ p["memory_kernel"], HEADS, axis=1)
    return np.array([k @ query / np.sqrt(query.size) for query, k in zip(queries, keys, strict=True)])


SCORE_ROWS: dict[str, Row] = {
    "dot": lambda p, q, m: _equal_width(p, m) @ q,
    "scaled_dot": lambda p, q, m: _equal_width(p, m) @ q / np.sqrt(q.size),
    "general": lambda p, q, m: m @ p["kernel"] @ q,
    "concat": _tanh,
    "additive": _tanh,
    "cosine": _cosine,
    "scaled_general": lambda p, q, m: p["g"] * (m @ p["kernel"] @ q),
    "normed_additive": _normed,
    "scaled_cosine": lambda p, q, m: p["g"] * _cosine(p, q, m),
    "location": lambda p, q, m: (q @ p["kernel"])[: len(m)],
    "multihead": _multihead,
}


def score_row(config: Config, p: Params, q: np.ndarray, m: np.ndarray, covered: np.ndarray | None) -> np.ndarray:
    """Scores of every state, or a row for every head; of a score without a definition here, by its `formula`."""
    if len(m) == 0:
        return np.zeros((HEADS, 0) if config.score.name == "multihead" else 0)
    if config.coverage:
        return {"additive": _tanh, "concat": _tanh, "normed_additive": _normed}[config.score.name](p, q, m, covered)
    if config.score.name in SCORE_ROWS:
        return SCORE_ROWS[config.score.name](p, q, m)
    kind = SCORES[config.score.name]
    graph, state = random_module(lambda init: kind(q.size, m.shape[1], settings=config.score, init=init))
    flat = [(path, nnx.Param(jnp.asarray(p[".".join(map(str, path))]))) for path, _ in nnx.to_flat_state(state)]
    score = nnx.merge(graph, nnx.from_flat_state(flat))
    return np.asarray(score.formula(jnp.asarray(q), jnp.asarray(m), Extra(jnp.array(len(m)), jnp.array(1))))


def combine(params: Params, config: Config, c: np.ndarray, h: np.ndarray) -> np.ndarray:
    if config.combine.name == "add":
        return c + h
    p = under(params, "decoder.core.combine.dense.")
    a = np.concatenate([c, h]) @ p["kernel"] + p.get("bias", 0)
    return np.tanh(a) if config.combine.name == "tanh" else a


def windowed(config: Config, p: Params, q: np.ndarray, row: np.ndarray, step: int) -> np.ndarray:
    """Weights of a row of scores at a step, positions counted from 1, or of the row of every head."""
    if row.ndim == 2:
        return np.array([windowed(config, p, q, one, step) for one in row])
    s, width = np.arange(1, len(row) + 1), config.window.width
    if config.window.name == "global":
        near, factor = s > 0, np.ones(len(row))
    elif config.window.name == "local_m":
        near, factor = abs(s - step) <= width, np.ones(len(row))
    else:
        fraction = sigmoid(np.tanh(q @ p["kernel"]) @ p["v"])
        released = config.window.name == "local_p_released"
        centre = 1 + fraction * (len(row) - 1) if released else fraction * len(row)
        near = abs(s - (np.floor(centre.real) if released else centre.real)) <= width
        factor = np.exp(-2 * ((s - centre) / width) ** 2)
    weights = np.zeros(len(row), row.dtype)
    if near.any():
        weights[near] = softmax(row[near])
    return weights * factor


def context_of(config: Config, p: Params, weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The context vector of a row of weights, or of those of every head."""
    if config.score.name != "multihead":
        return weights @ states
    values = np.split(states @ p["value_kernel"], HEADS, axis=1)
    return np.concatenate([w @ v for w, v in zip(weights, values, strict=True)]) @ p["output_kernel"]


def vectors(params: Params, config: Config, side: str, symbols: list[int]) -> np.ndarray:
    """The vectors of symbols of a side, `source_embedding` or `decoder.embedding`."""
    if config.embedding.name == "onehot":
        return np.eye(SOURCE_SIZE if side == "source_embedding" else TARGET_SIZE)[np.array(symbols, int)]
    return params[f"{side}.table"][np.array(symbols, int)]


def decode(
    params: Params,
    config: Config,
    states: np.ndarray,
    carries: list[tuple],
    inputs: list[int],
    summary: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and weights [T, S] after the previous symbols `inputs`; summary: fed at every step, if any is."""
    core, attends = under(params, "decoder.core."), config.score.name != "none"
    feed = {"none": np.zeros(0), "attentional": np.zeros(config.decoder.size), "context": np.zeros(states.shape[1])}[
        config.input_feeding
    ]
    if config.input_feeding == "context" and not attends:
        assert summary is not None
        feed = summary
    logits, weights = [], []

    def cell(name: str, carry: tuple, x: np.ndarray) -> tuple:
        return cell_step(config.cell.name, under(core, name), carry, x, config.cell.forget_bias)

    def attend(query: np.ndarray) -> np.ndarray:
        if not attends:
            weights.append(np.zeros(0))
            return np.zeros(0)
        p = under(core, "attention.score.")
        row = score_row(config, p, query, states, sum(weights, np.zeros(len(states))) if config.coverage else None)
        weights.append(windowed(config, under(core, "attention.window."), query, row, len(weights) + 1))
        return context_of(config, p, weights[-1], states)

    for embedded in vectors(params, config, "decoder.embedding", inputs):
        carries, x = list(carries), np.concatenate([embedded, feed])
        if config.placement == "before":
            context = attend(carries[-1][0])
            x = np.concatenate([x, context])
        for layer in range(config.decoder.layers):
            carries[layer] = cell(f"cells.{layer}.", carries[layer], x)
            if layer == 0 and config.placement == "between":
                context = attend(carries[0][0])
                carries[0] = cell("second.", carries[0], context)
            x = carries[layer][0] + x if config.decoder.residual and layer > 0 else carries[layer][0]
        if config.placement == "after":
            context = attend(x)
        used = config.readout == "projection" or config.input_feeding == "attentional"
        a = combine(params, config, context, x) if attends and used else x
        if config.input_feeding == "attentional":
            feed = a
        elif config.input_feeding == "context" and attends:
            feed = context
        if config.readout != "projection":
            dense = under(params, "decoder.readout.dense.")
            a = np.concatenate([embedded, x, context]) @ dense["kernel"] + dense["bias"]
            a = np.tanh(a) if config.readout == "deep" else np.where(a[::2].real > a[1::2].real, a[::2], a[1::2])
        tied = config.embedding.tied == "decoder"
        kernel = params["decoder.embedding.table"].T if tied else params["decoder.output.kernel"]
        logits.append(a @ kernel + params["decoder.output.bias"])
    return np.array(logits), np.array(weights)


def model(params: Params, config: Config, source: list[int], inputs: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and weights [T, S] of the whole model."""
    embedded = vectors(params, config, "source_embedding", source)
    states, summary = encode(params, config, embedded)
    return decode(params, config, states, bridge(params, config, states, summary), inputs, summary[0][-1])


def padded(rows: list[list[int]], width: int = 0) -> np.ndarray:
    """Rows of symbols as one array, padded with 0."""
    width = max([width, *map(len, rows)])
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)


assert {*SCORE_ROWS} <= {*SCORES}
