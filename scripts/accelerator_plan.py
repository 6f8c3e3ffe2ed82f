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
    Arm("while_conditional", f"{_WHILE} --xla_gpu_enable_command_buffer=+CONDITIONAL"),
    Arm("torch", torch=True),
)
"""Command buffers as they are by default; off; with loops; with loops that are unrolled; and with loops and branches,
which a program with several buckets has (a list has one sign, so the flag is given twice). Then PyTorch's answers to
two of the cases."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shapes of all cases: batch B of a run, steps T of source and target, hidden sizes H, numbers of runs R."""

    batch: int = 64
    steps: int = 30
    hidden: tuple[int, ...] = (128, 512)
    runs: tuple[int, ...] = (1, 8, 32)
    types: tuple[str, ...] = ("tensorfloat32", "bfloat16")
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
    types=("tensorfloat32",),
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
    dtype: of the operands of products; float32 arrays otherwise. PyTorch and cuDNN take TF32, too.
    backward: `own` keeps gradients of weights out of the backward loop (`products.scan`), `autodiff` does not.
    buckets: of the training program, which then chooses one at each step.
    """

    kind: str
    hidden: int = 0
    runs: int = 1
    dtype: str = "tensorfloat32"
    unroll: int = 1
    backward: str = "own"
    buckets: int = 1

    def __str__(self) -> str:
        parts = [self.kind]
        if self.hidden:
            parts += [f"H={self.hidden}", f"R={self.runs}", self.dtype]
        if self.kind in ("forward", "gradient") and (self.unroll > 1 or self.backward != "own"):
            parts += [self.backward, f"unroll={self.unroll}"]
        if self.buckets > 1:
            parts.append(f"buckets={self.buckets}")
        return " ".join(parts)


def cases(sizes: Sizes) -> list[Case]:
    """All cases. First those of the ratios that are asked for: what there is no time for is at the end."""

    def every(kind: str, **options: object) -> Iterator[Case]:
        for dtype in sizes.types:
            for hidden in sizes.hidden:
                for runs in sizes.runs:
                    yield Case(kind, hidden, runs, dtype, **options)  # type: ignore[arg-type]

    small, most = sizes.hidden[0], sizes.runs[-1]
    found = [Case("train", small), Case("train", small, most)]
    found += [Case(kind, hidden) for kind in ("decoder", "gradient", "cudnn") for hidden in sizes.hidden]
    found += [Case("decoder", hidden, dtype=dtype) for dtype in sizes.types for hidden in sizes.hidden]
    # What a configuration has unless it says otherwise.
    found += [Case("train", small, runs, "float32") for runs in (1, most)]
    found += [Case("gradient", hidden, dtype="float32") for hidden in sizes.hidden]
    found += [Case("train", small, buckets=3), Case("loop"), *every("train"), *every("gradient"), *every("product")]
    found += [*every("decoder"), *every("gradient", backward="autodiff")]
    few = sizes.runs[:2]
    for unroll in sizes.unrolled:
        found += [case for case in every("gradient", unroll=unroll) if case.runs in few]
    found += every("forward")
    for unroll in sizes.unrolled:
        found += [case for case in every("forward", unroll=unroll) if case.runs == 1]
        found += [case for case in every("gradient", unroll=unroll, backward="autodiff") if case.runs == 1]
    return list(dict.fromkeys(found))


def applies(case: Case, arm: Arm) -> bool:
    """Whether the arm is asked: PyTorch has a loop in Python and cuDNN, one run at a time; flags have a few cases."""
    if arm.torch:
        return case.kind in ("decoder", "cudnn") and case.runs == 1
    plain = case.unroll == 1 and case.backward == "own" and case.dtype == "tensorfloat32"
    return not arm.flags or (plain and case.kind in ("loop", "train", "gradient", "decoder"))
