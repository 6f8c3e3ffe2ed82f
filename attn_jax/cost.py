"""Time and memory of a training step and of greedy decoding, for sequences of given lengths.

What is measured is what training and evaluation do: the program of one training step of one run (loss, gradient,
optimiser), and that of a greedy search, which is made to go on for all T steps. Tokens are random. Programs that are
compared are called in turn, one call of each a round, so that whatever else the machine does meets all alike.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.data.datasets import Dataset, Info
from attn_jax.data.text import EOS, SPECIALS, TextCodec, Vocabulary
from attn_jax.decoding import Decoded
from attn_jax.errors import UserError
from attn_jax.evaluation import searched
from attn_jax.shapes import Array, Params
from attn_jax.training import Steps, Trainer

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with its arguments, and the memory that it needs besides them.

    call: does the work, and returns what comes of it when it is done. temporary: bytes of the buffers of all
    intermediate results, which share places where they do not live at the same time. output: bytes of the results.
    Both are the plan of XLA (`memory_analysis`) and have no noise: they follow from the shapes. Neither counts
    arguments (parameters, optimiser states, tokens) or code. A training step writes its new states over the old ones;
    they are its output.
    """

    call: Callable[[], Any]
    temporary: int
    output: int

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, call: Callable[[], Any]) -> "Program":
        """The program that `call` executes."""
        plan: Any = compiled.memory_analysis()
        return cls(call, plan.temp_size_in_bytes, plan.output_size_in_bytes)

    @property
    def bytes(self) -> int:
        """Temporary and output together."""
        return self.temporary + self.output


class Subject:
    """One configuration, of which every program uses the same parameters and optimiser states.

    vocabulary: symbols V of each side, the special ones included. The batch size B is that of the configuration. Raises
    UserError as `Trainer` does.
    """

    def __init__(self, config: Config, vocabulary: int):
        self.config = configs.override(config, {"train.steps": 1, "train.buckets": 1})
        self.vocabulary = vocabulary
        # They do not depend on lengths.
        self.states = self._trainer(1, 1).start()
        self.params = jax.tree.map(lambda leaf: jnp.array(leaf[0]), self.states.params)

    def _trainer(self, source: int, target: int) -> Trainer:
        return Trainer([self.config], tokens(self.config.train.batch_size, source, target, self.vocabulary))

    def training(self, source: int, target: int) -> Program:
        """One step on sentences of so many symbols, end-of-sentence included in the target's."""
        compiled, (_, *others) = self._trainer(source, target).program(self.states, 0, 1, 1)

        def call() -> Steps:
            # The old states are given away: each call of each program goes on from those that the last one left.
            self.states, steps = jax.block_until_ready(compiled(self.states, *others))
            return steps

        return Program.of(compiled, call)

    def greedy(self, source: int, target: int) -> Program:
        """Greedy search on such sources, in which every output has exactly `target` symbols."""
        trainer = self._trainer(source, target)
        sources = jnp.asarray(trainer.buckets[0].source)
        settings = configs.Decode(name="greedy", min_length=target)
        numbers = jnp.arange(len(sources))

        def run(params: Params, sources: Array) -> Decoded:
            return searched(trainer.model, params, sources, target, settings, None, numbers)

        compiled = jax.jit(run).lower(self.params, sources).compile()

        def call() -> Decoded:
            return jax.block_until_ready(compiled(self.params, sources))

        return Program.of(compiled, call)


def tokens(batch: int, source: int, target: int, vocabulary: int, seed: int = 0) -> Corpus:
    """One batch of random sentences of equal lengths, as a corpus to train on; targets end with end-of-sentence."""
    draw = np.random.default_rng(seed)
    codec = TextCodec("words", Vocabulary(map(str, range(len(SPECIALS), vocabulary))))
    sources, targets = (draw.integers(len(SPECIALS), vocabulary, (batch, n)) for n in (source, target))
    targets[:, -1] = EOS
    pairs = list(zip(sources.tolist(), targets.tolist(), strict=True))
    dataset = Dataset(Info("random tokens", "none", "none", "loss", "none", {}), {}, f"random {seed}")
    return Corpus(dataset, codec, codec, {"train": pairs}, 0)


def check_mappings(share: float = 0.9) -> None:
    """Raises UserError when more than that share of the memory mappings is used that Linux allows a process.

    XLA maps every kernel on its own on CPUs, 200 to 1,500 mappings a program, and the process dies where there are no
    more.
    """
    most, now = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
    with contextlib.suppress(OSError):  # not Linux
        allowed = int(most.read_text())
        with now.open() as lines:
            used = sum(1 for _ in lines)
        if used > share * allowed:
            raise UserError(
                f"too many programs for one process: they take {used:,} of the {allowed:,} memory mappings that the "
                "system allows (vm.max_map_count); compare fewer variants or lengths at a time"
            )


class Limits(NamedTuple):
    """The most that a call may take: seconds, and bytes besides its arguments."""

    seconds: float
    bytes: float


@dataclasses.dataclass
class Grown:
    """Programs by length. ended: why there are none of greater lengths; empty where all are there."""

    programs: dict[int, Program]
    ended: str = ""


def grown(programs: Iterable[tuple[int, Program]], limits: Limits) -> Grown:
    """Takes the programs of rising lengths, calling each once, up to the first one that is above a limit.

    That one is left out, and no longer one is made. What would need too much memory is not called. Raises UserError as
    `check_mappings` does.
    """
    found = Grown({})
    for length, program in programs:
        check_mappings()
        if program.bytes > limits.bytes:
            found.ended = f"{length} needs {program.bytes / 1e9:.2g} GB"
            break
        begun = time.perf_counter()
        program.call()
        seconds = time.perf_counter() - begun
        if seconds > limits.seconds:
            found.ended = f"{length} takes {seconds:.2g} s"
            break
        found.programs[length] = program
    return found


def interleaved(programs: Mapping[Name, Program], rounds: int) -> Iterator[dict[Name, float]]:
    """Seconds of one call of each program, a round at a time."""
    for _ in range(rounds):
        spent = {}
        for name, program in programs.items():
            begun = time.perf_counter()
            program.call()
            spent[name] = time.perf_counter() - begun
        yield spent
