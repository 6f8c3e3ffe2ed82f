"""Bridges: the memory to the decoder's first carry, for each decoder layer and each part of the carry (h, c)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from attn_jax.config import Config
from attn_jax.encoders import memory_size
from attn_jax.errors import UserError
from attn_jax.layers import Dense, Initializer
from attn_jax.registry import Registry
from attn_jax.scores import Memory
from attn_jax.shapes import Array


class Bridge(nnx.Module):
    """Base of all bridges. parts: number of parts of a carry."""

    name: ClassVar[str]

    def __init__(self, parts: int, config: Config, *, init: Initializer, dtype: type | None = None):
        self.parts, self.size, self.layers = parts, config.decoder.size, config.decoder.layers

    def __call__(self, memory: Memory) -> tuple[tuple[Array, ...], ...]:
        """A carry for each decoder layer."""
        raise TypeError(f"{type(self).__name__} must define __call__")


BRIDGES: Registry[type[Bridge]] = Registry("bridge")


@BRIDGES.register
class Zero(Bridge):
    """Zeros: nothing passes."""

    name = "zero"

    def __call__(self, memory: Memory) -> tuple[tuple[Array, ...], ...]:
        zeros = jnp.zeros((memory.states.shape[0], self.size), memory.states.dtype)
        return ((zeros,) * self.parts,) * self.layers


@BRIDGES.register
class Last(Bridge):
    """The encoder's last state of the same layer, directions concatenated; shapes must agree."""

    name = "last"

    def __init__(self, parts: int, config: Config, *, init: Initializer, dtype: type | None = None):
        super().__init__(parts, config, init=init)
        if config.encoder.layers != self.layers or memory_size(config) != self.size:
            raise UserError(
                f"bridge 'last' copies states, but the encoder has {config.encoder.layers} layer(s) of "
                f"{memory_size(config)} (encoder.size, twice for bi) and the decoder {self.layers} of {self.size}: "
                "make them equal or use bridge=dense"
            )

    def __call__(self, memory: Memory) -> tuple[tuple[Array, ...], ...]:
        return tuple(tuple(part[:, layer] for part in memory.summary) for layer in range(self.layers))


class _Summary(Bridge):
    """tanh(W s + b) of a summary s of width `inputs`, for every layer and part."""

    def __init__(self, parts: int, config: Config, *, init: Initializer, dtype: type | None = None):
        super().__init__(parts, config, init=init)
        inputs = self.width(config)
        self.dense = nnx.List([Dense(inputs, self.size, init=init, dtype=dtype) for _ in range(self.layers * parts)])

    @staticmethod
    def width(config: Config) -> int:
        """Width of the summary."""
        return memory_size(config)

    def summaries(self, memory: Memory) -> list[Array]:
        """The summary for each part."""
        raise TypeError(f"{type(self).__name__} must define summaries")

    def __call__(self, memory: Memory) -> tuple[tuple[Array, ...], ...]:
        found = self.summaries(memory)
        return tuple(
            tuple(jnp.tanh(self.dense[layer * self.parts + p](found[p])) for p in range(self.parts))
            for layer in range(self.layers)
        )


@BRIDGES.register
class DenseBridge(_Summary):
    """tanh(W summary + b), the summary being the last states of all layers and directions."""

    name = "dense"

    @staticmethod
    def width(config: Config) -> int:
        return config.encoder.layers * memory_size(config)

    def summaries(self, memory: Memory) -> list[Array]:
        return [part.reshape(part.shape[0], -1) for part in memory.summary]


@BRIDGES.register
class Mean(_Summary):
    """tanh(W mean(states) + b), the mean over real positions (nematus)."""

    name = "mean"

    def summaries(self, memory: Memory) -> list[Array]:
        count = jnp.maximum(jnp.sum(memory.mask, axis=1, keepdims=True), 1)
        return [jnp.sum(jnp.where(memory.mask[:, :, None], memory.states, 0), axis=1) / count] * self.parts


@BRIDGES.register
class Backward(_Summary):
    """tanh(W s + b), s the last layer's backward state at position 1 (Bahdanau et al. 2015, appendix A.2.2)."""

    name = "backward"

    def __init__(self, parts: int, config: Config, *, init: Initializer, dtype: type | None = None):
        if config.encoder.name == "uni":
            raise UserError("bridge 'backward' needs a backward direction: encoder=bi or encoder=reversed, not uni")
        super().__init__(parts, config, init=init, dtype=dtype)

    @staticmethod
    def width(config: Config) -> int:
        return config.encoder.size

    def summaries(self, memory: Memory) -> list[Array]:
        # The backward direction comes last in a summary, and ends at position 1.
        return [part[:, -1, -self.dense[0].kernel[...].shape[0] :] for part in memory.summary]
