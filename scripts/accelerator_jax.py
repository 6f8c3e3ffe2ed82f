"""The cases of scripts/accelerator through the product's own code. Only a worker imports this file."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from accelerator_plan import Case, Sizes
from flax import nnx

from attn_jax import config as configs
from attn_jax import products
from attn_jax.cells import CELLS
from attn_jax.config import Config
from attn_jax.data.corpus import encode
from attn_jax.data.datasets import Dataset, Info, fingerprint, pair
from attn_jax.layers import Initializer
from attn_jax.recurrence import recur
from attn_jax.scores import Memory
from attn_jax.seq2seq import Model, with_hidden_size
from attn_jax.training import Trainer


class UnavailableError(Exception):
    """The case cannot be measured here."""


class Measured:
    """A program that is ready to be timed.

    call: does it once. units: of work in a call, in which times are given. value: one number of what the first call
    computed, by which arms are compared.
    """

    def __init__(self, call: Callable[[], Any], units: int = 1):
        self.call, self.units = call, units
        self.value = _norm(call())

    def seconds(self, calls: int) -> float:
        """Of a unit, from so many calls."""
        return _timed(self.call, calls) / calls / self.units


class _Slope(Measured):
    """The difference of two programs, in which what a call costs besides its units does not count."""

    def __init__(self, short: Callable[[], Any], long: Callable[[], Any], units: int):
        super().__init__(long, units)
        self.short = short
        short()

    def seconds(self, calls: int) -> float:
        return (_timed(self.call, calls) - _timed(self.short, calls)) / calls / self.units


def _timed(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def describe() -> dict[str, Any]:
    """The device and the versions."""
    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return {"platform": device.platform, "device": device.device_kind, "versions": versions}


def prepare(case: Case, sizes: Sizes) -> Measured:
    """Compiles a case and runs it once. Raises UnavailableError."""
    return {
        "loop": _loop,
        "product": _product,
        "forward": _layer,
        "gradient": _layer,
        "cudnn": _cudnn,
        "decoder": _decoder,
        "train": _train,
    }[case.kind](case, sizes)


def _norm(tree: Any) -> float:
    """The root of the sum of squares, in double precision on the host."""
    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))


def _normal(number: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(number).standard_normal(shape, np.float32))


def _product_type(case: Case) -> Any:
    return products.PRECISIONS[case.dtype]


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function).lower(*arguments).compile(), *arguments)


def _loop(case: Case, sizes: Sizes) -> Measured:
    """An iteration of a scan whose body is one fused kernel."""

    def scanned(length: int) -> Callable[[], Any]:
        body = lambda c, _: (c * 0.999 + 0.001, None)  # noqa: E731
        return _compiled(lambda c: jax.lax.scan(body, c, length=length)[0], _normal(0, 128))

    return _Slope(scanned(sizes.loop), scanned(3 * sizes.loop), 2 * sizes.loop)


def _product(case: Case, sizes: Sizes) -> Measured:
    """[B T, I + H] x [I + H, 4 H] for each run: what an LSTM layer multiplies, without its order in time."""
    runs, size, rows = case.runs, case.hidden, sizes.batch * sizes.steps
    a, w = _normal(0, runs, rows, 2 * size), _normal(1, runs, 2 * size, 4 * size)
    dtype = _product_type(case)
    return Measured(_compiled(jax.vmap(lambda a, w: products.contract("bi,ig->bg", a, w, dtype)), a, w))


@contextlib.contextmanager
def _differentiated(backward: str) -> Iterator[None]:
    """While a program is traced: loops differentiated so."""
    own = products.scan

    def plain(
        body: Any, reverse: bool, operands: Any, carry: Any, xs: Any, keep_every: int = 0, unroll: int = 1
    ) -> Any:
        return jax.lax.scan(lambda c, x: body(operands, c, x), carry, xs, reverse=reverse, unroll=unroll)

    products.scan = plain if backward == "autodiff" else own
    try:
        yield
    finally:
        products.scan = own


def _layer(case: Case, sizes: Sizes) -> Measured:
    """An LSTM layer over T steps as encoders use it; `gradient`: of weights and inputs."""
    size = case.hidden

    def made(key: Any) -> Any:
        init = Initializer(configs.Init(name="uniform"), nnx.Rngs(params=key))
        settings = configs.Cell(unroll=case.unroll)
        return CELLS["lstm"]((size,), size, settings=settings, init=init, dtype=_product_type(case))

    graph = nnx.split(nnx.eval_shape(lambda: made(jax.random.key(0))))[0]
    parameters = jax.jit(jax.vmap(lambda key: nnx.split(made(key))[1]))(jax.random.split(jax.random.key(0), case.runs))
    inputs = _normal(0, case.runs, sizes.steps, sizes.batch, size)

    def states(parameters: Any, inputs: jax.Array) -> jax.Array:
        cell = nnx.merge(graph, parameters)
        return recur(cell, cell.project(inputs), cell.zeros(sizes.batch, inputs.dtype))[0]

    def loss(parameters: Any, inputs: jax.Array) -> jax.Array:
        return jnp.sum(states(parameters, inputs) ** 2)

    one = states if case.kind == "forward" else jax.grad(loss, (0, 1))
    with _differentiated(case.backward):
        return Measured(_compiled(jax.vmap(one), parameters, inputs))


def _cudnn(case: Case, sizes: Sizes) -> Measured:
    """The gradient of an LSTM layer by cuDNN, float32, one run. It has no batching rule and no other type."""
    if jax.default_backend() != "gpu":
        raise UnavailableError("cuDNN is for GPUs")
    from jax.experimental import rnn

    size, batch = case.hidden, sizes.batch
    weights = rnn.init_lstm_weight(jax.random.key(0), size, size, 1, False)
    zeros, lengths = jnp.zeros((1, batch, size)), jnp.full(batch, sizes.steps, jnp.int32)

    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        return jnp.sum(rnn.lstm(inputs, zeros, zeros, weights, lengths, size, size, 1, 0.0, False)[0] ** 2)

    return Measured(_compiled(jax.grad(loss, (0, 1)), weights, _normal(0, batch, sizes.steps, size)))


def _decoder(case: Case, sizes: Sizes) -> Measured:
    """The gradient of an LSTM decoder with general attention and input feeding, without output projection."""
    size, vocabulary = case.hidden, 32
    config = configs.override(
        with_hidden_size(Config(encoder=configs.Encoder(name="uni")), size),
        {"cell": "lstm", "score": "general", "input_feeding": "attentional", "bridge": "last"}
        | {"precision": case.dtype, "init": "uniform"},
    )
    model = Model(config, vocabulary, vocabulary)
    params = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), case.runs))
    params = {name: value for name, value in params.items() if name.startswith("decoder.")}
    rest = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jnp.asarray(np.random.default_rng(0).integers(4, vocabulary, (case.runs, sizes.batch, sizes.steps)))
    states, last = _normal(1, case.runs, sizes.batch, sizes.steps, size), _normal(2, case.runs, sizes.batch, 1, size)
    mask = jnp.ones((sizes.batch, sizes.steps), bool)

    def loss(params: Any, states: jax.Array, last: jax.Array, inputs: jax.Array) -> jax.Array:
        # The encoder's parameters have no part in this.
        unused = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in rest.items() if name not in params}
        decoder = model.bind({**unused, **params}).decoder
        return jnp.sum(decoder.teacher_forced(inputs, Memory(states, mask, (last, last)))[0] ** 2)

    return Measured(_compiled(jax.vmap(jax.grad(loss, (0, 1))), params, states, last, inputs))


def _train(case: Case, sizes: Sizes) -> Measured:
    """A step of `Trainer.chunk`, as the recommended configuration for SCAN has it but for H."""
    draw, examples = np.random.default_rng(0), []
    for _ in range(1000):
        source = draw.integers(0, 13, min(9, sizes.steps))
        length = sizes.steps - 1 if case.buckets == 1 else draw.integers(1, sizes.steps)
        examples.append(pair(" ".join(map(str, source)), " ".join(map(str, draw.integers(0, 6, length)))))
    splits = {"train": tuple(examples), "test": tuple(examples[:8])}
    info = Info("generated", "", "", "exact_match", "", {})
    config = configs.override(
        with_hidden_size(Config(encoder=configs.Encoder(name="uni")), case.hidden),
        {"cell": "lstm", "score": "general", "bridge": "last", "embedding.size": 64, "precision": case.dtype}
        | {"train.batch_size": sizes.batch, "train.steps": 100_000, "train.buckets": case.buckets, "init": "uniform"}
        | {"optim.learning_rate": 1e-3, "data.source_unit": "words", "data.target_unit": "words"},
    )
    corpus = encode(Dataset(info, splits, fingerprint(splits)), config)
    trainer = Trainer([configs.override(config, {"seed": seed}) for seed in range(case.runs)], corpus)
    count, states, step = sizes.training_steps, trainer.start(), 0

    def chunk() -> jax.Array:
        nonlocal states, step
        states, report = trainer.chunk(states, step, count, count)
        step += count
        return report.loss

    return Measured(chunk, count)
