"""The Transformer (Vaswani et al. 2017): a reference point beside the recurrent models, with their interface.

Embeddings times sqrt(d) plus sinusoidal positions; encoder layers of self-attention and feed-forward; decoder layers of
masked self-attention, cross-attention over the memory, and feed-forward. Attention has N heads of width D = d / N, each

    Attend(Q, K, V) = softmax(Q K' / sqrt(D)) V        (section 3.2.1)

Around each sublayer f stands x -> norm(x + f(x)) (`post`, as published) or x -> x + f(norm(x)) with one more norm after
the last layer (`pre`; Xiong et al. 2020). All projections have a bias, as in PyTorch. With a window of half width w,
self-attention of position t reaches the positions s with |s - t| <= w (Beltagy et al. 2020, section 3.1), and in the
decoder those with 0 <= t - s <= w.

Suffix D is the width of a head here; the other axes are those of `shapes`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.encoder_decoder import Seq2Seq
from attn_jax.errors import UserError
from attn_jax.layers import Dense, Embedding, Initializer, Noise, dropped, layer_norm, project
from attn_jax.normalizers import Softmax
from attn_jax.products import PRECISIONS, contract
from attn_jax.scores import Memory
from attn_jax.shapes import Array, Bool, Float, Int

MAX_LENGTH = 256
"""Steps that a decoder state holds unless `start` is told otherwise."""


def sinusoids(positions: Int[Array, " T"], size: int, dtype: Any = jnp.float32) -> Float[Array, "T E"]:
    """sin(p / 10000^(2i/d)) at 2i and cos of the same at 2i + 1, for positions p from 0 (section 3.5)."""
    rates = jnp.asarray(10000.0 ** (-2 * np.arange((size + 1) // 2) / size), dtype)
    angles = positions.astype(dtype)[:, None] * rates[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(positions), -1)[:, :size]


def attend(
    queries: Float[Array, "B T N D"],
    keys: Float[Array, "B S N D"],
    values: Float[Array, "B S N D"],
    allowed: Bool[Array, "... T S"],
    noise: Noise | None = None,
    place: str = "",
    dtype: Any = None,
) -> tuple[Float[Array, "B T E"], Float[Array, "B N T S"]]:
    """Contexts of all heads side by side, and weights before their dropout.

    allowed: [B, T, S], or 1 in place of B or T; where a query may attend to nothing its weights and context are zero.
    """
    scores = contract("btnd,bsnd->bnts", queries, keys, dtype) / math.sqrt(queries.shape[-1])
    weights = Softmax()(scores, jnp.broadcast_to(allowed[:, None], scores.shape))
    contexts = contract("bnts,bsnd->btnd", dropped(weights, noise, "attention", place), values, dtype)
    return contexts.reshape(*contexts.shape[:2], -1), weights


def _reach(queries: Array, keys: Array, width: int, causal: bool) -> Bool[Array, "T S"]:
    """Whether the window around each query's position holds each key's; width 0: all, in causal attention all past."""
    ahead = keys[None, :] - queries[:, None]
    near = jnp.abs(ahead) <= width if width else jnp.ones(ahead.shape, bool)
    return near & (ahead <= 0) if causal else near


def _in_blocks(
    queries: Array, keys: Array, values: Array, mask: Array, width: int, causal: bool, *rest: Any
) -> Float[Array, "B T E"]:
    """Contexts of windowed self-attention in time T w: blocks of w positions attend to themselves and their neighbours.

    mask: [B, T]. rest: further arguments of `attend`.
    """
    batch, steps = mask.shape
    blocks = -(-steps // width)
    sides = (1, 0) if causal else (1, 1)

    def cut(x: Array, before: int, after: int) -> Array:
        """Each block with so many blocks before and after it: [B, T, ...] to [B * blocks, w * (1 + both), ...]."""
        ends = [(0, 0), (before * width, blocks * width - steps + after * width)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, ends).reshape(batch, -1, width, *x.shape[2:])
        x = jnp.concatenate([x[:, n : n + blocks] for n in range(before + 1 + after)], axis=2)
        return x.reshape(batch * blocks, -1, *x.shape[3:])

    reach = _reach(width + jnp.arange(width), jnp.arange((1 + sum(sides)) * width), width, causal)
    allowed = reach[None] & cut(mask, *sides)[:, None]
    contexts, _ = attend(cut(queries, 0, 0), cut(keys, *sides), cut(values, *sides), allowed, *rest)
    return contexts.reshape(batch, blocks * width, -1)[:, :steps]


class Norm(nnx.Module):
    """Layer norm over the features with gain and bias (Ba et al. 2016)."""

    def __init__(self, size: int, *, init: Initializer):
        self.gain, self.bias = init.gain(size), init.bias(size, size)

    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """The normalised vectors."""
        return layer_norm(x, self.gain[...]) + self.bias[...][None, None]


class Residual(nnx.Module):
    """What stands around a sublayer f: x goes `into` f, and what f makes goes `out`."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer):
        self.norm, self.pre = Norm(settings.size, init=init), settings.norm == "pre"

    def into(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """The sublayer's input."""
        return self.norm(x) if self.pre else x

    def out(self, x: Array, made: Array, noise: Noise | None, place: str) -> Float[Array, "B T E"]:
        """The sum of x and what the sublayer made of it."""
        x = x + dropped(made, noise, "layer", place)
        return x if self.pre else self.norm(x)


class Projections(nnx.Module):
    """Several projections of one input for all heads, as one product."""

    def __init__(self, count: int, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        size = settings.size
        # Matrices side by side, initialised with the fans of one.
        self.kernel = init.matrix((size, count * size), fan_in=size, fan_out=size)
        self.bias = init.bias(count * size, size)
        self.count, self.heads, self.dtype = count, settings.heads, dtype

    def __call__(self, x: Float[Array, "B T E"]) -> tuple[Float[Array, "B T N D"], ...]:
        """Each projection, heads apart."""
        y = project(x, self.kernel[...], self.dtype) + self.bias[...][None, None]
        y = y.reshape(*x.shape[:2], self.count, self.heads, -1)
        return tuple(y[:, :, n] for n in range(self.count))


class Cache(NamedTuple):
    """Keys and values of past steps; step p is at place p modulo L."""

    keys: Float[Array, "B L N D"]
    values: Float[Array, "B L N D"]


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself, within the window; causal in the decoder."""

    def __init__(self, settings: configs.Transformer, *, causal: bool, init: Initializer, dtype: Any = None):
        self.projections = Projections(3, settings, init=init, dtype=dtype)
        self.joined = Dense(settings.size, settings.size, init=init, dtype=dtype)
        self.width, self.causal, self.dtype = settings.window, causal, dtype

    def __call__(
        self, x: Float[Array, "B T E"], mask: Bool[Array, "B T"], noise: Noise | None = None, place: str = ""
    ) -> Float[Array, "B T E"]:
        """All positions at once."""
        queries, keys, values = self.projections(x)
        steps, rest = x.shape[1], (noise, place, self.dtype)
        if 0 < 3 * self.width < steps:
            contexts = _in_blocks(queries, keys, values, mask, self.width, self.causal, *rest)
        else:
            positions = jnp.arange(steps)
            allowed = _reach(positions, positions, self.width, self.causal)[None] & mask[:, None]
            contexts, _ = attend(queries, keys, values, allowed, *rest)
        return self.joined(contexts)

    def step(self, x: Float[Array, "B 1 E"], cache: Cache, done: Array) -> tuple[Float[Array, "B 1 E"], Cache]:
        """One more position after `done` ones, whose keys and values lie in the cache, and the cache with its own."""
        query, key, value = self.projections(x)
        length = cache.keys.shape[1]
        place = done % length
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1)
            for old, new in zip(cache, (key, value), strict=True)
        )
        # So many steps ago each place was written; those before the first step never were.
        ago = (done - jnp.arange(length)) % length
        contexts, _ = attend(query, keys, values, (ago <= done)[None, None], dtype=self.dtype)
        return self.joined(contexts), Cache(keys, values)


class CrossAttention(nnx.Module):
    """Attention to the memory."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        self.query = Projections(1, settings, init=init, dtype=dtype)
        self.memory = Projections(2, settings, init=init, dtype=dtype)
        self.joined = Dense(settings.size, settings.size, init=init, dtype=dtype)
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "B T E"],
        prepared: tuple[Float[Array, "B S N D"], ...],
        mask: Bool[Array, "B S"],
        noise: Noise | None = None,
        place: str = "",
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B N T S"]]:
        """What is read, and the weights; prepared: keys and values, what `memory` makes of the states.

        Of a memory of fewer rows each has several rows of x, one after another, of one position: a beam's hypotheses.
        """
        rows, sources = len(x), len(mask)
        if rows != sources:
            read, weights = self(x.reshape(sources, -1, x.shape[-1]), prepared, mask, noise, place)
            return read.reshape(x.shape), jnp.swapaxes(weights, 1, 2).reshape(rows, weights.shape[1], 1, -1)
        (queries,), (keys, values) = self.query(x), prepared
        contexts, weights = attend(queries, keys, values, mask[:, None], noise, place, self.dtype)
        return self.joined(contexts), weights


class FeedForward(nnx.Module):
    """max(0, x W1 + b1) W2 + b2 (section 3.3)."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        self.first = Dense(settings.size, settings.feedforward, init=init, dtype=dtype)
        self.second = Dense(settings.feedforward, settings.size, init=init, dtype=dtype)

    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        """Each position by itself."""
        return self.second(jax.nn.relu(self.first(x)))


class EncoderLayer(nnx.Module):
    """Self-attention, feed-forward."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        self.attention = SelfAttention(settings, causal=False, init=init, dtype=dtype)
        self.around_attention = Residual(settings, init=init)
        self.feed = FeedForward(settings, init=init, dtype=dtype)
        self.around_feed = Residual(settings, init=init)

    def __call__(self, x: Array, mask: Array, noise: Noise | None, place: str) -> Float[Array, "B S E"]:
        """All positions; those where mask [B, S] is false are attended to by none."""
        made = self.attention(self.around_attention.into(x), mask, noise, f"{place}/self")
        x = self.around_attention.out(x, made, noise, f"{place}/self")
        return self.around_feed.out(x, self.feed(self.around_feed.into(x)), noise, f"{place}/feed")


class DecoderLayer(nnx.Module):
    """Masked self-attention (left to the caller, who has all steps or one), cross-attention, feed-forward."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        self.attention = SelfAttention(settings, causal=True, init=init, dtype=dtype)
        self.around_attention = Residual(settings, init=init)
        self.cross = CrossAttention(settings, init=init, dtype=dtype)
        self.around_cross = Residual(settings, init=init)
        self.feed = FeedForward(settings, init=init, dtype=dtype)
        self.around_feed = Residual(settings, init=init)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        made: Float[Array, "B T E"],
        prepared: tuple[Array, ...],
        mask: Bool[Array, "B S"],
        noise: Noise | None = None,
        place: str = "",
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B N T S"]]:
        """The layer's output, and its cross-attention's weights.

        made: what `attention` makes of `around_attention.into(x)`.
        """
        x = self.around_attention.out(x, made, noise, f"{place}/self")
        read, weights = self.cross(self.around_cross.into(x), prepared, mask, noise, f"{place}/cross")
        x = self.around_cross.out(x, read, noise, f"{place}/cross")
        return self.around_feed.out(x, self.feed(self.around_feed.into(x)), noise, f"{place}/feed"), weights


def _embedded(
    embedding: Embedding, ids: Int[Array, "B T"], positions: Int[Array, " T"], noise: Noise | None, side: str
) -> Float[Array, "B T E"]:
    """Embeddings times sqrt(d) plus positions; a dropped word leaves its position."""
    vectors = embedding(ids)
    size = vectors.shape[-1]
    vectors = dropped(math.sqrt(size) * vectors, noise, "word", side, (*ids.shape, 1))
    return dropped(vectors + sinusoids(positions, size, vectors.dtype)[None], noise, "embedding", side)


def _shown(weights: Float[Array, "B N T S"]) -> Float[Array, "B T S"]:
    """Cross-attention weights of the last layer as the model's attention weights: the mean over heads."""
    return jnp.mean(weights, axis=1)


class Encoder(nnx.Module):
    """Embedded source to memory."""

    def __init__(self, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        layers = range(settings.encoder_layers)
        self.layers = nnx.List([EncoderLayer(settings, init=init, dtype=dtype) for _ in layers])
        self.last = Norm(settings.size, init=init) if settings.norm == "pre" else None

    def __call__(self, x: Float[Array, "B S E"], mask: Bool[Array, "B S"], noise: Noise | None = None) -> Memory:
        """The last layer's outputs, zero on padding; there is no summary."""
        for n, layer in enumerate(self.layers):
            x = layer(x, mask, noise, f"encoder/{n}")
        x = x if self.last is None else self.last(x)
        return Memory(jnp.where(mask[:, :, None], x, 0), mask, ())


class State(NamedTuple):
    """What passes from step to step: a cache for each layer, and the number of steps done."""

    caches: tuple[Cache, ...]
    done: Int[Array, ""]


class Source(NamedTuple):
    """What every step needs of the source: keys and values for each layer's cross-attention, and the mask [B, S]."""

    prepared: tuple[tuple[Float[Array, "B S N D"], ...], ...]
    mask: Bool[Array, "B S"]


class Decoder(nnx.Module):
    """Embedding, layers, and the output projection."""

    def __init__(self, vocabulary: int, settings: configs.Transformer, *, init: Initializer, dtype: Any = None):
        self.embedding = Embedding(vocabulary, settings.size, init=init)
        layers = range(settings.decoder_layers)
        self.layers = nnx.List([DecoderLayer(settings, init=init, dtype=dtype) for _ in layers])
        self.last = Norm(settings.size, init=init) if settings.norm == "pre" else None
        self.output = Dense(settings.size, vocabulary, init=init, dtype=dtype)
        self.settings = settings

    def start(self, memory: Memory, max_length: int = MAX_LENGTH) -> tuple[State, Source]:
        """The state before the first of at most `max_length` steps, and what all steps need of the source."""
        window, heads = self.settings.window, self.settings.heads
        length = min(max_length, window + 1) if window else max_length
        empty = jnp.zeros((memory.states.shape[0], length, heads, self.settings.size // heads), memory.states.dtype)
        caches = (Cache(empty, empty),) * len(self.layers)
        return State(caches, jnp.zeros((), jnp.int32)), self._source(memory)

    def _source(self, memory: Memory) -> Source:
        return Source(tuple(layer.cross.memory(memory.states) for layer in self.layers), memory.mask)

    def step(self, state: State, tokens: Int[Array, " B"], source: Source) -> tuple[State, Float[Array, "B E"], Array]:
        """One step after `tokens`: the state, vectors before the output projection, and weights [B, S].

        The vectors are NaN after more steps than the state was made for. Of a source of fewer rows each has several
        rows of the state, one after another: the hypotheses of a beam.
        """
        x = _embedded(self.embedding, tokens[:, None], state.done[None], None, "target")
        caches = []
        for layer, cache, prepared in zip(self.layers, state.caches, source.prepared, strict=True):
            made, cache = layer.attention.step(layer.around_attention.into(x), cache, state.done)
            x, weights = layer(x, made, prepared, source.mask)
            caches.append(cache)
        features = self._normed(x)[:, 0]
        length = state.caches[0].keys.shape[1]
        if not self.settings.window or length != self.settings.window + 1:
            # Else the cache holds all that the window will ever reach.
            features = jnp.where(state.done < length, features, jnp.nan)
        return State(tuple(caches), state.done + 1), features, _shown(weights)[:, 0]

    def teacher_forced(
        self, inputs: Int[Array, "B T"], memory: Memory, noise: Noise | None = None
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B T S"]]:
        """Vectors before the output projection, and weights, for all steps; `inputs` are the previous symbols."""
        x = _embedded(self.embedding, inputs, jnp.arange(inputs.shape[1]), noise, "target")
        source, every = self._source(memory), jnp.ones(inputs.shape, bool)
        for n, (layer, prepared) in enumerate(zip(self.layers, source.prepared, strict=True)):
            place = f"decoder/{n}"
            made = layer.attention(layer.around_attention.into(x), every, noise, f"{place}/self")
            x, weights = layer(x, made, prepared, source.mask, noise, place)
        return dropped(self._normed(x), noise, "readout", "target"), _shown(weights)

    def _normed(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        return x if self.last is None else self.last(x)


class Transformer(Seq2Seq):
    """An encoder-decoder without recurrence. Raises UserError if the heads do not divide the width."""

    def __init__(self, config: Config, source_size: int, target_size: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        settings, init = config.transformer, Initializer(config.init, rngs, dtype)
        if settings.size % settings.heads:
            raise UserError(
                f"transformer.size={settings.size} with transformer.heads={settings.heads}: every head has the width "
                "size / heads, so heads must divide size"
            )
        product_dtype = PRECISIONS[config.precision]
        self.source_embedding = Embedding(source_size, settings.size, init=init)
        self.encoder = Encoder(settings, init=init, dtype=product_dtype)
        self.decoder = Decoder(target_size, settings, init=init, dtype=product_dtype)

    def encode(self, source: Int[Array, "B S"], mask: Bool[Array, "B S"], noise: Noise | None = None) -> Memory:
        """Source ids to memory."""
        positions = jnp.arange(source.shape[1])
        return self.encoder(_embedded(self.source_embedding, source, positions, noise, "source"), mask, noise)
