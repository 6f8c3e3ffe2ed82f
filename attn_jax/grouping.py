"""How many runs train together as one program.

Together, runs share the cost of a step that does not depend on their number, and small products fill a device better.
Products that fill it anyway gain nothing: then runs together only need more memory, and their results come later.
"""

from collections.abc import Sequence
from typing import NamedTuple

from attn_jax.config import Config

CPU: Sequence[tuple[int, int]] = ((256, 4), (512, 2))
"""Width of the model up to which a CPU gains, and the runs beyond which it gains no more. Wider ones: one run.

On two cores, each a device, a training step of the demo's size (width 128) takes, for each run, 41 ms alone, 26 of two
runs, 27 of four, 28 of eight, 29 of sixteen; of width 256 two to eight gain 1.2 times, sixteen 1.1; of width 512 two
gain 1.2 times, four 1.1, eight nothing (`scripts/benchmark --rows=programs/`). What runs together gain is cores of
their own, and more of them need more memory than caches have. More cores were not measured.
"""

ACCELERATOR = 16
"""On each GPU or TPU that trains different runs; wide models do not fill one either. Not measured."""


class Together(NamedTuple):
    """At most so many runs in a program, and why."""

    runs: int
    why: str


def together(
    config: Config, accelerators: int, asked: int = 0, *, sharded: bool = False, multiple: int = 1
) -> Together:
    """The choice for the runs of a structure.

    accelerators: GPUs or TPUs that train different runs of a program, 0 on a CPU. asked: a choice of the user's, which
    counts, unless it is 0. sharded: whether the study is trained in shards, whose machines must agree and may have
    other accelerators than this one: the configuration alone decides. multiple: of which number of runs a program
    should be, if it can.
    """
    if asked:
        return Together(asked, "as asked for")
    if accelerators and not sharded:
        runs, why = ACCELERATOR * accelerators, f"{accelerators} accelerator(s)"
    else:
        width = width_of(config)
        runs = next((runs for most, runs in CPU if width <= most), 1)
        why = f"width {width} " + ("in a study in shards" if sharded else "on a CPU")
    return Together(max(runs // multiple, 1) * multiple, why)


def width_of(config: Config) -> int:
    """Units of the widest layer, apart from the vocabulary."""
    if config.model == "transformer":
        return max(config.transformer.size, config.transformer.feedforward)
    return max(config.embedding.size, config.encoder.size, config.decoder.size)
