"""What scripts/accelerator measures: arms, cases and their order. Imports neither JAX nor attn_jax."""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Arm:
    """A setting of the compiler, which holds for a whole process. flags: XLA_FLAGS; gpu: tells nothing elsewhere."""

    name: str
    flags: str = ""
    gpu: bool = True
    torch: bool = False


# JAX's own options replace the whole list of commands: only the flag appends to it, and it is read once a process.
_WHILE = "--xla_gpu_enable_command_buffer=+WHILE"

ARMS = (
    Arm("default", gpu=False),
    Arm("off", "--xla_gpu_enable_command_buffer="),
    Arm("while", _WHILE),
    Arm("while_unrolled", f"{_WHILE} --xla_gpu_command_buffer_unroll_loops=true"),
    Arm("while_no_slices", f"{_WHILE} --xla_gpu_enable_dynamic_slice_fusion=false"),
    Arm("torch", torch=True),
)
"""Command buffers as they are by default; off; with loops; with loops that are unrolled; and with loops without the
fusion of dynamic slices. Then PyTorch's answers to two of the cases."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of all cases: batch B of a run, steps T of source and target, hidden sizes H, numbers of runs R."""

    batch: int = 64
    steps: int = 30
    hidden: tuple[int, ...] = (128, 512)
    runs: tuple[int, ...] = (1, 8, 32)
    types: tuple[str, ...] = ("float32", "bfloat16")
    unrolled: tuple[int, ...] = (5, 30)
    training_steps: int = 50
    loop: int = 2000
    repetitions: int = 7
    seconds: float = 0.03
    """A repetition does as many calls as take about so long."""


FULL = Sizes()
QUICK = Sizes(
    batch=2,
    steps=4,
    hidden=(8,),
    runs=(1, 2),
    types=("float32",),
    unrolled=(2,),
    training_steps=4,
    loop=50,
    repetitions=2,
    seconds=0.001,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program to time.

    kind: `loop`, an iteration of a scan that does next to nothing; `product`, all of an LSTM layer's products with its
    weights at once; `forward` and `gradient`, an LSTM layer with its input projection; `cudnn`, the same gradient by
    cuDNN through JAX; `decoder`, the gradient of a decoder with attention and input feeding; `train`, a step of a
    training program.
    backward: `own` keeps gradients of weights out of the backward loop (`products.scan`), `autodiff` does not.
    """

    kind: str
    hidden: int = 0
    runs: int = 1
    dtype: str = "float32"
    unroll: int = 1
    backward: str = "own"

    def __str__(self) -> str:
        parts = [self.kind]
        if self.hidden:
            parts += [f"H={self.hidden}", f"R={self.runs}", self.dtype]
        if self.kind in ("forward", "gradient") and (self.unroll > 1 or self.backward != "own"):
            parts += [self.backward, f"unroll={self.unroll}"]
        return " ".join(parts)


def cases(sizes: Sizes) -> list[Case]:
    """All cases, what decides most first: what there is no time for is at the end."""

    def every(kind: str, **options: object) -> Iterator[Case]:
        for dtype in sizes.types:
            for hidden in sizes.hidden:
                for runs in sizes.runs:
                    yield Case(kind, hidden, runs, dtype, **options)  # type: ignore[arg-type]

    found = [Case("loop"), *every("train"), *every("product"), *every("gradient")]
    found += [Case("cudnn", hidden) for hidden in sizes.hidden]
    found += [*every("decoder"), *every("gradient", backward="autodiff")]
    few = sizes.runs[:2]
    for unroll in sizes.unrolled:
        found += [case for case in every("gradient", unroll=unroll) if case.runs in few]
    found += every("forward")
    for unroll in sizes.unrolled:
        found += [case for case in every("forward", unroll=unroll) if case.runs == 1]
        found += [case for case in every("gradient", unroll=unroll, backward="autodiff") if case.runs == 1]
    return found


def applies(case: Case, arm: Arm) -> bool:
    """Whether the arm can answer the case: PyTorch has a loop in Python and cuDNN, one run at a time."""
    return not arm.torch or (case.kind in ("decoder", "cudnn") and case.runs == 1)
