"""Recurrent cells: one step. A cell maps a carry (h,) or (h, c) and its projected inputs to the next carry.

Inputs are projected apart from the step (`project`), because what does not depend on the state need not wait for it:
the caller projects all steps at once, and adds within the loop only what is fed back. All gates lie side by side on the
last axis.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import config
from attn_jax.layers import Initializer, OneHot, layer_norm, project
from attn_jax.products import contract
from attn_jax.registry import Registry
from attn_jax.shapes import Array, Float

Carry = tuple[Array, ...]


# Gates are made again for the gradient from what went into them: a dozen arrays a step need not be kept.
_elementwise = functools.partial(jax.checkpoint, prevent_cse=False)


class Cell(nnx.Module):
    """Base of all cells.

    input_sizes: widths of the separate inputs; each has its own block of the input matrix W = [W_0; W_1; ...].
    size: units of the state.
    """

    name: ClassVar[str]
    gates: ClassVar[int]
    parts: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(
        self, input_sizes: tuple[int, ...], size: int, *, settings: config.Cell, init: Initializer, dtype: Any = None
    ):
        width, total = self.gates * size, sum(input_sizes)
        # Fans of one gate's matrix, as if each gate had its own.
        self.kernels = nnx.List([init.matrix((n, width), fan_in=total, fan_out=size) for n in input_sizes])
        self.recurrent = init.recurrent(size, self.gates)
        self.bias = init.bias(width, total)
        self.size, self.dtype = size, dtype
        self.forget_bias, self.keep_every, self.unroll = settings.forget_bias, settings.keep_every, settings.unroll

    def project(self, x: Float[Array, "... I"] | OneHot, source: int = 0) -> Float[Array, "... G"]:
        """Input number `source` times its block of W; the bias belongs to input 0."""
        y = project(x, self.kernels[source][...], self.dtype)
        return y + self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,)) if source == 0 else y

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        """The next carry. mask: dropout mask on the state where it enters the gates."""
        raise TypeError(f"{type(self).__name__} must define step")

    def zeros(self, batch: int, dtype: Any) -> Carry:
        """The carry before the first step."""
        return tuple(jnp.zeros((batch, self.size), dtype) for _ in self.parts)

    def _from_state(self, h: Array, mask: Array | None) -> Array:
        h = h if mask is None else h * mask
        return contract("bh,hg->bg", h, self.recurrent[...], self.dtype)


CELLS: Registry[type[Cell]] = Registry("cell")


@CELLS.register
class RNN(Cell):
    """h' = tanh(W x + U h + b) (Elman 1990)."""

    name = "rnn"
    gates = 1

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        (h,) = carry
        return (jnp.tanh(projected + self._from_state(h, mask)),)


@CELLS.register
class LSTM(Cell):
    """i, f, o = sigmoid(W x + U h + b), g = tanh(...); c' = f c + i g; h' = o tanh(c') (Gers et al. 2000).

    Gate order i, f, g, o. `cell.forget_bias` is added to f before its sigmoid.
    """

    name = "lstm"
    gates = 4
    parts = ("h", "c")

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        @_elementwise
        def next_carry(gates: Array, c: Array) -> Carry:
            # sigmoid(x) = (1 + tanh(x / 2)) / 2: one tanh over all gates, which lie side by side.
            half = jnp.array([0.5, 0.5, 1, 0.5], gates.dtype)[None, :, None]
            bias = jnp.array([0, self.forget_bias, 0, 0], gates.dtype)[None, :, None]
            i, f, g, o = jnp.unstack(jnp.tanh((gates + bias) * half), axis=1)
            c = 0.5 * ((1 + f) * c + (1 + i) * g)
            return 0.5 * (1 + o) * jnp.tanh(c), c

        h, c = carry
        gates = projected + self._from_state(h, mask)
        return next_carry(gates.reshape(-1, 4, self.size), c)


@CELLS.register
class GRU(Cell):
    """r, z = sigmoid(W x + U h + b); n = tanh(W x + b + r (U h + b_n)); h' = (1 - z) n + z h.

    The reset gate acts after the recurrent product, as in cuDNN and PyTorch. Gate order r, z, n.
    """

    name = "gru"
    gates = 3

    def __init__(self, input_sizes: tuple[int, ...], size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(input_sizes, size, init=init, **kwargs)
        self.candidate_bias = init.bias(size, size)

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        @_elementwise
        def next_carry(projected: Array, recurrent: Array, bias: Array, h: Array) -> Carry:
            two = 2 * self.size
            r, z = jnp.split(0.5 + 0.5 * jnp.tanh(0.5 * (projected[:, :two] + recurrent[:, :two])), 2, axis=-1)
            n = jnp.tanh(projected[:, two:] + r * (recurrent[:, two:] + bias))
            return (n + z * (h - n),)

        (h,) = carry
        return next_carry(projected, self._from_state(h, mask), self.candidate_bias[...][None], h)


@CELLS.register
class GRUResetBefore(Cell):
    """r, z = sigmoid(W x + U h + b); n = tanh(W x + U (r h) + b); h' = (1 - z) n + z h (Cho et al. 2014, section 2.3).

    The reset gate acts before the recurrent product. Gate order r, z, n.
    """

    name = "gru_reset_before"
    gates = 3

    def __init__(self, input_sizes: tuple[int, ...], size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(input_sizes, size, init=init, **kwargs)
        self.recurrent = init.recurrent(size, 2)
        self.candidate = init.recurrent(size, 1)

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        (h,) = carry
        two = 2 * self.size
        gates = 0.5 + 0.5 * jnp.tanh(0.5 * (projected[:, :two] + self._from_state(h, mask)))
        r, z = jnp.split(gates, 2, axis=-1)
        reset = r * h if mask is None else r * h * mask
        n = jnp.tanh(projected[:, two:] + contract("bh,hg->bg", reset, self.candidate[...], self.dtype))
        return (n + z * (h - n),)


@CELLS.register
class LayerNormLSTM(LSTM):
    """The LSTM with layer norm (LN) on W x, on U h, and on c' before its tanh (Ba et al. 2016, equations 20 to 22).

    Gates are LN(W x) + LN(U h) + b; h' = o tanh(LN(c') + b_c). The carry keeps c' itself.
    """

    name = "lnlstm"

    def __init__(self, input_sizes: tuple[int, ...], size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(input_sizes, size, init=init, **kwargs)
        self.input_gain, self.recurrent_gain = init.gain(4 * size), init.gain(4 * size)
        self.cell_gain, self.cell_bias = init.gain(size), init.bias(size, size)

    def project(self, x: Float[Array, "... I"] | OneHot, source: int = 0) -> Float[Array, "... G"]:
        # The bias comes after the norm, and the norm after the products of all inputs are added.
        return project(x, self.kernels[source][...], self.dtype)

    def step(self, carry: Carry, projected: Float[Array, "B G"], mask: Float[Array, "B H"] | None = None) -> Carry:
        h, c = carry
        gates = layer_norm(projected, self.input_gain[...])
        gates = gates + layer_norm(self._from_state(h, mask), self.recurrent_gain[...]) + self.bias[...][None]
        half = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], gates.dtype), self.size)[None]
        bias = jnp.repeat(jnp.array([0, self.forget_bias, 0, 0], gates.dtype), self.size)[None]
        i, f, g, o = jnp.split(jnp.tanh((gates + bias) * half), 4, axis=-1)
        c = 0.5 * ((1 + f) * c + (1 + i) * g)
        return 0.5 * (1 + o) * jnp.tanh(layer_norm(c, self.cell_gain[...]) + self.cell_bias[...][None]), c
