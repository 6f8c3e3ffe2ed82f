"""Context vector and decoder state to the attentional vector a_t (Luong et al. 2015, equation 5)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from attn_jax import config
from attn_jax.errors import UserError
from attn_jax.layers import Dense, Initializer
from attn_jax.registry import Registry
from attn_jax.shapes import Array, Float


class Combine(nnx.Module):
    """Base. context of width K, state of width H; the result has width H."""

    name: ClassVar[str]

    def __init__(
        self, context_size: int, size: int, *, settings: config.Combine, init: Initializer, dtype: type | None
    ):
        self.dense = Dense(context_size + size, size, init=init, bias=settings.bias, dtype=dtype)

    def __call__(self, context: Float[Array, "B *T K"], state: Float[Array, "B *T H"]) -> Float[Array, "B *T H"]:
        """The attentional vector."""
        raise TypeError(f"{type(self).__name__} must define __call__")


COMBINES: Registry[type[Combine]] = Registry("combine")


@COMBINES.register
class Tanh(Combine):
    """tanh(W [c; h])."""

    name = "tanh"

    def __call__(self, context: Array, state: Array) -> Array:
        return jnp.tanh(self.dense(jnp.concatenate([context, state], axis=-1)))


@COMBINES.register
class Linear(Combine):
    """W [c; h]."""

    name = "linear"

    def __call__(self, context: Array, state: Array) -> Array:
        return self.dense(jnp.concatenate([context, state], axis=-1))


@COMBINES.register
class Add(Combine):
    """c + h; equal widths."""

    name = "add"

    def __init__(
        self, context_size: int, size: int, *, settings: config.Combine, init: Initializer, dtype: type | None
    ):
        if context_size != size:
            raise UserError(
                f"combine 'add' needs equal widths, but the context has {context_size} (encoder.size, twice for bi) "
                f"and the decoder {size} (decoder.size)"
            )

    def __call__(self, context: Array, state: Array) -> Array:
        return context + state
