"""Encoders: a source to a `Memory`.

`encoder.size` is per direction; every layer reads the outputs of all directions below. With `encoder.residual` the
output of every layer but the first is that of its cells plus what it read; the last states, which bridges see, are the
cells' own.
"""

import jax.numpy as jnp
from flax import nnx

from attn_jax.cells import CELLS
from attn_jax.config import Config
from attn_jax.errors import unknown
from attn_jax.layers import Initializer, Noise, OneHot, dropped
from attn_jax.recurrence import recur
from attn_jax.scores import Memory
from attn_jax.shapes import Array, Bool, Float

DIRECTIONS: dict[str, tuple[bool, ...]] = {"uni": (False,), "bi": (False, True), "reversed": (True,)}
"""For each kind of encoder, whether each of its directions reads the source from its end."""


def memory_size(config: Config) -> int:
    """The width K of the memory."""
    if config.encoder.name not in DIRECTIONS:
        raise unknown("encoder", config.encoder.name, DIRECTIONS)
    return config.encoder.size * len(DIRECTIONS[config.encoder.name])


class Encoder(nnx.Module):
    """A stack of recurrent layers in one or both directions over embedded sources."""

    def __init__(self, input_size: int, config: Config, *, init: Initializer, dtype: type | None = None):
        self.directions = DIRECTIONS[config.encoder.name]
        self.size, self.residual = config.encoder.size, config.encoder.residual
        widths = [input_size] + [memory_size(config)] * (config.encoder.layers - 1)
        cell = CELLS[config.cell.name]
        self.layers = nnx.List(
            [
                nnx.List([cell((n,), self.size, settings=config.cell, init=init, dtype=dtype) for _ in self.directions])
                for n in widths
            ]
        )

    def __call__(
        self, inputs: Float[Array, "S B E"] | OneHot, mask: Bool[Array, "B S"], noise: Noise | None = None
    ) -> Memory:
        """States of the last layer, and the last state of every layer and direction. Inputs have time first."""
        batch, carries = mask.shape[0], []
        below: Array | None = None
        for number, layer in enumerate(self.layers):
            x = inputs if below is None else dropped(below, noise, "layer", f"encoder/{number}")
            outputs, last = [], []
            for reverse, cell in zip(self.directions, layer, strict=True):
                place = f"encoder/{number}/{reverse}"
                projected = cell.project(x)
                dtype = projected.dtype
                keep = None if noise is None else noise.mask("recurrent", place, (batch, self.size), dtype)
                states, carry = recur(
                    cell, projected, cell.zeros(batch, dtype), mask_BT=mask, dropout_BH=keep, reverse=reverse
                )
                outputs.append(states)
                last.append(carry)
            above = jnp.concatenate(outputs, axis=-1)
            below = above + below if self.residual and below is not None else above
            carries.append([jnp.concatenate(part, axis=-1) for part in zip(*last, strict=True)])
        assert below is not None  # there is a layer
        return Memory(
            jnp.swapaxes(below, 0, 1), mask, tuple(jnp.stack(part, axis=1) for part in zip(*carries, strict=True))
        )
