"""What training, search and evaluation need of a model, whatever it is made of."""

import abc
from typing import Any, Protocol

from flax import nnx

from attn_jax.layers import Dense, Noise
from attn_jax.scores import Memory
from attn_jax.shapes import Array, Bool, Float, Int


class AnyDecoder(Protocol):
    """What training and search need of a decoder, recurrent or not.

    Leaves of state and source have a leading batch axis, but for scalars, which the batch shares. Weights have S = 0
    without attention.
    """

    @property
    def output(self) -> Dense:
        """The output projection: features to logits."""

    def start(self, memory: Memory, max_length: int = ...) -> tuple[Any, Any]:
        """The state before the first of at most `max_length` steps, and what all steps need of the source."""

    def step(
        self, state: Any, tokens: Int[Array, " B"], source: Any
    ) -> tuple[Any, Float[Array, "B F"], Float[Array, "B *N S"]]:
        """One step after `tokens`: the state, the vectors before the output projection, and weights.

        Of a source of fewer rows each has several rows of the state, one after another: the hypotheses of a beam.
        """

    def teacher_forced(
        self, inputs: Int[Array, "B T"], memory: Memory, noise: Noise | None = None
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B T *N S"]]:
        """Vectors before the output projection, and weights, given the previous symbols of all steps."""


class Seq2Seq(nnx.Module, abc.ABC):
    """An encoder and a decoder."""

    decoder: AnyDecoder

    @abc.abstractmethod
    def encode(self, source: Int[Array, "B S"], mask: Bool[Array, "B S"], noise: Noise | None = None) -> Memory:
        """Source ids to memory."""

    def teacher_forced(
        self,
        source: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        inputs: Int[Array, "B T"],
        noise: Noise | None = None,
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B *TN S"]]:
        """Vectors before the output projection, and attention weights, given the previous target symbols."""
        return self.decoder.teacher_forced(inputs, self.encode(source, mask, noise), noise)
