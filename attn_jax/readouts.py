"""Read-outs: what the output projection sees of a step."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx

from attn_jax.config import Config
from attn_jax.layers import Dense, Initializer, OneHot, project
from attn_jax.registry import Registry
from attn_jax.shapes import Array, Float


class Seen(NamedTuple):
    """What there is after a step.

    The attentional vector a_t, the state h_t of the top layer, the context c_t (of width 0 without attention), and the
    embedding of the previous symbol e(y_{t-1}).
    """

    attentional: Float[Array, "*BT H"]
    state: Float[Array, "*BT H"]
    context: Float[Array, "*BT K"]
    embedded: Float[Array, "*BT E"] | OneHot


class Readout(nnx.Module):
    """Base of all read-outs. embedded_size, context_size: widths of embedding and context."""

    name: ClassVar[str]
    uses_attentional: ClassVar[bool] = False

    def __init__(self, embedded_size: int, context_size: int, config: Config, *, init: Initializer, dtype: Any = None):
        self.size = config.decoder.size

    def __call__(self, seen: Seen) -> Float[Array, "*BT F"]:
        """The vector before the output projection, of width `size`."""
        raise TypeError(f"{type(self).__name__} must define __call__")


READOUTS: Registry[type[Readout]] = Registry("readout")


@READOUTS.register
class Projection(Readout):
    """a_t itself: logits W a_t + b (Luong et al. 2015, equation 6)."""

    name = "projection"
    uses_attentional = True

    def __call__(self, seen: Seen) -> Array:
        return seen.attentional


class _Sum(Readout):
    """W1 e + W2 h + W3 c + b, `multiple` times as wide as the read-out."""

    multiple: ClassVar[int] = 1

    def __init__(self, embedded_size: int, context_size: int, config: Config, *, init: Initializer, dtype: Any = None):
        super().__init__(embedded_size, context_size, config, init=init)
        inputs = embedded_size + config.decoder.size + context_size
        self.dense = Dense(inputs, self.multiple * self.size, init=init, dtype=dtype)

    def _sum(self, seen: Seen) -> Array:
        # One product of the joined inputs: [W1; W2; W3] is one matrix.
        if not isinstance(seen.embedded, OneHot):
            return self.dense(jnp.concatenate([seen.embedded, seen.state, seen.context], axis=-1))
        rest = jnp.concatenate([seen.state, seen.context], axis=-1)
        kernel, bias = self.dense.weights()
        assert bias is not None  # only other dense layers may lack one
        of_symbol, of_rest = jnp.split(kernel, [kernel.shape[0] - rest.shape[-1]])
        y = project(seen.embedded, of_symbol) + project(rest, of_rest, self.dense.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


@READOUTS.register
class Deep(_Sum):
    """tanh(W1 e(y_{t-1}) + W2 h_t + W3 c_t + b) (Pascanu et al. 2014; nematus)."""

    name = "deep"

    def __call__(self, seen: Seen) -> Array:
        return jnp.tanh(self._sum(seen))


@READOUTS.register
class Maxout(_Sum):
    """The larger of each two neighbours of W1 e(y_{t-1}) + W2 h_t + W3 c_t + b (Bahdanau et al. 2015, appendix A.2.2).

    h_t is the state after the step, as for the other read-outs, where the publication takes the one before it.
    """

    name = "maxout"
    multiple = 2

    def __call__(self, seen: Seen) -> Array:
        pairs = self._sum(seen)
        return jnp.max(pairs.reshape(*pairs.shape[:-1], self.size, 2), axis=-1)
