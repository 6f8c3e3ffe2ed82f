"""Dense and embedding layers, initialisers, and dropout by site.

Modules hold parameters only; random keys are arguments.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax.config import Init
from attn_jax.products import contract
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


class Dense(nnx.Module):
    """y = x W + b for x [..., I]. Precision of the product: `dtype`, see `products.contract`."""

    def __init__(self, inputs: int, outputs: int, *, init: Initializer, bias: bool = True, dtype: Any = None):
        self.kernel = init.matrix((inputs, outputs))
        self.bias = init.bias(outputs, inputs) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """X W + b."""
        y = project(x, self.kernel[...], self.dtype)
        return y if self.bias is None else y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))


def project(x: Float[Array, "... I"], kernel: Float[Array, "I O"], dtype: Any = None) -> Float[Array, "... O"]:
    """X W over the last axis of x."""
    axes = "abc"[: x.ndim - 1]
    return contract(f"{axes}i,io->{axes}o", x, kernel, dtype)


def layer_norm(x: Float[Array, "... F"], gain: Float[Array, " F"], epsilon: float = 1e-6) -> Float[Array, "... F"]:
    """Gives gain (x - mean) / sqrt(variance + epsilon) over the last axis (Ba et al. 2016, equation 4)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * scale * gain.reshape((1,) * (x.ndim - 1) + (-1,))


class Embedding(nnx.Module):
    """Symbol ids to vectors."""

    def __init__(self, count: int, size: int, *, init: Initializer):
        self.table = init.embedding(count, size)

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... E"]:
        """The vector of each symbol."""
        return jnp.take(self.table[...], ids, axis=0)


class Noise:
    """The dropout masks of one training step.

    rates: dropout rate by site (`embedding`, `layer`, `recurrent`, `readout`, `word`), numbers or traced scalars; a
        site that is absent is off.
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
