"""Optimisers, learning rate schedules and clipping, with every number an argument of the compiled program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from attn_jax.config import Optim
from attn_jax.shapes import Array, Float

Numbers = Mapping[str, Any]
"""The traced numbers of a run by path, see `config.traced`."""


def transformation(optim: Optim, numbers: Numbers) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient by value, then by global norm, and scales it as the optimiser does, without the learning rate.

    Its `update` has an argument `go` besides: where that is false, the state stays as it was.

    optim: its names, and which numbers are zero (off). numbers: the values. The structure of the state depends on
    `optim` alone.
    """

    def number(name: str) -> Any:
        return numbers[f"optim.{name}"]

    parts = []
    if optim.clip_value:
        parts.append(optax.clip(number("clip_value")))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(number("clip_norm")))
    if optim.name == "adam":
        parts.append(_adam(number("beta1"), number("beta2"), number("epsilon")))
    elif optim.name == "rmsprop":
        # As in Torch: the square starts at zero and epsilon is added to its root.
        plain = optax.scale_by_rms(number("rho"), number("epsilon"), initial_scale=0.0, eps_in_sqrt=False)
        parts.append(_gated(plain))
    elif optim.name == "adadelta":
        parts.append(_gated(optax.scale_by_adadelta(number("rho"), number("epsilon"))))
    if optim.weight_decay:
        parts.append(optax.add_decayed_weights(number("weight_decay")))
    # A chain of nothing is refused.
    return optax.with_extra_args_support(optax.chain(*parts) if parts else optax.identity())


def _gated(plain: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    def update(gradients: Any, state: Any, params: Any = None, *, go: Array, **_: Any) -> tuple[Any, Any]:
        updates, new = plain.update(gradients, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(go, new, old), new, state)

    return optax.GradientTransformationExtraArgs(plain.init, update)


def _adam(beta1: Any, beta2: Any, epsilon: Any) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma and Ba 2015, algorithm 1).

    The moments are stored before they are used. Otherwise XLA makes them twice, for the state and for the parameters,
    and keeps the old ones in a copy until then.
    """
    moments = _gated(optax.scale_by_adam(beta1, beta2, epsilon))

    def update(gradients: Any, state: Any, params: Any = None, *, go: Array, **_: Any) -> tuple[Any, Any]:
        new = jax.lax.optimization_barrier(moments.update(gradients, state, params, go=go)[1])
        first = optax.tree.bias_correction(new.mu, beta1, new.count)
        second = optax.tree.bias_correction(new.nu, beta2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), first, second), new

    return optax.GradientTransformationExtraArgs(moments.init, update)


def learning_rate(
    optim: Optim, numbers: Numbers, step: Array, *, steps_per_epoch: float, total_steps: int
) -> Float[Array, ""]:
    """The rate of step number `step` (from 0).

    constant: r. decay: r f^n, n the number of epochs begun when `decay_after` epochs or more were over; halving:
    f = 1/2. warmup: r min(s / w, sqrt(w / s)), s = step + 1, w = `warmup_share` of all steps, at least 1. cosine:
    r min(s / w, 1) (1 + cos(pi s / total)) / 2.
    """
    rate = numbers["optim.learning_rate"]
    dtype = jnp.result_type(rate)
    if optim.schedule in ("decay", "halving"):
        # Divided as integers are: a step at an epoch's boundary belongs to the new epoch, whatever the rounding.
        epoch = jnp.floor((step + 0.5) / steps_per_epoch).astype(dtype)
        factor = numbers["optim.decay_factor"] if optim.schedule == "decay" else 0.5
        return rate * jnp.asarray(factor, dtype) ** jnp.maximum(jnp.floor(epoch - numbers["optim.decay_after"]) + 1, 0)
    s = (step + 1).astype(dtype)
    warmup = jnp.maximum(numbers["optim.warmup_share"] * total_steps, 1)
    if optim.schedule == "warmup":
        return rate * jnp.minimum(s / warmup, jnp.sqrt(warmup / s))
    if optim.schedule == "cosine":
        return rate * jnp.minimum(s / warmup, 1) * (1 + jnp.cos(jnp.pi * jnp.minimum(s / total_steps, 1))) / 2
    return jnp.asarray(rate, dtype)
