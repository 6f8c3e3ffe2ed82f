"""The decoder: one step, and all steps under teacher forcing.

With input e(y_{t-1}) and fed vector f_{t-1},

- placement `after` (Luong et al. 2015): h_t = cells([e; f]), c_t = Attend(h_t);
- placement `before` (Bahdanau et al. 2015): c_t = Attend(h_{t-1}), h_t = cells([e; f; c_t]), c_t entering layer 1;
- placement `between` (nematus): h' = cell_1([e; f], h_{t-1}), c_t = Attend(h'), h_t = cell_2(c_t, h') in layer 1.

Then a_t = combine(c_t, h_t), or h_t without attention, and logits from the read-out. Input feeding: f_t = a_t
(`attentional`), c_t (`context`), f_0 = 0, or none. Without attention, `context` feeds the encoder's summary at every
step (Cho et al. 2014). With coverage the score also sees the sum of all earlier weights.

With `decoder.residual` a layer n > 1 gives h_t^n + x_t, x_t being what it reads in the same step; that sum goes up, and
from the top layer to attention `after` the cells, to combine and read-out. What passes to the next step, and is the
query of placement `before`, is h^n itself.
"""

from collections.abc import Callable
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
from attn_jax.errors import UserError
from attn_jax.layers import (
    EMBEDDINGS,
    Dense,
    Initializer,
    Noise,
    OneHot,
    Tied,
    dropped,
    input_mask,
    masked,
)
from attn_jax.normalizers import NORMALIZERS
from attn_jax.readouts import READOUTS, Seen
from attn_jax.recurrence import recur
from attn_jax.scores import NONE, SCORES, Extra, Memory
from attn_jax.shapes import Array, Bool, Float, Int
from attn_jax.windows import WINDOWS

FEEDINGS = ("none", "attentional", "context")
"""What enters the next step besides the previous symbol."""


class State(NamedTuple):
    """What passes from step to step.

    A carry for each layer, the fed vector (width 0 without feeding), steps done, and with coverage the sum of weights.
    """

    carries: tuple[Carry, ...]
    feed: Float[Array, "B F"]
    done: Int[Array, ""]
    coverage: Float[Array, "B S"] | None = None


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
    """What one step makes, or all steps: attentional vector, output of the top layer, context and weights."""

    attentional: Float[Array, "B *T H"]
    state: Float[Array, "B *T H"]
    context: Float[Array, "B *T K"]
    weights: Float[Array, "B *TN S"]


class Step(nnx.Module):
    """What happens between embedding and read-out: cells, attention, combination."""

    def __init__(self, embedded_size: int, config: Config, *, init: Initializer, dtype: Any = None):
        size, memory = config.decoder.size, memory_size(config)
        self.feeding, self.placement, self.size = config.input_feeding, config.placement, size
        self.residual, self.coverage = config.decoder.residual, config.coverage
        self.fed = {"none": 0, "attentional": size, "context": memory}[config.input_feeding]
        first = [embedded_size]
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
            # A score that knows nothing of coverage need not take the argument.
            covered = {"coverage": True} if config.coverage else {}
            kind = SCORES[config.score.name]
            score = kind(size, memory, settings=config.score, init=init, dtype=dtype, **covered)
            window = WINDOWS[config.window.name](size, settings=config.window, init=init, dtype=dtype)
            self.attention = Attention(score, NORMALIZERS[config.normalizer](), window)
            needed = READOUTS[config.readout].uses_attentional or config.input_feeding == "attentional"
            combine = COMBINES[config.combine.name]
            self.combine = combine(memory, size, settings=config.combine, init=init, dtype=dtype) if needed else None

    @property
    def recurs(self) -> bool:
        """Whether attention takes part in the recurrence, so that steps cannot be taken apart from it."""
        fed_back = self.feeding != "none" and not self._constant_feed
        return self.placement != "after" or fed_back or self.coverage

    @property
    def _constant_feed(self) -> bool:
        """Whether the fed vector is the encoder's summary, the same at every step."""
        return self.attention is None and self.feeding == "context"

    def __call__(
        self, state: State, projected: Float[Array, "B G"], source: Source, masks: Masks
    ) -> tuple[State, Made]:
        """One step from the projected symbol."""
        seen = Extra(source.lengths, state.done + 1, state.coverage)
        carries: list[Carry] = []
        if self.fed:
            projected = projected + self.cells[0].project(state.feed, 1)
        if self.placement == "before":
            context, weights = self.attend(state.carries[-1][0], source, seen)
            projected = projected + self.cells[0].project(context, 2 if self.fed else 1)
        h: Array | None = None
        for n, cell in enumerate(self.cells):
            if h is not None:
                mask = masks.layer[n]
                projected = cell.project(h if mask is None else h * mask)
            carry = cell.step(state.carries[n], projected, masks.recurrent[n])
            if n == 0 and self.second is not None:
                context, weights = self.attend(carry[0], source, seen)
                carry = self.second.step(carry, self.second.project(context), masks.recurrent[-1])
            carries.append(carry)
            h = carry[0] + h if self.residual and h is not None else carry[0]
        assert h is not None  # there is a layer
        if self.placement == "after":
            context, weights = self.attend(h, source, seen)
        a = self.combined(context, h)
        feed = (
            state.feed
            if self._constant_feed
            else {"none": state.feed, "attentional": a, "context": context}[self.feeding]
        )
        coverage = None if state.coverage is None else state.coverage + weights
        return State(tuple(carries), feed, seen.step, coverage), Made(a, h, context, weights)

    def attend(
        self, query: Float[Array, "B *T H"], source: Source, extra: Extra
    ) -> tuple[Float[Array, "B *T K"], Float[Array, "B *TN S"]]:
        """Context and weights for the query of one step or of all, of width 0 without attention.

        Of a source of fewer rows each has several rows of queries [B, H], one after another.
        """
        if self.attention is None or source.prepared is None:
            nothing = jnp.zeros((*query.shape[:-1], 0), query.dtype)
            return nothing, nothing
        rows, sources = len(query), len(source.lengths)
        if rows == sources:
            return self.attention(query, source.prepared, extra)
        # Rows of one source are queries of it, as steps are: keys and values are read once for all of them.
        query = query.reshape(sources, -1, query.shape[-1])
        coverage = None if extra.coverage is None else extra.coverage.reshape(*query.shape[:2], -1)
        extra = Extra(extra.lengths, jnp.broadcast_to(extra.step, query.shape[1:2]), coverage)
        made = self.attention(query, source.prepared, extra)
        context, weights = (part.reshape(rows, *part.shape[2:]) for part in made)
        return context, weights

    def combined(self, context: Float[Array, "B *T K"], h: Float[Array, "B *T H"]) -> Float[Array, "B *T H"]:
        """Attentional vectors; the states themselves without attention, or where nothing uses them."""
        return h if self.combine is None else self.combine(context, h)


class Decoder(nnx.Module):
    """Embedding, bridge, `Step`, read-out, and the output projection."""

    def __init__(self, vocabulary: int, config: Config, *, init: Initializer, dtype: Any = None):
        self.embedding = EMBEDDINGS[config.embedding.name](vocabulary, config.embedding.size, init=init)
        parts = len(CELLS[config.cell.name].parts)
        self.bridge = BRIDGES[config.bridge](parts, config, init=init, dtype=dtype)
        self.core = Step(self.embedding.size, config, init=init, dtype=dtype)
        context_size = 0 if config.score.name == NONE else memory_size(config)
        self.readout = READOUTS[config.readout](self.embedding.size, context_size, config, init=init, dtype=dtype)
        if config.embedding.tied == "decoder":
            if not hasattr(self.embedding, "table"):
                raise UserError(
                    f"embedding.tied=decoder with embedding={self.embedding.name}: there is no table to share"
                )
            if self.embedding.size != self.readout.size:
                raise UserError(
                    "embedding.tied=decoder needs equal widths, but target embeddings have "
                    f"{self.embedding.size} (embedding.size) and the read-out {self.readout.size} (decoder.size)"
                )
            self.output: Dense = Tied(self.embedding, init=init, dtype=dtype)
        else:
            self.output = Dense(self.readout.size, vocabulary, init=init, dtype=dtype)

    def start(self, memory: Memory, max_length: int = 0) -> tuple[State, Source]:
        """The state before the first step, and what all steps need of the source.

        max_length: most steps that will follow, for decoders whose state grows with them; this one's does not.
        """
        batch, dtype = memory.states.shape[0], memory.states.dtype
        if self.core.attention is None and self.core.feeding == "context":
            prepared, feed = None, memory.summary[0][:, -1]  # the last state of the encoder's top layer
        else:
            prepared = None if self.core.attention is None else self.core.attention.prepare(memory)
            feed = jnp.zeros((batch, self.core.fed), dtype)
        none_done = jnp.zeros((), jnp.int32)
        coverage = jnp.zeros(memory.mask.shape, dtype) if self.core.coverage else None
        lengths = jnp.sum(memory.mask, axis=-1)
        return State(self.bridge(memory), feed, none_done, coverage), Source(prepared, lengths)

    def step(self, state: State, tokens: Int[Array, " B"], source: Source) -> tuple[State, Float[Array, "B F"], Array]:
        """One step after `tokens`.

        Returns the state, vectors before the output projection, and weights [B, S], or [B, N, S] of a score with heads
        (S = 0 without attention). Of a source of fewer rows each has several rows of the state, one after another: the
        hypotheses of a beam.
        """
        off = Masks((None,) * len(self.core.cells), (None,) * (len(self.core.cells) + 1))
        return self._one(state, self.embedding(tokens), source, off)

    def _one(
        self, state: State, embedded: Float[Array, "B E"] | OneHot, source: Source, masks: Masks
    ) -> tuple[State, Array, Array]:
        state, made = self.core(state, self.core.cells[0].project(embedded), source, masks)
        return state, self.readout(Seen(made.attentional, made.state, made.context, embedded)), made.weights

    def teacher_forced(
        self, inputs: Int[Array, "B T"], memory: Memory, noise: Noise | None = None
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B *TN S"]]:
        """Vectors before the output projection, and weights, for all steps; `inputs` are the previous symbols."""
        state, source = self.start(memory)
        batch, steps = inputs.shape
        # Time comes first from here on, until the steps are stacked: see `recur`.
        dtype = memory.states.dtype
        embedded = masked(self.embedding(inputs.T), input_mask(self.embedding, noise, "target", (steps, batch), dtype))
        masks = self._masks(noise, steps, batch, dtype)
        run = self._step_by_step if self.core.recurs else self._layer_by_layer
        made = run(self.core.cells[0].project(embedded), state, source, masks)
        embedded = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), embedded)
        seen = Seen(made.attentional, made.state, made.context, embedded)
        return dropped(self.readout(seen), noise, "readout", "target"), made.weights

    def own_inputs(
        self,
        inputs: Int[Array, "B T"],
        given: Bool[Array, "B T"],
        memory: Memory,
        choose: Callable[[Float[Array, "B V"]], Int[Array, " B"]],
        noise: Noise | None = None,
    ) -> Int[Array, "B T"]:
        """Previous symbols of every step: those of `inputs` where `given`, else the decoder's own choices.

        The first input is always given. `choose` makes a symbol of the logits of the previous step, which came from the
        symbols that are returned and the dropout masks that `teacher_forced` has for this noise: these inputs under
        teacher forcing are what free running is (scheduled sampling, Bengio et al. 2015). No gradient flows through a
        choice, so call it apart from what is differentiated.
        """
        state, source = self.start(memory)
        batch, steps = inputs.shape
        dtype = memory.states.dtype
        masks = self._masks(noise, steps, batch, dtype)
        readout = noise.mask("readout", "target", (batch, steps, self.readout.size), dtype) if noise else None

        def step(loop: tuple[State, Array], x: tuple) -> tuple[tuple[State, Array], Array]:
            state, own = loop
            true, given, of_input, of_layers, of_readout = x
            symbols = jnp.where(given, true, own)
            embedded = masked(self.embedding(symbols), of_input)
            state, features, _ = self._one(state, embedded, source, Masks(of_layers, masks.recurrent))
            logits = self.output(features if of_readout is None else features * of_readout)
            return (state, choose(logits)), symbols

        given = given.at[:, 0].set(True)
        xs = (
            inputs.T,
            given.T,
            input_mask(self.embedding, noise, "target", (steps, batch), dtype),
            masks.layer,
            None if readout is None else jnp.swapaxes(readout, 0, 1),
        )
        return jax.lax.scan(step, (state, inputs[:, 0]), xs, unroll=self.core.cells[0].unroll)[1].T

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
            above, _ = recur(cell, projected, state.carries[n], dropout_BH=masks.recurrent[n])
            h = above + h if self.core.residual and n > 0 else above
        h = jnp.swapaxes(h, 0, 1)
        context, weights = self.core.attend(h, source, Extra(source.lengths, jnp.arange(1, h.shape[1] + 1)))
        return Made(self.core.combined(context, h), h, context, weights)

    def _step_by_step(self, projected: Array, state: State, source: Source, masks: Masks) -> Made:
        graph, parameters = nnx.split(self.core)

        def step(operands: dict, state: State, x: tuple[Array, tuple]) -> tuple[State, Made]:
            core = nnx.merge(graph, operands["core"])
            return core(state, x[0], operands["source"], Masks(x[1], operands["recurrent"]))

        operands = {"core": parameters, "source": source, "recurrent": masks.recurrent}
        first = self.core.cells[0]
        inputs = (projected, masks.layer)
        _, made = products.scan(step, False, operands, state, inputs, first.keep_every, first.unroll)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
