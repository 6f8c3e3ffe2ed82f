"""Windows: which positions a step may attend to, and factors on their weights. Positions s and steps t count from 1."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import config
from attn_jax.layers import Initializer, project
from attn_jax.products import contract
from attn_jax.registry import Registry
from attn_jax.scores import Extra
from attn_jax.shapes import Array, Bool, Float


class Window(nnx.Module):
    """Base of all windows. `width`: D, the half width."""

    name: ClassVar[str]
    uses_width: ClassVar[bool] = True
    """Whether `window.width` matters."""

    def __init__(self, query_size: int, *, settings: config.Window, init: Initializer, dtype: Any = None):
        self.width = settings.width

    def __call__(
        self, query: Float[Array, "B *T Q"], mask: Bool[Array, "B S"], extra: Extra
    ) -> tuple[Bool[Array, "B *T S"], Float[Array, "B *T S"] | None]:
        """Where attention is allowed, and factors on the normalised weights, or None."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    def _near(self, centre: Array, mask: Bool[Array, "B S"]) -> tuple[Array, Array]:
        """For centres [B, (T)]: distances s - centre of every position, and whether it is real and at most D away."""
        positions = jnp.arange(1, mask.shape[1] + 1, dtype=centre.dtype)
        distance = positions.reshape((1,) * centre.ndim + (-1,)) - centre[..., None]
        return distance, _for_steps(mask, centre.ndim + 1) & (jnp.abs(distance) <= self.width)


WINDOWS: Registry[type[Window]] = Registry("window")


def _for_steps(mask: Array, rank: int) -> Array:
    """A mask [B, S] as one for weights of that rank."""
    return mask if rank == 2 else mask[:, None, :]


@WINDOWS.register
class Global(Window):
    """Every position."""

    name = "global"
    uses_width = False

    def __call__(self, query: Array, mask: Array, extra: Extra) -> tuple[Array, Array | None]:
        return _for_steps(mask, query.ndim), None


@WINDOWS.register
class LocalM(Window):
    """|s - t| <= D, normalised inside: monotonic alignment (Luong et al. 2015, section 3.2)."""

    name = "local_m"

    def __call__(self, query: Array, mask: Array, extra: Extra) -> tuple[Array, Array | None]:
        step = extra.step.astype(query.dtype).reshape((1,) * (query.ndim - 1) if extra.step.ndim == 0 else (1, -1))
        centre = jnp.broadcast_to(step, query.shape[:-1])
        return self._near(centre, mask)[1], None


@WINDOWS.register
class LocalP(Window):
    """|s - p_t| <= D with p_t = S sigmoid(v' tanh(W q)), weights times exp(-2 (s - p_t)^2 / D^2), not renormalised.

    Luong et al. 2015, section 3.2, equations 9 and 10; S is the true source length.
    """

    name = "local_p"

    def __init__(self, query_size: int, *, settings: config.Window, init: Initializer, dtype: Any = None):
        super().__init__(query_size, settings=settings, init=init)
        self.kernel, self.v, self.dtype = init.matrix((query_size, query_size)), init.vector(query_size), dtype

    def _fraction(self, query: Array) -> Array:
        steps = "" if query.ndim == 2 else "t"
        hidden = jnp.tanh(project(query, self.kernel[...], self.dtype))
        return jax.nn.sigmoid(contract(f"b{steps}h,h->b{steps}", hidden, self.v[...], self.dtype))

    def _lengths(self, query: Array, extra: Extra) -> Array:
        lengths = extra.lengths.astype(query.dtype)
        return lengths if query.ndim == 2 else lengths[:, None]

    def _gauss(self, distance: Array) -> Array:
        return jnp.exp(-2 * (distance / self.width) ** 2)

    def __call__(self, query: Array, mask: Array, extra: Extra) -> tuple[Array, Array | None]:
        distance, near = self._near(self._lengths(query, extra) * self._fraction(query), mask)
        return near, self._gauss(distance)


@WINDOWS.register
class LocalPReleased(LocalP):
    """As `local_p`, but p_t = 1 + (S - 1) sigmoid(v' tanh(W q)) and the window lies around floor(p_t).

    The variant of the released code of Luong et al. (2015); the factor keeps the real-valued centre.
    """

    name = "local_p_released"

    def __call__(self, query: Array, mask: Array, extra: Extra) -> tuple[Array, Array | None]:
        centre = 1 + (self._lengths(query, extra) - 1) * self._fraction(query)
        distance, _ = self._near(centre, mask)
        return self._near(jnp.floor(centre), mask)[1], self._gauss(distance)
