"""What is measured: rows, their contestants, and what is compared with what.

The first word of a contestant is its program: `ours`, `pytorch`, `joeynmt`. `peak` is a matrix product of this
process's libraries, by which FLOPs are judged. A rate is better when it is higher, seconds when they are fewer; a ratio
is always that of the first to the second.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from attn_jax.scores import SCORES

OURS, OURS_16 = "ours float32", "ours bfloat16"
TORCH, TORCH_16 = "pytorch float32", "pytorch bfloat16"
JOEYNMT = "joeynmt float32"
PEAK, PEAK_16 = "peak float32", "peak bfloat16"

SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"embedding.size": 128, "encoder.size": 128, "decoder.size": 256},
    "medium": {"embedding.size": 256, "encoder.size": 256, "decoder.size": 512},
    "large": {"embedding.size": 512, "encoder.size": 512, "decoder.size": 1024},
}
"""Medium is what is called joeynmt's sizes."""

TINY = {"embedding.size": 8, "encoder.size": 8, "decoder.size": 16, "train.buckets": 1}

STEPS = {"small": 40, "medium": 20, "large": 8}
"""Training steps of a repetition."""

BATCH = 64
RUNS = (1, 2, 4, 8, 16, 32)

TOKENS, SENTENCES, FLOPS, SECONDS = "target_tokens/s", "sentences/s", "flops/s", "seconds"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A quantity of one contestant over that of another, or by itself where `to` is empty.

    what: see `ratios.values`. at_least, at_most: what is asked of the median, if anything.
    """

    what: str
    of: str
    to: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    settings: what `prepare` is told, besides what the contestant's name says. count: units of work of a repetition.
    same: work of which all contestants must do equally much. alone: every repetition is a process of its own, timed
    from its start. once: it is not repeated.
    """

    name: str
    settings: Mapping[str, Any]
    contestants: tuple[str, ...]
    compared: tuple[Compared, ...]
    count: int
    same: str = ""
    alone: bool = False
    once: bool = False

    @property
    def kind(self) -> str:
        """What is done."""
        return self.settings["kind"]

    def among(self, pattern: str) -> "Row":
        """The row with those contestants alone in whose names a regular expression is found."""
        return dataclasses.replace(self, contestants=tuple(n for n in self.contestants if re.search(pattern, n)))


def rows(quick: bool = False) -> list[Row]:
    """All rows in their order. quick: very little work, for trying that all of it runs; the figures mean nothing."""
    found = [*_machine(), *_training(quick), _recurrence(quick), _memory(quick), *_decoding(quick), *_programs(quick)]
    return [*found, _start(quick), _lone(quick), _scores(quick), _quality(quick)]


def model(size: str, unit: str, feeding: bool, quick: bool, cell: str = "lstm", **more: Any) -> dict[str, Any]:
    """Settings of a model, by configuration path under `changes`."""
    changes: dict[str, Any] = {
        **(TINY if quick else SIZES[size]),
        "cell": cell,
        "encoder": "bi",
        "score": "general",
        "bridge": "mean",  # of what all contestants have; PyTorch would have to pack sequences for their last states
        "input_feeding": "attentional" if feeding else "none",
        "data.source_unit": unit,
        "data.target_unit": unit,
        "dropout.embedding": 0.0,
        "dropout.readout": 0.0,
        "optim.learning_rate": 1e-3,
        "optim.schedule": "constant",
        "optim.clip_norm": 1.0,
        "train.batch_size": BATCH,
        "train.epochs": 10.0,
    }
    return {"data": "multi30k/en_de", "changes": changes | more}


def _machine() -> Iterator[Row]:
    torch = ("pytorch peak float32", "pytorch peak bfloat16")
    compared = tuple(Compared(FLOPS, name) for name in (PEAK, PEAK_16, *torch))
    yield Row("machine/product", {"kind": "peak"}, (PEAK, PEAK_16, *torch), compared, count=1)


def _training(quick: bool) -> Iterator[Row]:
    grid = [(size, unit, feeding, "lstm") for size in SIZES for unit in ("words", "bpe") for feeding in (True, False)]
    for size, unit, feeding, cell in [*grid, ("medium", "words", True, "gru"), ("medium", "words", False, "gru")]:
        target = (size, unit, cell) == ("medium", "words", "lstm")
        torch_least = (1.5 if feeding else 1.2) if target else None
        compared = [
            Compared(TOKENS, OURS, JOEYNMT, at_least=2.5 if target and feeding else None),
            Compared(TOKENS, OURS_16, JOEYNMT, at_least=3.5 if target and feeding else None),
            Compared(TOKENS, OURS, TORCH, at_least=torch_least),
            Compared(TOKENS, OURS_16, TORCH_16, at_least=1.1 if target else None),
            Compared(FLOPS, OURS, PEAK),
            Compared(FLOPS, OURS_16, PEAK_16),
            Compared("padding", OURS, at_most=0.1 if target else None),
            Compared("padding", TORCH),
            Compared("padding", JOEYNMT),
            Compared("peak_bytes", OURS, TORCH),
        ]
        name = "/".join(
            ["train", size, unit, "feeding" if feeding else "no_feeding", *(["gru"] if cell == "gru" else [])]
        )
        contestants = (OURS, OURS_16, TORCH, TORCH_16, JOEYNMT, PEAK, PEAK_16)
        settings = {"kind": "train", **model(size, unit, feeding, quick, cell)}
        yield Row(name, settings, contestants, tuple(compared), 2 if quick else STEPS[size], same="target_tokens")


def _recurrence(quick: bool) -> Row:
    settings = {"kind": "recurrent", "size": 32 if quick else 512, "batch": BATCH, "steps": 50}
    compared = (
        Compared(FLOPS, OURS, PEAK, at_least=0.45),
        Compared(FLOPS, OURS_16, PEAK_16),
        Compared("steps/s", OURS, TORCH),
        Compared("steps/s", OURS_16, TORCH_16),
    )
    return Row("recurrent/512", settings, (OURS, OURS_16, TORCH, TORCH_16, PEAK, PEAK_16), compared, 5, same="steps")


def _memory(quick: bool) -> Row:
    sizes = {"symbols": 320 if quick else 32_000, "length": 50}
    settings = {"kind": "train", **model("medium", "words", True, quick), "data": "numbers", **sizes}
    compared = (
        Compared("peak_bytes", OURS, TORCH, at_most=0.5),
        Compared("peak_bytes", OURS_16, TORCH_16),
        Compared(TOKENS, OURS, TORCH),
    )
    return Row("memory/32k", settings, (OURS, OURS_16, TORCH, TORCH_16), compared, count=2, same="target_tokens")


def _quality(quick: bool) -> Row:
    """Seconds from a command to what joeynmt's model had reached after nine epochs."""
    learning = {
        # Unscaled products (`general`) saturate the softmax early.
        "score": "additive",
        "bridge": "dense",
        "cell.forget_bias": 1.0,
        "dropout.embedding": 0.3,
        "dropout.readout": 0.3,
        "optim.learning_rate": 2e-3,
        "optim.schedule": "cosine",
        "optim.warmup_share": 0.05,
        "train.epochs": 1.0 if quick else 8.0,
        "decode": "beam",
        "decode.beam_size": 5,
    }
    settings = {"kind": "quality", **model("medium", "words", True, quick, **learning)}
    compared = (
        Compared("seconds_to_quality", OURS_16, JOEYNMT, at_most=0.4),
        Compared("dev_bleu", OURS_16, at_least=32.9),
        Compared("test_bleu", OURS_16, at_least=35.9),
    )
    return Row("quality", settings, (OURS_16, JOEYNMT), compared, count=20, once=True)


def _decoding(quick: bool) -> Iterator[Row]:
    # One bridge that all three have. The model is trained until its outputs differ as real ones do: after one epoch it
    # says the same of most pictures.
    fast = {"bridge": "zero", "optim.learning_rate": 2e-3}
    learnt = model("medium", "words", True, quick, **fast) | {"train_steps": 10 if quick else 1350}
    for search in ("greedy", "beam"):
        settings = {"kind": "decode", **learnt, "search": search, "beam_size": 5, "batch": BATCH}
        compared = [
            Compared(SENTENCES, OURS, JOEYNMT, at_least=5.0 if search == "beam" else None),
            Compared(SENTENCES, OURS_16, JOEYNMT, at_least=5.0 if search == "beam" else None),
            Compared(SENTENCES, OURS, TORCH),
            Compared(SENTENCES, OURS_16, TORCH_16),
            # Speeds are comparable where outputs are about equally long.
            Compared("symbols/sentence", OURS, TORCH),
            Compared("symbols/sentence", OURS, JOEYNMT, at_most=1.1),
            Compared("symbols/sentence", JOEYNMT, OURS, at_most=1.1),
        ]
        contestants = (OURS, OURS_16, TORCH, TORCH_16, JOEYNMT)
        yield Row(f"decode/{search}", settings, contestants, tuple(compared), 64 if quick else 1000, same="sentences")


def _demo(quick: bool) -> dict[str, Any]:
    """The configuration of scripts/demo with attention."""
    return {"data": "scan/simple", "changes": {"score": "dot", "train.steps": 20 if quick else 1000}}


def _programs(quick: bool) -> Iterator[Row]:
    """What it gains to train runs together, by their size."""
    for size, most in (("demo", 32), ("small", 16), ("medium", 8)):
        names = tuple(f"ours x{runs}" for runs in RUNS if runs <= (2 if quick else most))
        compared = tuple(Compared("run_steps/s", name, names[0]) for name in names[1:])
        settings = _demo(quick) if size == "demo" else model(size, "words", True, quick)
        settings["changes"] = {**settings["changes"], "train.buckets": 1}
        count = 2 if quick else {"demo": 50, "small": 4, "medium": 2}[size]
        yield Row(f"programs/{size}", {"kind": "train", **settings}, names, compared, count)


def _start(quick: bool) -> Row:
    names = ("ours cold", "ours warm", "pytorch float32", "joeynmt float32")
    compared = (
        *(Compared(SECONDS, "ours cold", other) for other in names[1:]),
        *(Compared(SECONDS, "ours warm", other) for other in names[2:]),
    )
    return Row(
        "start", {"kind": "train", **model("medium", "words", True, quick)}, names, compared, count=1, alone=True
    )


def _lone(quick: bool) -> Row:
    names = ("ours x16 cold", "ours x1 cold", "ours x16 warm", "ours x1 warm")
    compared = (
        Compared("seconds/run", names[0], names[1], at_most=0.6),
        Compared("seconds/run", names[2], names[3]),
        Compared("seconds/run", names[0], names[3]),
    )
    return Row("programs/alone", {"kind": "study", **_demo(quick)}, names, compared, count=1, alone=True)


def _scores(quick: bool) -> Row:
    names = tuple(f"ours {name}" for name in SCORES)
    settings = {"kind": "train", **model("medium", "words", False, quick)}
    settings["changes"] = {**settings["changes"], "train.buckets": 1}  # or there would be minutes of compilation
    compared = tuple(Compared(TOKENS, name, "ours general") for name in names if name != "ours general")
    return Row("scores", settings, names, compared, count=2 if quick else 10, same="target_tokens")
