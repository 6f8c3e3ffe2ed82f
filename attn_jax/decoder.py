"""The decoder: one step, and all steps under teacher forcing.

With input e(y_{t-1}) and fed vector f_{t-1},

- placement `after` (Luong et al. 2015): h_t = cells([e; f]), c_t = Attend(h_t);
- placement `before` (Bahdanau et al. 2015): c_t = Attend(h_{t-1}), h_t = cells([e; f; c_t]), c_t entering layer 1;
- placement `between` (nematus): h' = cell_1([e; f], h_{t-1}), c_t = Attend(h'), h_t = cell_2(c_t, h') in layer 1.

Then a_t = combine(c_t, h_t), or h_t without attention, and logits from the read-out. Input feeding: f_t = a_t
(`attentional`), c_t (`context`), f_0 = 0, or none. Without attention, `context` feeds the encoder's summary at every
step (Cho et al. 2014).
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
from attn_jax.readouts import READOUTS, Seen
from attn_jax.recurrence import recur
from attn_jax.scores import NONE, SCORES, Extra, Memory
from attn_jax.shapes import Array, Float, Int
from attn_jax.windows import WINDOWS

FEEDINGS = ("none", "attentional", "context")
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


class Masks(NamedTuple):
    """Dropout masks, None where a site is off.

    On the input of each layer, and on the state of each cell, the second cell of a conditional layer last.
    """

    layer: tuple[Array | None, ...]
    recurrent: tuple[Array | None, ...]


class Made(NamedTuple):
    """What one step makes, or all steps: attentional vector, state, context and weights."""

    attentional: Float[Array, "B *T H"]
    state: Float[Array, "B *T H"]
    context: Float[Array, "B *T K"]
    weights: Float[Array, "B *T S"]


class Step(nnx.Module):
    """What happens between embedding and read-out: cells, attention, combination."""

    def __init__(self, config: Config, *, init: Initializer, dtype: Any = None):
        size, memory = config.decoder.size, memory_size(config)
        self.feeding, self.placement, self.size = config.input_feeding, config.placement, size
        self.fed = {"none": 0, "attentional": size, "context": memory}[config.input_feeding]
        first = [config.embedding.size]
        if self.fed:
            first.append(self.fed)
        if config.placement == "before":
            first.append(memory)
        cell, options = CELLS[config.cell.name], {"settings": config.cell, "init": init, "dtype": dtype}
        self.cells = nnx.List(
            [cell(tuple(first) if n == 0 else (size,), size, **options) for n in range(config.decoder.layers)]
        )
        self.second = cell((memory,), size, **options) if config.placement == "between" else None
        if config.score.name == NONE:
            self.attention = self.combine = None
        else:
            score = SCORES[config.score.name](size, memory, settings=config.score, init=init, dtype=dtype)
            window = WINDOWS[config.window.name](size, settings=config.window, init=init, dtype=dtype)
            self.attention = Attention(score, NORMALIZERS[config.normalizer](), window)
            needed = READOUTS[config.readout].uses_attentional or config.input_feeding == "attentional"
            combine = COMBINES[config.combine.name]
            self.combine = combine(memory, size, settings=config.combine, init=init, dtype=dtype) if needed else None

    @property
    def recurs(self) -> bool:
        """Whether attention takes part in the recurrence, so that steps cannot be taken apart from it."""
        return self.placement != "after" or (self.feeding != "none" and not self._constant_feed)

    @property
    def _constant_feed(self) -> bool:
        """Whether the fed vector is the encoder's summary, the same at every step."""
        return self.attention is None and self.feeding == "context"

    def __call__(
        self, state: State, projected: Float[Array, "B G"], source: Source, masks: Masks
    ) -> tuple[State, Made]:
        """One step from the projected symbol."""
        step = state.done + 1
        carries: list[Carry] = []
        if self.fed:
            projected = projected + self.cells[0].project(state.feed, 1)
        if self.placement == "before":
            context, weights = self.attend(state.carries[-1][0], source, step)
            projected = projected + self.cells[0].project(context, 2 if self.fed else 1)
        for n, cell in enumerate(self.cells):
            if n > 0:
                h, mask = carries[-1][0], masks.layer[n]
                projected = cell.project(h if mask is None else h * mask)
            carry = cell.step(state.carries[n], projected, masks.recurrent[n])
            if n == 0 and self.second is not None:
                context, weights = self.attend(carry[0], source, step)
                carry = self.second.step(carry, self.second.project(context), masks.recurrent[-1])
            carries.append(carry)
        h = carries[-1][0]
        if self.placement == "after":
            context, weights = self.attend(h, source, step)
        a = self.combined(context, h)
        feed = (
            state.feed
            if self._constant_feed
            else {"none": state.feed, "attentional": a, "context": context}[self.feeding]
        )
        return State(tuple(carries), feed, step), Made(a, h, context, weights)

    def attend(
        self, query: Float[Array, "B *T H"], source: Source, step: Int[Array, "*T"]
    ) -> tuple[Float[Array, "B *T K"], Float[Array, "B *T S"]]:
        """Context and weights for the query of one step or of all, of width 0 without attention; steps count from 1."""
        if self.attention is None or source.prepared is None:
            nothing = jnp.zeros((*query.shape[:-1], 0), query.dtype)
            return nothing, nothing
        return self.attention(query, source.prepared, Extra(source.lengths, step))

    def combined(self, context: Float[Array, "B *T K"], h: Float[Array, "B *T H"]) -> Float[Array, "B *T H"]:
        """Attentional vectors; the states themselves without attention, or where nothing uses them."""
        return h if self.combine is None else self.combine(context, h)


class Decoder(nnx.Module):
    """Embedding, bridge, `Step`, read-out, and the output projection."""

    def __init__(self, vocabulary: int, config: Config, *, init: Initializer, dtype: Any = None):
        self.embedding = Embedding(vocabulary, config.embedding.size, init=init)
        parts = len(CELLS[config.cell.name].parts)
        self.bridge = BRIDGES[config.bridge](parts, config, init=init, dtype=dtype)
        self.core = Step(config, init=init, dtype=dtype)
        context_size = 0 if config.score.name == NONE else memory_size(config)
        self.readout = READOUTS[config.readout](context_size, config, init=init, dtype=dtype)
        self.output = Dense(self.readout.size, vocabulary, init=init, dtype=dtype)

    def start(self, memory: Memory, max_length: int = 0) -> tuple[State, Source]:
        """The state before the first step, and what all steps need of the source.

        max_length: most steps that will follow, for decoders whose state grows with them; this one's does not.
        """
        batch, dtype = memory.states.shape[0], memory.states.dtype
        if self.core.attention is None and self.core.feeding == "context":
            prepared, feed = None, memory.summary[0][:, -1]
        else:
            prepared = None if self.core.attention is None else self.core.attention.prepare(memory)
            feed = jnp.zeros((batch, self.core.fed), dtype)
        none_done = jnp.zeros((), jnp.int32)
        return State(self.bridge(memory), feed, none_done), Source(prepared, jnp.sum(memory.mask, axis=-1))

    def step(self, state: State, tokens: Int[Array, " B"], source: Source) -> tuple[State, Array, Array]:
        """One step after `tokens`. Returns the state, logits [B, V] and weights [B, S] (S = 0 without attention)."""
        embedded = self.embedding(tokens)
        off = Masks((None,) * len(self.core.cells), (None,) * (len(self.core.cells) + 1))
        state, made = self.core(state, self.core.cells[0].project(embedded), source, off)
        seen = Seen(made.attentional, made.state, made.context, embedded)
        return state, self.output(self.readout(seen)), made.weights

    def teacher_forced(
        self, inputs: Int[Array, "B T"], memory: Memory, noise: Noise | None = None
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T S"]]:
        """Vectors before the output projection, and weights, for all steps; `inputs` are the previous symbols."""
        state, source = self.start(memory)
        batch, steps = inputs.shape
        # Time comes first from here on, until the steps are stacked: see `recur`.
        embedded = dropped(self.embedding(inputs.T), noise, "word", "target", (steps, batch, 1))
        embedded = dropped(embedded, noise, "embedding", "target")
        masks = self._masks(noise, steps, batch, embedded.dtype)
        run = self._step_by_step if self.core.recurs else self._layer_by_layer
        made = run(self.core.cells[0].project(embedded), state, source, masks)
        seen = Seen(made.attentional, made.state, made.context, jnp.swapaxes(embedded, 0, 1))
        return dropped(self.readout(seen), noise, "readout", "target"), made.weights

    def _masks(self, noise: Noise | None, steps: int, batch: int, dtype: Any) -> Masks:
        def mask(site: str, place: object, *shape: int) -> Array | None:
            return noise.mask(site, f"decoder/{place}", (*shape, batch, self.core.size), dtype) if noise else None

        layers = range(len(self.core.cells))
        recurrent = [mask("recurrent", n) for n in layers]
        return Masks(
            layer=tuple(mask("layer", n, steps) if n > 0 else None for n in layers),
            recurrent=(*recurrent, mask("recurrent", "second") if self.core.second is not None else None),
        )

    def _layer_by_layer(self, projected: Array, state: State, source: Source, masks: Masks) -> Made:
        # Nothing flows back from attention, so each layer runs over all steps before the next, then attention once.
        if self.core.fed:
            projected = projected + self.core.cells[0].project(state.feed, 1)[None]
        h = projected
        for n, cell in enumerate(self.core.cells):
            if n > 0:
                mask = masks.layer[n]
                projected = cell.project(h if mask is None else h * mask)
            h, _ = recur(cell, projected, state.carries[n], dropout_BH=masks.recurrent[n])
        h = jnp.swapaxes(h, 0, 1)
        context, weights = self.core.attend(h, source, jnp.arange(1, h.shape[1] + 1))
        return Made(self.core.combined(context, h), h, context, weights)

    def _step_by_step(self, projected: Array, state: State, source: Source, masks: Masks) -> Made:
        graph, parameters = nnx.split(self.core)

        def step(operands: dict, state: State, x: tuple[Array, tuple]) -> tuple[State, Made]:
            core = nnx.merge(graph, operands["core"])
            return core(state, x[0], operands["source"], Masks(x[1], operands["recurrent"]))

        operands = {"core": parameters, "source": source, "recurrent": masks.recurrent}
        _, made = products.scan(step, False, operands, state, (projected, masks.layer))
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
