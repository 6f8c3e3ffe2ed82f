"""Training a group: many runs of equal structure as one compiled program, vmapped over a leading run axis.

The corpus lies on the device. One call of `Trainer.chunk` does K steps for all R runs in one dispatch: a loop in which
every step takes its bucket by an unbatched switch, gathers each run's own examples, and updates each run's parameters.
"""

import contextlib
import ctypes
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.buckets import Bucket, buckets, padding_share
from attn_jax.data.corpus import Corpus
from attn_jax.data.plan import Plan
from attn_jax.data.text import PAD
from attn_jax.decoder import Decoder
from attn_jax.decoding import likeliest
from attn_jax.devices import Placement, fetch
from attn_jax.errors import UserError
from attn_jax.grouping import width_of
from attn_jax.layers import Noise
from attn_jax.losses import Totals, cross_entropy, previous_symbols, repeated_attention
from attn_jax.optimizers import learning_rate, transformation
from attn_jax.scores import NONE, SCORES, check_length
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Bool, Float, Int, Params, PyTree

MOST_STEPS = 2**31 - 1
"""Of a run: programs count them in 32 bits."""

STEPS_PER_BUCKET, MOST_BUCKETS = 400, 16
"""A bucket is worth its seconds of compilation when so many steps are done; and no more than so many are made."""

IN_ORDER = 256
"""Models at least so wide compute one operation after the other on CPUs, in the order that needs the least memory.

XLA's own order has many at hand at once, a third more memory, and is faster for narrow models alone: 1.1 times at width
128, 0.97 to 1 at 256 and 512 (two cores).
"""

DROPOUT_SITES = tuple(field.name for field in dataclasses.fields(configs.Dropout))


class States(NamedTuple):
    """Runs in training; every leaf has a leading R axis.

    active: whether the run goes on. A run that does not keeps its state. failed: the step at which a loss or gradient
    was not finite, or -1; the state is the one before that step.
    """

    params: Params
    optimizer: PyTree[Array]
    active: Bool[Array, " R"]
    failed: Int[Array, " R"]


class Steps(NamedTuple):
    """What K steps report: loss per target token, gradient norm, learning rate, each [K, R]."""

    loss: Float[Array, "K R"]
    gradient_norm: Float[Array, "K R"]
    learning_rate: Float[Array, "K R"]


def batch_loss(
    model: Model,
    params: Params,
    source: Int[Array, "B S"],
    target: Int[Array, "B T"],
    *,
    per: str | None = None,
    smoothing: Any = None,
    coverage: Any = None,
    forced: Bool[Array, "B T"] | None = None,
    noise: Noise | None = None,
) -> tuple[Totals, Float[Array, ""]]:
    """Totals over the target tokens of a batch, and the number of those tokens.

    per: `token` or `sentence`, for means over their number in place of totals. coverage: weight of
    `losses.repeated_attention` in the loss, or None. forced: where the true previous symbol is the input of a step;
    elsewhere it is the model's own likeliest symbol. None: everywhere, which is teacher forcing.
    """
    module = model.bind(params)
    memory = module.encode(source, source != PAD, noise)
    inputs = previous_symbols(target)
    if forced is not None:
        fixed, fixed_memory = jax.lax.stop_gradient((params, memory))
        decoder = model.bind(fixed).decoder
        assert isinstance(decoder, Decoder)  # others are refused
        inputs = decoder.own_inputs(inputs, forced, fixed_memory, likeliest, noise)
    features, attention = module.decoder.teacher_forced(inputs, memory, noise)
    output = module.decoder.output
    kernel, bias = output.weights()
    assert bias is not None  # only other dense layers may lack one
    weights = (target != PAD).astype(features.dtype)
    tokens = weights.sum()
    if per is not None:
        # Here, where it is one number a token, and not in the gradients of all parameters.
        weights = weights / (tokens if per == "token" else target.shape[0])
    flat = features.reshape(-1, features.shape[-1])
    totals = cross_entropy(flat, kernel, bias, target.reshape(-1), weights.reshape(-1), smoothing, output.dtype)
    if coverage is not None:
        totals = totals._replace(loss=totals.loss + coverage * repeated_attention(attention, weights))
    return totals, tokens


def _give_memory_back() -> None:
    """What a compilation needed, hundreds of MB, stays with the C library's allocator, unless glibc is asked for it."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def steps_of(config: Config, steps_per_epoch: float) -> int:
    """The number of steps of a run. Raises UserError if it is zero or above `MOST_STEPS`."""
    given = config.train
    steps = given.steps or given.epochs * steps_per_epoch - 1e-6
    if steps > MOST_STEPS or math.ceil(steps) < 1:
        reason = "nothing to train" if steps < 1 else f"more than {MOST_STEPS} steps"
        raise UserError(f"train.steps={given.steps} and train.epochs={given.epochs}: {reason}")
    return math.ceil(steps)


def check_sources(config: Config, corpus: Corpus) -> None:
    """Raises UserError if a source, of whichever split, has more positions than the score can tell apart."""
    if config.score.name == NONE or not SCORES[config.score.name].uses_positions:
        return
    for split, pairs in corpus.encoded.items():
        longest = max(len(source) for source, _ in pairs)
        where = f"the longest source of {corpus.dataset.info.name}'s {split} split"
        check_length(config.score.max_source_length, longest, where)


class Trainer:
    """The compiled programs of one group of runs.

    members: runs of equal structure. corpus: their data. dtype: of parameters and computation. placement: the devices
    that train them; by default one.
    """

    def __init__(
        self,
        members: Sequence[Config],
        corpus: Corpus,
        *,
        dtype: Any = jnp.float32,
        placement: Placement | None = None,
    ):
        if len({configs.structure(member) for member in members}) != 1:
            raise ValueError("the runs of a program must have equal structure")
        self.members, self.corpus, self.config, self.dtype = list(members), corpus, members[0], dtype
        self.placement = placement or Placement()
        self.model = Model(self.config, len(corpus.source.vocabulary), len(corpus.target.vocabulary), dtype)
        batch_size = self.config.train.batch_size
        pairs = corpus.encoded["train"]
        self.total_steps = steps_of(self.config, len(pairs) / batch_size)
        check_sources(self.config, corpus)
        most = self.config.train.buckets or int(np.clip(self.total_steps // STEPS_PER_BUCKET, 1, MOST_BUCKETS))
        self.buckets = buckets(pairs, smallest=batch_size, most=most)
        self.padding = padding_share(self.buckets)
        self.plan = Plan(
            corpus.fingerprint,
            [len(b.index) for b in self.buckets],
            batch_size,
            replacement=self.config.train.sampling == "replacement",
        )
        table = [configs.traced(member) for member in members]
        self.numbers = self.placement.place({path: jnp.array([row[path] for row in table], dtype) for path in table[0]})
        seeds = np.array([member.seed % 2**32 for member in members], np.uint32)
        self.keys = self.placement.place(jax.vmap(jax.random.key)(seeds))
        self._data: list[Bucket] = self.placement.put(self.buckets)
        each, rows = ("run",), (None, "run")
        self._chunk = self.placement.jit(
            self._run_chunk, into=(each, (), each, each, (), (), (), rows), out=(each, rows), donate_argnums=(0,)
        )
        self._programs: dict[int, jax.stages.Compiled] = {}

    # -- state ------------------------------------------------------------------------------------------------------

    def start(self) -> States:
        """The states before the first step. Runs are initialised one after another: QR under vmap is slow on CPU."""

        def params_of(key: Array) -> Params:
            return self.model.init(jax.random.fold_in(key, 0))

        def optimizer_of(numbers: Mapping[str, Array], params: Params) -> PyTree:
            return transformation(self.config.optim, numbers).init(params)

        # One after the other, too: what the former needs besides its results is free before the latter has its own.
        params = jax.jit(self.placement.each_run(lambda keys: jax.lax.map(params_of, keys)))(self.keys)
        states = self.placement.each_run(lambda both: jax.vmap(optimizer_of)(*both))
        optimizer = jax.jit(states)((self.numbers, params))
        runs = len(self.members)
        return States(params, optimizer, *self.placement.place((np.ones(runs, bool), np.full(runs, -1, np.int32))))

    # -- steps ------------------------------------------------------------------------------------------------------

    def chunk(self, states: States, start: int, count: int, length: int) -> tuple[States, Steps]:
        """`count` steps from step number `start`, by a program compiled for `length` >= count steps."""
        program, arguments = self.program(states, start, count, length)
        states, steps = program(*arguments)
        return states, jax.tree.map(lambda part: part[:count], fetch(steps))

    def program(self, states: States, start: int, count: int, length: int) -> tuple[jax.stages.Compiled, tuple]:
        """The program of such a chunk, compiled once for a length, and its arguments; it consumes the states."""
        arguments = self._arguments(states, start, count, length)
        if length not in self._programs:
            in_order = jax.default_backend() == "cpu" and width_of(self.config) >= IN_ORDER
            options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if in_order else None
            self._programs[length] = self._chunk.lower(*arguments).compile(options)
            _give_memory_back()
        return self._programs[length], arguments

    @property
    def bytes(self) -> int | None:
        """Memory of the largest chunk so far as the compiler plans it, on all its devices.

        Arguments (parameters, optimiser states, the corpus), results and intermediate values; None where the compiler
        does not tell.
        """
        plans: list[Any] = [program.memory_analysis() for program in self._programs.values()]
        sizes = [
            plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
            for plan in plans
            if plan is not None
        ]
        return max(sizes) * self.placement.devices if sizes else None

    def _arguments(self, states: States, start: int, count: int, length: int) -> tuple:
        ids = np.zeros(length, np.int32)
        ids[:count] = self.plan.buckets(start, count)
        indices = np.zeros((length, len(self.members), self.config.train.batch_size), np.int32)
        by_seed = {member.seed: self.plan.indices(member.seed, start, count) for member in self.members}
        indices[:count] = np.stack([by_seed[member.seed] for member in self.members], axis=1)
        rows = self.placement.put(indices, None, "run", "data")
        return states, self._data, self.numbers, self.keys, start, count, ids, rows

    def _run_chunk(
        self,
        states: States,
        data: list[Bucket],
        numbers: PyTree,
        keys: Array,
        start: Array,
        count: Array,
        ids: Array,
        indices: Array,
    ) -> tuple[States, Steps]:
        def gradients_in(bucket: Bucket, params: Params, step: Array, rows: Array) -> tuple[Array, Params]:
            def one(params: Params, numbers: PyTree, key: Array, rows: Array) -> tuple[Array, Params]:
                noise = self._noise(numbers, jax.random.fold_in(jax.random.fold_in(key, 1), step))
                source, target = bucket.source[rows], bucket.target[rows]
                forced = self._forced(numbers, jax.random.fold_in(jax.random.fold_in(key, 2), step), target)
                return jax.grad(self._objective, has_aux=True)(params, numbers, source, target, forced, noise)[::-1]

            return jax.vmap(one)(params, numbers, keys, rows)

        branches = [functools.partial(gradients_in, bucket) for bucket in data]

        def step(place: Array, done: tuple[States, Steps]) -> tuple[States, Steps]:
            states, steps = done
            number = start + place
            loss, gradients = jax.lax.switch(ids[place], branches, states.params, number, indices[place])
            states, report = jax.vmap(functools.partial(self._update, number))(states, numbers, loss, gradients)
            return states, jax.tree.map(lambda all_steps, now: all_steps.at[place].set(now), steps, report)

        # A loop up to a number that is no constant: states are updated where they lie. A scan over all places that
        # skips those past the end would have them twice.
        zeros = jnp.zeros((ids.shape[0], *states.active.shape), self.dtype)
        return jax.lax.fori_loop(0, count, step, (states, Steps(zeros, zeros, zeros)))

    def _noise(self, numbers: PyTree, key: Array) -> Noise | None:
        rates = {site: numbers[f"dropout.{site}"] for site in DROPOUT_SITES if getattr(self.config.dropout, site)}
        return Noise(key, rates) if rates else None

    def _forced(self, numbers: PyTree, key: Array, target: Array) -> Array | None:
        """Coins: whether the true previous symbol is the input, for each step of each sentence or for each sentence."""
        if self.config.train.teacher_forcing == 1:
            return None
        shape = target.shape if self.config.train.forcing_unit == "step" else (target.shape[0], 1)
        coins = jax.random.uniform(key, shape, self.dtype) < numbers["train.teacher_forcing"]
        return jnp.broadcast_to(coins, target.shape)

    def _objective(
        self,
        params: Params,
        numbers: PyTree,
        source: Array,
        target: Array,
        forced: Array | None,
        noise: Noise | None,
    ) -> tuple[Array, Array]:
        """The training loss, and the unsmoothed loss per token."""
        options = {
            "smoothing": numbers["loss.label_smoothing"] if self.config.loss.label_smoothing else None,
            "coverage": numbers["loss.coverage"] if self.config.loss.coverage else None,
        }
        per = self.config.loss.per
        found, tokens = batch_loss(self.model, params, source, target, per=per, forced=forced, noise=noise, **options)
        return found.loss, found.nll if per == "token" else found.nll * source.shape[0] / tokens

    def _update(
        self, number: Array, state: States, numbers: PyTree, loss: Array, gradients: Params
    ) -> tuple[States, Steps]:
        """One run's update; nothing changes if it has stopped, or if its loss or gradient is not finite."""
        norm = optax.tree.norm(gradients)
        rate = learning_rate(
            self.config.optim,
            numbers,
            number,
            steps_per_epoch=self.plan.steps_per_epoch,
            total_steps=self.total_steps,
        )
        # The new parameters are not looked at, which would take as long as all that is done to them.
        # So far from overflowing no rule makes them overflow.
        finite = jnp.isfinite(loss) & jnp.isfinite(1e6 * rate * (1 + norm))
        go = state.active & finite
        transform = transformation(self.config.optim, numbers)
        updates, optimizer = transform.update(gradients, state.optimizer, state.params, go=go)
        params = jax.tree.map(lambda p, u: jnp.where(go, p - rate * u, p), state.params, updates)
        failed = jnp.where(state.active & ~finite, number, state.failed)
        return States(params, optimizer, go, failed), Steps(loss, norm, rate)
