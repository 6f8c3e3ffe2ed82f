"""The decoder: one step, and all steps under teacher forcing.

Placement `after` (Luong et al. 2015):

    h_t = cells([e(y_{t-1}); f_{t-1}]),  c_t = Attend(h_t),  a_t = combine(c_t, h_t),  logits_t = W a_t + b,

with input feeding f_t = a_t, f_0 = 0, or none. Without attention a_t = h_t.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import products
from attn_jax.attention import Attention, Prepared
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS, Carry
from attn_jax.combines import COMBINES
from attn_jax.config import Config
from attn_jax.encoders import memory_size
from attn_jax.layers import Dense, Embedding, Initializer, Noise, dropped
from attn_jax.normalizers import NORMALIZERS
from attn_jax.recurrence import recur
from attn_jax.scores import NONE, SCORES, Extra, Memory
from attn_jax.shapes import Array, Float, Int
from attn_jax.windows import WINDOWS

FEEDINGS = ("none", "attentional")
"""What enters the next step besides the previous symbol."""


class State(NamedTuple):
    """What passes from step to step: a carry for each layer, the fed vector (width 0 without feeding), steps done."""

    carries: tuple[Carry, ...]
    feed: Float[Array, "B F"]
    done: Int[Array, ""]


class Source(NamedTuple):
    """What every step needs of the source; `prepared` is None without attention. lengths: true source lengths."""

    prepared: Prepared | None
    lengths: Int[Array, " B"]


class Step(nnx.Module):
    """What happens between embedding and read-out: cells, attention, combination."""

    def __init__(self, config: Config, *, init: Initializer, dtype: Any = None):
        size, memory = config.decoder.size, memory_size(config)
        self.feeds = config.input_feeding != "none"
        self.size = size
        first = (config.embedding.size, size) if self.feeds else (config.embedding.size,)
        cell, options = CELLS[config.cell.name], {"settings": config.cell, "init": init, "dtype": dtype}
        self.cells = nnx.List(
            [cell(first if n == 0 else (size,), size, **options) for n in range(config.decoder.layers)]
        )
        if config.score.name == NONE:
            self.attention = self.combine = None
        else:
            score = SCORES[config.score.name](size, memory, settings=config.score, init=init, dtype=dtype)
            window = WINDOWS[config.window.name](size, settings=config.window, init=init, dtype=dtype)
            self.attention = Attention(score, NORMALIZERS[config.normalizer](), window)
            self.combine = COMBINES[config.combine.name](memory, size, settings=config.combine, init=init, dtype=dtype)

    def __call__(
        self,
        state: State,
        projected: Float[Array, "B G"],
        source: Source,
        layer_masks: tuple[Array | None, ...],
        recurrent_masks: tuple[Array | None, ...],
    ) -> tuple[State, Array, Array]:
        """One step from the projected symbol. Returns the state, a_t and the weights."""
        if self.feeds:
            projected = projected + self.cells[0].project(state.feed, 1)
        carries: list[Carry] = []
        for n, cell in enumerate(self.cells):
            if n > 0:
                h, mask = carries[-1][0], layer_masks[n]
                projected = cell.project(h if mask is None else h * mask)
            carries.append(cell.step(state.carries[n], projected, recurrent_masks[n]))
        a, weights = self.attend(carries[-1][0], source, state.done + 1)
        return State(tuple(carries), a if self.feeds else state.feed, state.done + 1), a, weights

    def attend(
        self, h: Float[Array, "B *T H"], source: Source, step: Int[Array, "*T"]
    ) -> tuple[Float[Array, "B *T H"], Float[Array, "B *T S"]]:
        """Attentional vectors and weights for the states of one step or of all; steps count from 1."""
        if self.attention is None or self.combine is None or source.prepared is None:
            return h, jnp.zeros((*h.shape[:-1], 0), h.dtype)
        context, weights = self.attention(h, source.prepared, Extra(source.lengths, step))
        return self.combine(context, h), weights


class Decoder(nnx.Module):
    """Embedding, bridge, `Step`, and the output projection."""

    def __init__(self, vocabulary: int, config: Config, *, init: Initializer, dtype: Any = None):
        self.embedding = Embedding(vocabulary, config.embedding.size, init=init)
        parts = len(CELLS[config.cell.name].parts)
        self.bridge = BRIDGES[config.bridge](parts, config, init=init, dtype=dtype)
        self.core = Step(config, init=init, dtype=dtype)
        self.output = Dense(config.decoder.size, vocabulary, init=init, dtype=dtype)

    def start(self, memory: Memory) -> tuple[State, Source]:
        """The state before the first step, and what all steps need of the source."""
        batch, dtype = memory.states.shape[0], memory.states.dtype
        feed = jnp.zeros((batch, self.core.size if self.core.feeds else 0), dtype)
        prepared = None if self.core.attention is None else self.core.attention.prepare(memory)
        none_done = jnp.zeros((), jnp.int32)
        return State(self.bridge(memory), feed, none_done), Source(prepared, jnp.sum(memory.mask, axis=-1))

    def step(self, state: State, tokens: Int[Array, " B"], source: Source) -> tuple[State, Array, Array]:
        """One step after `tokens`. Returns the state, logits [B, V] and weights [B, S] (S = 0 without attention)."""
        off = (None,) * len(self.core.cells)
        projected = self.core.cells[0].project(self.embedding(tokens))
        state, a, weights = self.core(state, projected, source, off, off)
        return state, self.output(a), weights

    def teacher_forced(
        self, inputs: Int[Array, "B T"], memory: Memory, noise: Noise | None = None
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T S"]]:
        """Vectors before the output projection, and weights, for all steps; `inputs` are the previous symbols."""
        state, source = self.start(memory)
        batch, steps = inputs.shape
        # Time comes first from here on, until the steps are stacked: see `recur`.
        embedded = dropped(self.embedding(inputs.T), noise, "word", "target", (steps, batch, 1))
        embedded = dropped(embedded, noise, "embedding", "target")
        projected = self.core.cells[0].project(embedded)
        recurrent_masks = tuple(
            noise and noise.mask("recurrent", f"decoder/{n}", (batch, self.core.size), embedded.dtype)
            for n in range(len(self.core.cells))
        )
        shape = (steps, batch, self.core.size)
        layer_masks = tuple(
            noise.mask("layer", f"decoder/{n}", shape, embedded.dtype) if noise and n > 0 else None
            for n in range(len(self.core.cells))
        )
        run = self._with_feeding if self.core.feeds else self._without_feeding
        a, weights = run(projected, state, source, layer_masks, recurrent_masks)
        return dropped(a, noise, "readout", "target"), weights

    def _without_feeding(
        self, projected: Array, state: State, source: Source, layer_masks: tuple, recurrent_masks: tuple
    ) -> tuple[Array, Array]:
        # Nothing flows back from attention, so each layer runs over all steps before the next, then attention once.
        h = projected
        for n, cell in enumerate(self.core.cells):
            if n > 0:
                projected = cell.project(h if layer_masks[n] is None else h * layer_masks[n])
            h, _ = recur(cell, projected, state.carries[n], dropout_BH=recurrent_masks[n])
        return self.core.attend(jnp.swapaxes(h, 0, 1), source, jnp.arange(1, h.shape[0] + 1))

    def _with_feeding(
        self, projected: Array, state: State, source: Source, layer_masks: tuple, recurrent_masks: tuple
    ) -> tuple[Array, Array]:
        graph, parameters = nnx.split(self.core)

        def step(operands: dict, state: State, x: tuple[Array, tuple]) -> tuple[State, tuple[Array, Array]]:
            core = nnx.merge(graph, operands["core"])
            state, a, weights = core(state, x[0], operands["source"], x[1], operands["recurrent_masks"])
            return state, (a, weights)

        operands = {"core": parameters, "source": source, "recurrent_masks": recurrent_masks}
        _, outputs = products.scan(step, False, operands, state, (projected, layer_masks))
        a, weights = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)
        return a, weights
