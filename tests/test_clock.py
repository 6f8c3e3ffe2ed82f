"""What is counted of a program's compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from attn_jax.clock import Clock
from attn_jax.data.corpus import encode
from attn_jax.training import Trainer


def test_compilations_are_counted_once_per_shape_and_those_in_the_cache_apart():
    config = tiny.config()
    trainer = Trainer([config], encode(tiny.dataset(), config))
    clock = Clock(trainer)
    assert set(clock.compilations().values()) == {0}

    def counted(call):
        before = clock.compilations()
        call()
        after = clock.compilations()
        return tuple(after[name] - before[name] for name in ("compilations", "cached_compilations"))

    argument = np.float32(3)
    first, second = (jax.jit(lambda x: jnp.tanh(x) + 0.123) for _ in range(2))
    assert counted(lambda: first(argument))[0] == 1
    assert counted(lambda: first(argument)) == (0, 0)
    assert counted(lambda: second(argument)) == (1, 1), "another function, but the same program"

    states = trainer.start()
    states, _ = trainer.chunk(states, 0, 2, 2)
    assert counted(lambda: trainer.chunk(states, 2, 1, 2)) == (0, 0), "a shape is compiled once"

    resumed = Clock(trainer)
    resumed.resume(clock.to_json())
    assert resumed.compilations() == clock.compilations()
    older = {name: 0 for name in clock.to_json() if "compilations" not in name}
    resumed.resume(older)
    assert set(resumed.compilations().values()) == {0}, "a checkpoint of an older version does not say"
