"""Dense and embedding layers, one-hot vectors, initialisers, and dropout by site.

Modules hold parameters only; random keys are arguments.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax.config import Init
from attn_jax.products import contract
from attn_jax.registry import Registry
from attn_jax.shapes import Array, Float, Int, Key


class Initializer:
    """First values by the role of a parameter, as `config.Init` says. Each call takes the next key of `rngs`."""

    def __init__(self, config: Init, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.rngs, self.dtype = config, rngs, dtype

    def _draw(self, shape: tuple[int, ...], glorot: Any, fan_in: int) -> nnx.Param:
        name, scale = self.config.name, self.config.scale
        key = self.rngs.params()
        if name == "uniform":
            value = jax.random.uniform(key, shape, self.dtype, -scale, scale)
        elif name == "normal":
            value = scale * jax.random.normal(key, shape, self.dtype)
        elif name == "fan_in":
            bound = 1 / math.sqrt(fan_in)
            value = jax.random.uniform(key, shape, self.dtype, -bound, bound)
        else:
            value = glorot(key, shape, self.dtype)
        return nnx.Param(value)

    def matrix(self, shape: tuple[int, int], *, fan_in: int = 0, fan_out: int = 0) -> nnx.Param:
        """A matrix [inputs, outputs]; a block of a larger matrix names the whole one's fans."""
        fan_in, fan_out = fan_in or shape[0], fan_out or shape[1]
        limit = math.sqrt(6 / (fan_in + fan_out))
        return self._draw(shape, lambda k, s, d: jax.random.uniform(k, s, d, -limit, limit), fan_in)

    def recurrent(self, size: int, gates: int) -> nnx.Param:
        """A state-to-gates matrix [size, gates * size]: one orthogonal block a gate under `glorot`."""

        def orthogonal(key: Key[Array, ""], shape: tuple[int, int], dtype: Any) -> Array:
            block = nnx.initializers.orthogonal()
            return jnp.concatenate([block(k, (size, size), dtype) for k in jax.random.split(key, gates)], axis=1)

        return self._draw((size, gates * size), orthogonal, size)

    def embedding(self, count: int, size: int) -> nnx.Param:
        """A table of symbol vectors."""
        return self._draw((count, size), lambda k, s, d: jax.random.normal(k, s, d) / math.sqrt(size), size)

    def vector(self, size: int) -> nnx.Param:
        """A weight vector that reduces `size` features to one."""
        limit = math.sqrt(6 / (size + 1))
        return self._draw((size,), lambda k, s, d: jax.random.uniform(k, s, d, -limit, limit), size)

    def scalar(self, value: float) -> nnx.Param:
        """A gain that starts at `value`, whatever the configuration."""
        return nnx.Param(jnp.asarray(value, self.dtype))

    def gain(self, size: int) -> nnx.Param:
        """The gains of a layer norm: ones, whatever the configuration."""
        return nnx.Param(jnp.ones((size,), self.dtype))

    def bias(self, size: int, fan_in: int) -> nnx.Param:
        """A bias vector: zero under `glorot`."""
        return self._draw((size,), lambda k, s, d: jnp.zeros(s, d), fan_in)


class OneHot(NamedTuple):
    """Vectors of V numbers, one of which may differ from zero; they are never made.

    ids: the places of those numbers. value: the numbers, 1 but for dropout.
    """

    ids: Int[Array, "..."]
    value: Float[Array, "... 1"]


class Dense(nnx.Module):
    """y = x W + b for x [..., I]. Precision of the product: `dtype`, see `products.contract`."""

    def __init__(self, inputs: int, outputs: int, *, init: Initializer, bias: bool = True, dtype: Any = None):
        self.kernel = init.matrix((inputs, outputs))
        self.bias = init.bias(outputs, inputs) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """X W + b."""
        kernel, bias = self.weights()
        y = project(x, kernel, self.dtype)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def weights(self) -> tuple[Float[Array, "I O"], Float[Array, " O"] | None]:
        """W and b, None where there is none."""
        return self.kernel[...], None if self.bias is None else self.bias[...]


class Tied(Dense):
    """y = x E' + b, where the rows of E [O, I] are the vectors of an embedding (Press and Wolf 2017, section 2)."""

    def __init__(self, embedding: "Embedding", *, init: Initializer, dtype: Any = None):
        # One parameter in two places: its gradients add up.
        self.table = embedding.table
        self.bias = init.bias(*embedding.table.shape)
        self.dtype = dtype

    def weights(self) -> tuple[Float[Array, "I O"], Float[Array, " O"] | None]:
        return self.table[...].T, None if self.bias is None else self.bias[...]


@jax.custom_vjp
def rows_of(table: Float[Array, "V E"], ids: Int[Array, "..."]) -> Float[Array, "... E"]:
    """The rows of a table."""
    return jnp.take(table, ids, axis=0)


def _rows_forward(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return rows_of(table, ids), (ids, jnp.zeros_like(table, shape=(table.shape[0], 0)))


def _rows_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, None]:
    ids, like = residuals
    # Of plain zeros XLA makes one array for all tables of a shape, and copies it for each.
    zero = jnp.minimum(ids.reshape(-1)[0], 0).astype(g.dtype)
    zeros = jnp.full((like.shape[0], g.shape[-1]), zero)
    return zeros.at[ids.reshape(-1)].add(g.reshape(-1, g.shape[-1])), None


rows_of.defvjp(_rows_forward, _rows_backward)


def project(x: Float[Array, "... I"] | OneHot, kernel: Float[Array, "I O"], dtype: Any = None) -> Float[Array, "... O"]:
    """X W over the last axis of x; of one-hot vectors the rows of W, unrounded whatever the `dtype`."""
    if isinstance(x, OneHot):
        return rows_of(kernel, x.ids) * x.value
    axes = "abc"[: x.ndim - 1]
    return contract(f"{axes}i,io->{axes}o", x, kernel, dtype)


def layer_norm(x: Float[Array, "... F"], gain: Float[Array, " F"], epsilon: float = 1e-6) -> Float[Array, "... F"]:
    """Gives gain (x - mean) / sqrt(variance + epsilon) over the last axis (Ba et al. 2016, equation 4)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * scale * gain.reshape((1,) * (x.ndim - 1) + (-1,))


EMBEDDINGS: Registry["type[Embedding]"] = Registry("embedding")


@EMBEDDINGS.register
class Embedding(nnx.Module):
    """Symbol ids to learned vectors of width `size`; the base of other embeddings.

    noise_size: numbers of a vector that dropout can change.
    """

    name: ClassVar[str] = "learned"

    def __init__(self, count: int, size: int, *, init: Initializer):
        self.size = self.noise_size = size
        self.table = init.embedding(count, size)

    def __call__(self, ids: Int[Array, "..."]) -> Any:
        """The vector of each symbol, [..., E], or a `OneHot` that stands for them."""
        return rows_of(self.table[...], ids)


@EMBEDDINGS.register
class OneHotEmbedding(Embedding):
    """The one-hot vector of each symbol, as wide as the vocabulary whatever the `size`: an identity for table."""

    name = "onehot"

    def __init__(self, count: int, size: int, *, init: Initializer):
        # Dropout of a zero changes nothing, so only the one has a mask.
        self.size, self.noise_size, self.dtype = count, 1, init.dtype

    def __call__(self, ids: Int[Array, "..."]) -> OneHot:
        return OneHot(ids, jnp.ones((*ids.shape, 1), self.dtype))


class Noise:
    """The dropout masks of one training step.

    rates: dropout rate by site (fields of section `dropout`), numbers or traced scalars; a site that is absent is off.
    """

    def __init__(self, key: Key[Array, ""], rates: Mapping[str, Any]):
        self.key, self.rates = key, rates

    def mask(
        self, site: str, place: str, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Float[Array, "..."] | None:
        """Zero with the site's rate p, else 1 / (1 - p); None if the site is off.

        `place` makes masks of one site independent.
        """
        if site not in self.rates:
            return None
        key = jax.random.fold_in(self.key, zlib.crc32(f"{site}/{place}".encode()))
        keep = jnp.asarray(1 - self.rates[site], dtype)
        return (jax.random.uniform(key, shape, dtype) < keep).astype(dtype) / keep


def dropped(x: Array, noise: Noise | None, site: str, place: str, shape: tuple[int, ...] | None = None) -> Array:
    """X times its dropout mask, of `shape` where given (broadcast against x); x itself where there is none."""
    mask = None if noise is None else noise.mask(site, place, shape or x.shape, x.dtype)
    return x if mask is None else x * mask


def input_mask(
    embedding: Embedding, noise: Noise | None, place: str, shape: tuple[int, ...], dtype: Any
) -> Float[Array, "... E"] | None:
    """The mask on the vectors of symbols [...]: of whole words times of their elements; None where both are off."""
    if noise is None:
        return None
    words = noise.mask("word", place, (*shape, 1), dtype)
    elements = noise.mask("embedding", place, (*shape, embedding.noise_size), dtype)
    return words if elements is None else elements if words is None else words * elements


def masked(vectors: Float[Array, "... E"] | OneHot, mask: Array | None) -> Float[Array, "... E"] | OneHot:
    """The vectors of symbols times their mask, if there is one."""
    if mask is None:
        return vectors
    return vectors._replace(value=vectors.value * mask) if isinstance(vectors, OneHot) else vectors * mask
