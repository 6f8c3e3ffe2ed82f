"""Scoring functions: how well position j of the memory matches a query q. One class a score; this is the file to edit.

A score is a subclass of `Score` with a `name`, a docstring whose first line is the equation and source, and

- `keys(memory)`: what is computed once per source;
- `values(memory)`, where they are not the memory's states, and `context(weights, values)`, where that is not their sum;
- `__call__(query, keys, extra)`: scores [B, (T,) S], for one query a sentence or one a step; with heads
  [B, (T,) N, S];
- `formula(query, memory, extra)`: the plain definition of one row, unbatched, in terms of the parameters.

Registering it is all: flags, sweeps, property tests, tables and plots go through `SCORES`. Notation: query q of width
Q, memory m_1..m_S of width K.
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import config
from attn_jax.errors import UserError
from attn_jax.layers import Initializer, project
from attn_jax.products import contract
from attn_jax.registry import Registry
from attn_jax.shapes import Array, Bool, Float, Int


class Memory(NamedTuple):
    """An encoded source.

    states: [B, S, K], zero on padding. mask: [B, S], true on real positions. summary: for each part of the carry (h,
    and c for an LSTM) the last state of every layer, [B, layers, K]; directions are concatenated.
    """

    states: Float[Array, "B S K"]
    mask: Bool[Array, "B S"]
    summary: tuple[Float[Array, "B L K"], ...]


class Extra(NamedTuple):
    """What a score or a window may need besides query and keys.

    lengths: true source lengths. step: number of the step, from 1, for each query where there are several. coverage:
    sum of the weights of all earlier steps, for each query, for scores with coverage.
    """

    lengths: Int[Array, " B"]
    step: Int[Array, "*T"]
    coverage: Float[Array, "B *T S"] | None = None


class Score(nnx.Module):
    """Base of all scores."""

    name: ClassVar[str]
    equal_sizes: ClassVar[bool] = False
    """Whether query and memory must have the same width."""
    uses_size: ClassVar[bool] = False
    """Whether `score.size` matters."""
    uses_heads: ClassVar[bool] = False
    """Whether `score.heads` matters."""
    uses_positions: ClassVar[bool] = False
    """Whether `score.max_source_length` matters: longer sources are refused."""
    uses_coverage: ClassVar[bool] = False
    """Whether the score can be made with coverage."""

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        settings: config.Score,
        init: Initializer,
        coverage: bool = False,
        dtype: Any = None,
    ):
        if coverage and not self.uses_coverage:
            able = ", ".join(name for name in SCORES if SCORES[name].uses_coverage)
            raise UserError(f"coverage=true with score={self.name}: only these scores see what was covered: {able}")
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype
        projected = self.equal_sizes and settings.memory_projection
        self.projection = init.matrix((memory_size, query_size)) if projected else None
        if self.equal_sizes and not projected and query_size != memory_size:
            raise UserError(
                f"score '{self.name}' needs equal widths, but the query has {query_size} (decoder.size) and the memory "
                f"{memory_size} (encoder.size, twice for bi): change one or set score.memory_projection=true"
            )

    def keys(self, memory: Memory) -> Array:
        """Computed once per source; by default the states, projected to the query's width if so configured.

        Searches take rows of what is returned, as of `values`: it has a leading batch axis.
        """
        return self.projected(memory.states)

    def projected(self, states: Float[Array, "*B S K"]) -> Float[Array, "*B S Q"]:
        """Memory states, in the query's width if so configured."""
        return states if self.projection is None else project(states, self.projection[...], self.dtype)

    def values(self, memory: Memory) -> Float[Array, "B S K"]:
        """What is summed to the context; by default the states."""
        return memory.states

    def context(self, weights: Float[Array, "B *T S"], values: Float[Array, "B S K"]) -> Float[Array, "B *T K"]:
        """The context vectors of weights, of the memory's width: sum_j weights_j values_j."""
        steps = "" if weights.ndim == 2 else "t"
        return contract(f"b{steps}s,bsk->b{steps}k", weights, values, self.dtype)

    def __call__(self, query: Float[Array, "B *T Q"], keys: Array, extra: Extra) -> Float[Array, "B *T S"]:
        """Scores of every position."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    def formula(self, query: Float[Array, " Q"], memory: Float[Array, "S K"], extra: Extra) -> Float[Array, " S"]:
        """The plain definition: one query, one memory."""
        raise TypeError(f"{type(self).__name__} must define formula")


SCORES: Registry[type[Score]] = Registry("score")
NONE = "none"
"""The name that stands for no attention at all."""


def inner_products(
    query: Float[Array, "B *T H"], keys: Float[Array, "B S H"], dtype: Any = None
) -> Float[Array, "B *T S"]:
    """Q . k_j for every position."""
    steps = "" if query.ndim == 2 else "t"
    return contract(f"b{steps}h,bsh->b{steps}s", query, keys, dtype)


@SCORES.register
class Dot(Score):
    """q . m_j (Luong et al. 2015, section 3.1)."""

    name = "dot"
    equal_sizes = True

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return inner_products(query, keys, self.dtype)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        return jnp.array([query @ m for m in self.projected(memory)])


@SCORES.register
class ScaledDot(Score):
    """q . m_j / sqrt(K) (Vaswani et al. 2017, section 3.2.1)."""

    name = "scaled_dot"
    equal_sizes = True

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return inner_products(query, keys, self.dtype) / math.sqrt(keys.shape[-1])

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        return jnp.array([query @ m / math.sqrt(query.size) for m in self.projected(memory)])


@SCORES.register
class General(Score):
    """q' W m_j (Luong et al. 2015, section 3.1)."""

    name = "general"

    def __init__(self, query_size: int, memory_size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, init=init, **kwargs)
        self.kernel = init.matrix((memory_size, query_size))

    def keys(self, memory: Memory) -> Array:
        return project(memory.states, self.kernel[...], self.dtype)

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return inner_products(query, keys, self.dtype)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        return jnp.array([query @ self.kernel[...].T @ m for m in memory])


class _Gain(Score):
    """A score times a gain g, learned from 1; comes before the score among the bases."""

    def __init__(self, query_size: int, memory_size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, init=init, **kwargs)
        self.g = init.scalar(1.0)

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return self.g[...] * super().__call__(query, keys, extra)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        return self.g[...] * super().formula(query, memory, extra)


@SCORES.register
class ScaledGeneral(_Gain, General):
    """g q' W m_j, g learned from 1 (tensorflow/nmt's scaled_luong)."""

    name = "scaled_general"


class _Tanh(Score):
    """v' tanh(W q + U m_j): the form that concat and additive share.

    With coverage v' tanh(W q + U m_j + w cov_j), where cov_j is the sum of the earlier weights of position j (Tu et al.
    2016, section 3.1; See et al. 2017, equation 11).
    """

    uses_coverage = True
    CHUNK_BYTES: ClassVar[int] = 32 << 20
    """Limit of the sums W q + U m_j [B, T, S, H] of all steps at once; above it made step by step, and twice."""

    query_kernel: nnx.Param
    memory_kernel: nnx.Param
    v: nnx.Param

    def __init__(self, query_size: int, memory_size: int, *, coverage: bool = False, **kwargs: Any):
        super().__init__(query_size, memory_size, coverage=coverage, **kwargs)
        self.with_coverage = coverage

    def _make(self, init: Initializer, size: int, **fans: int) -> None:
        """The parameters of a hidden layer of `size`."""
        self.query_kernel = init.matrix((self.query_size, size), **fans)
        self.memory_kernel = init.matrix((self.memory_size, size), **fans)
        self.v = init.vector(size)
        self.coverage_kernel = init.matrix((1, size)) if self.with_coverage else None

    def keys(self, memory: Memory) -> Array:
        return project(memory.states, self.memory_kernel[...], self.dtype)

    def _vector(self) -> Float[Array, " H"]:
        return self.v[...]

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        a, v = project(query, self.query_kernel[...], self.dtype), self._vector()
        if self.coverage_kernel is not None:
            assert extra.coverage is not None  # the decoder's state has it
            covered = project(extra.coverage[..., None], self.coverage_kernel[...], self.dtype)
            keys = covered + (keys if a.ndim == 2 else keys[:, None])

        def row(a_BH: Array) -> Array:
            return contract("bsh,h->bs", jnp.tanh(a_BH[:, None, :] + keys), v, self.dtype)

        if a.ndim == 2:
            return row(a)
        if keys.ndim == 4:
            return contract("btsh,h->bts", jnp.tanh(a[:, :, None, :] + keys), v, self.dtype)
        if a.shape[1] * keys.size * keys.dtype.itemsize <= self.CHUNK_BYTES:
            return contract("btsh,h->bts", jnp.tanh(a[:, :, None, :] + keys[:, None]), v, self.dtype)
        return jnp.swapaxes(jax.lax.map(jax.checkpoint(row), jnp.swapaxes(a, 0, 1)), 0, 1)

    def _covered(self, extra: Extra, length: int) -> Float[Array, "S H"]:
        """The terms w cov_j of a row's definition, 0 without coverage."""
        if self.coverage_kernel is None:
            return jnp.zeros((length, self.v.shape[0]), self.v.dtype)
        assert extra.coverage is not None
        return jnp.array([self.coverage_kernel[...][0] * covered for covered in extra.coverage])


@SCORES.register
class Concat(_Tanh):
    """v' tanh(W [q; m_j]), W with Q outputs (Luong et al. 2015, section 3.1)."""

    name = "concat"

    def __init__(self, query_size: int, memory_size: int, *, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, init=init, **kwargs)
        # Two blocks of one matrix: initialised with the fans of the whole.
        self._make(init, query_size, fan_in=query_size + memory_size, fan_out=query_size)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        w = jnp.concatenate([self.query_kernel[...], self.memory_kernel[...]]).T
        covered = self._covered(extra, len(memory))
        rows = [w @ jnp.concatenate([query, m]) + c for m, c in zip(memory, covered, strict=True)]
        return jnp.array([self.v[...] @ jnp.tanh(row) for row in rows])


@SCORES.register
class Additive(_Tanh):
    """v' tanh(W q + U m_j), of width `score.size` (Bahdanau et al. 2015, appendix A.1.2)."""

    name = "additive"
    uses_size = True

    def __init__(self, query_size: int, memory_size: int, *, settings: config.Score, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, settings=settings, init=init, **kwargs)
        self._make(init, settings.size or query_size)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        w, u = self.query_kernel[...].T, self.memory_kernel[...].T
        covered = self._covered(extra, len(memory))
        rows = [w @ query + u @ m + c for m, c in zip(memory, covered, strict=True)]
        return jnp.array([self.v[...] @ jnp.tanh(row) for row in rows])


@SCORES.register
class NormedAdditive(Additive):
    """g (v / |v|)' tanh(W q + U m_j + b), g from sqrt(1 / size) (Salimans and Kingma 2016; tensorflow/nmt)."""

    name = "normed_additive"

    def __init__(self, query_size: int, memory_size: int, *, settings: config.Score, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, settings=settings, init=init, **kwargs)
        size = settings.size or query_size
        self.g = init.scalar(math.sqrt(1 / size))
        self.bias = init.bias(size, memory_size)

    def _vector(self) -> Float[Array, " H"]:
        return self.g[...] * self.v[...] / jnp.linalg.norm(self.v[...])

    def keys(self, memory: Memory) -> Array:
        return super().keys(memory) + self.bias[...][None, None]

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        w, u = self.query_kernel[...].T, self.memory_kernel[...].T
        v = self.v[...] / jnp.sqrt(self.v[...] @ self.v[...])
        covered = self._covered(extra, len(memory))
        rows = [w @ query + u @ m + self.bias[...] + c for m, c in zip(memory, covered, strict=True)]
        return jnp.array([self.g[...] * (v @ jnp.tanh(row)) for row in rows])


@SCORES.register
class Cosine(Score):
    """q . m_j / (|q| |m_j|), norms at least 1e-6 (Graves et al. 2014, section 3.3.1, without the sharpening factor).

    A weight is at most e^2 / (e^2 + S - 1), so on long sources attention stays diffuse by construction.
    """

    name = "cosine"
    equal_sizes = True
    smallest_norm: ClassVar[float] = 1e-6

    def _unit(self, x: Array) -> Array:
        # The square root of the clipped square has a finite gradient where x is zero (padding).
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return x / jnp.sqrt(jnp.maximum(square, self.smallest_norm**2))

    def keys(self, memory: Memory) -> Array:
        return self._unit(self.projected(memory.states))

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return inner_products(self._unit(query), keys, self.dtype)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        def norm(x: Array) -> Array:
            return jnp.maximum(jnp.linalg.norm(x), self.smallest_norm)

        return jnp.array([query @ m / (norm(query) * norm(m)) for m in self.projected(memory)])


@SCORES.register
class ScaledCosine(_Gain, Cosine):
    """g q . m_j / (|q| |m_j|), g learned from 1: the sharpness that a bare cosine lacks (Graves et al. 2014)."""

    name = "scaled_cosine"


@SCORES.register
class Location(Score):
    """(W q)_j, whatever the memory holds, W with `score.max_source_length` outputs (Luong et al. 2015, section 3.1)."""

    name = "location"
    uses_positions = True

    def __init__(self, query_size: int, memory_size: int, *, settings: config.Score, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, settings=settings, init=init, **kwargs)
        self.kernel = init.matrix((query_size, settings.max_source_length))

    def keys(self, memory: Memory) -> Array:
        """Nothing [B, S, 0]: of the memory only its length counts. Raises UserError on a source that is too long."""
        check_length(self.kernel.shape[1], memory.states.shape[1], "a source")
        return memory.states[:, :, :0]

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Array:
        return project(query, self.kernel[...], self.dtype)[..., : keys.shape[1]]

    def formula(self, query: Array, memory: Array, extra: Extra) -> Array:
        return jnp.array([self.kernel[...].T[j] @ query for j in range(len(memory))])


def check_length(limit: int, length: int, where: str) -> None:
    """Raises UserError if a source, found `where`, is longer than a score of positions can tell apart."""
    if length > limit:
        raise UserError(
            f"score 'location' tells {limit} source positions apart (score.max_source_length), but {where} has "
            f"{length}: train with --set=score.max_source_length={length}, or without this score"
        )


@SCORES.register
class MultiHead(Score):
    """(W_n q) . (U_n m_j) / sqrt(K / N) for each head n of N = `score.heads` (Vaswani et al. 2017, section 3.2.2).

    Each head sums its own values V_n m_j; the context is O [c_1; ...; c_N], of the memory's width K. W_n, U_n and V_n
    have K / N outputs. No matrix has a bias, as printed.
    """

    name = "multihead"
    uses_heads = True

    def __init__(self, query_size: int, memory_size: int, *, settings: config.Score, init: Initializer, **kwargs: Any):
        super().__init__(query_size, memory_size, settings=settings, init=init, **kwargs)
        self.heads, rest = settings.heads, memory_size % settings.heads
        if rest:
            raise UserError(
                f"score 'multihead' with score.heads={settings.heads}: the memory's width {memory_size} (encoder.size, "
                "twice for bi) must be a multiple of it"
            )
        self.query_kernel = init.matrix((query_size, memory_size))
        self.memory_kernel = init.matrix((memory_size, memory_size))
        self.value_kernel = init.matrix((memory_size, memory_size))
        self.output_kernel = init.matrix((memory_size, memory_size))

    def _split(self, x: Float[Array, "... K"], kernel: nnx.Param) -> Float[Array, "... N H"]:
        y = project(x, kernel[...], self.dtype)
        return y.reshape(*y.shape[:-1], self.heads, y.shape[-1] // self.heads)

    def keys(self, memory: Memory) -> Float[Array, "B S N H"]:
        """The keys of every head."""
        return self._split(memory.states, self.memory_kernel)

    def values(self, memory: Memory) -> Float[Array, "B S N H"]:
        """The values of every head."""
        return self._split(memory.states, self.value_kernel)

    def __call__(self, query: Array, keys: Array, extra: Extra) -> Float[Array, "B *T N S"]:
        """Scores of every position, by head."""
        steps = "" if query.ndim == 2 else "t"
        heads = self._split(query, self.query_kernel)
        return contract(f"b{steps}nh,bsnh->b{steps}ns", heads, keys, self.dtype) / math.sqrt(keys.shape[-1])

    def context(self, weights: Float[Array, "B *T N S"], values: Float[Array, "B S N H"]) -> Float[Array, "B *T K"]:
        """The joined context vectors of all heads, projected."""
        steps = "" if weights.ndim == 3 else "t"
        heads = contract(f"b{steps}ns,bsnh->b{steps}nh", weights, values, self.dtype)
        return project(heads.reshape(*heads.shape[:-2], -1), self.output_kernel[...], self.dtype)

    def formula(self, query: Array, memory: Array, extra: Extra) -> Float[Array, "N S"]:
        """The plain definition of one step: a row for each head."""
        w, u = (jnp.split(kernel[...].T, self.heads) for kernel in (self.query_kernel, self.memory_kernel))
        rows = [[(w[n] @ query) @ (u[n] @ m) / math.sqrt(len(u[n])) for m in memory] for n in range(self.heads)]
        return jnp.array(rows)
