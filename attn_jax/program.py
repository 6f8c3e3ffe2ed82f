"""The main loop: the runs of one program from their first step to their results."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from attn_jax import config as configs
from attn_jax import evaluation, outcome, results
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.evaluation import Evaluated, Evaluator
from attn_jax.outcome import Outcome
from attn_jax.results import Log, Output
from attn_jax.selection import Selection
from attn_jax.shapes import Array
from attn_jax.training import Steps, Trainer

CHUNK = 100
"""Steps of one dispatch, at most."""

ATTENTION_EXAMPLES = 6
"""Examples of the first test split whose attention is kept."""


class Progress(Protocol):
    """Who is told how training goes."""

    def begin(self, members: Sequence[Config], steps: int) -> None:
        """A program of so many steps starts."""

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done; loss is the mean over runs."""

    def evaluated(self, step: int, metric: str, values: Sequence[float]) -> None:
        """Runs were evaluated on dev."""

    def finish(self, metric: str, values: Sequence[float]) -> None:
        """The program's runs have these test results."""


def train(members: Sequence[Config], corpus: Corpus, output: Output, program: str, progress: Progress) -> None:
    """Trains runs of equal structure together, tests them, and writes their results and the program's timing.

    Of a run that has a result already nothing is written.
    """
    trainer = Trainer(members, corpus)
    config, runs = trainer.config, len(members)
    logs = _begin(members, corpus, output)
    metric = config.train.metric or corpus.dataset.info.metric
    limit = evaluation.max_length(config, corpus)
    seeds = [member.seed for member in members]
    dev = Evaluator(trainer.model, corpus, "dev", max_output=limit, seeds=seeds) if "dev" in corpus.encoded else None
    every: float = trainer.total_steps
    if dev is not None:
        every = min(every, config.train.eval_every or max(1, trainer.plan.steps_per_epoch))
    # Between two evaluations lie `every` steps, which need not be whole, in dispatches of `length`.
    length = math.ceil(every / math.ceil(every / CHUNK))

    states = trainer.start()
    selection = Selection.start(runs, metric, config.train.patience, states.params)
    clock = Clock(trainer)
    progress.begin(members, trainer.total_steps)
    step, evaluations = 0, 0
    while step < trainer.total_steps and selection.going.any():
        boundary = min(trainer.total_steps, math.ceil((evaluations + 1) * every - 1e-6))
        count, going = min(length, boundary - step), selection.going
        with clock.chunk(count, int(going.sum())):
            states, report = trainer.chunk(states, step, count, length)
        step += count
        epoch = step / trainer.plan.steps_per_epoch
        selection.note_failures(np.asarray(states.failed))
        _log_training(logs, going, step, epoch, report)
        progress.advance(step, _mean(report.loss[:, going]), clock.last_tokens_per_second)
        if dev is not None and step == boundary:
            evaluations += 1
            found = dev(states.params, decode=metric not in evaluation.LOSS_METRICS, greedily=True)
            values, going = np.array([one.metrics[metric] for one in found]), selection.going
            for run, log in _of(logs, going):
                log.write(step, epoch, "dev", found[run].metrics)
            selection.update(values, states.params, step)
            states = states._replace(active=jnp.asarray(selection.going))
            progress.evaluated(step, metric, values[going].tolist())
    # A stopped run has kept the parameters of its last good step; one that was never evaluated has none selected.
    selection.take_last(states.params, step, every_run=dev is None or config.train.select == "last")
    for log in logs.values():
        log.close()
    results.write_json(output.program(program) / "timing.json", clock.timing(step))

    outcomes = _test(trainer, corpus, selection, step, dev, limit)
    written = [outcomes[run] for run in logs]
    for one in written:
        outcome.write(output, one, corpus, program)
    own = corpus.dataset.info.metric
    progress.finish(own, [next(iter(one.evaluated.values())).metrics[own] for one in written])


def _begin(members: Sequence[Config], corpus: Corpus, output: Output) -> dict[int, Log]:
    """The logs of the runs that have no result yet, by their places in the program."""
    data = {"name": corpus.dataset.info.name, "fingerprint": corpus.fingerprint}
    ids = [configs.run_id(member, corpus.fingerprint) for member in members]
    return {run: output.begin(ids[run], members[run], data) for run in range(len(ids)) if not output.done(ids[run])}


def _of(logs: Mapping[int, Log], going: np.ndarray) -> list[tuple[int, Log]]:
    """The logs of the runs that go on."""
    return [(run, log) for run, log in logs.items() if going[run]]


def _mean(losses: Array) -> float:
    """The mean of what is finite; NaN where nothing is."""
    finite = np.asarray(losses)[np.isfinite(losses)]
    return float(finite.mean()) if finite.size else float("nan")


def _log_training(logs: Mapping[int, Log], going: np.ndarray, step: int, epoch: float, report: Steps) -> None:
    for run, log in _of(logs, going):
        values = {
            "loss": float(report.loss[:, run].mean()),
            "gradient_norm": float(report.gradient_norm[:, run].mean()),
            "learning_rate": float(report.learning_rate[-1, run]),
        }
        log.write(step, epoch, "train", values)


def _test(
    trainer: Trainer, corpus: Corpus, selection: Selection, step: int, dev: Evaluator | None, limit: int
) -> list[Outcome]:
    """Evaluates the selected parameters of every run on all test splits, then on dev."""
    found: dict[str, list[Evaluated]] = {}
    seeds = [member.seed for member in trainer.members]
    for split in corpus.encoded:
        if split not in ("train", "dev"):
            found[split] = Evaluator(trainer.model, corpus, split, max_output=limit, seeds=seeds)(selection.params)
    first = next(iter(found))
    if dev is not None:
        found["dev"] = dev(selection.params)
    chosen = _representative(corpus, first)
    maps = evaluation.attention_maps(trainer.model, selection.params, corpus, first, chosen, limit, seeds)
    return [
        Outcome(
            config=member,
            params={name: value[run] for name, value in selection.params.items()},
            evaluated={split: evaluated[run] for split, evaluated in found.items()},
            maps=maps[run],
            selected_step=int(selection.step[run]),
            steps=stop["step"] if (stop := selection.stopped[run]) else step,
            stopped=stop,
        )
        for run, member in enumerate(trainer.members)
    ]


def _representative(corpus: Corpus, split: str) -> list[int]:
    """Test examples whose attention is kept: evenly spread over the order by length, the longest tenth left out."""
    order = sorted(range(len(corpus.encoded[split])), key=lambda i: (len(corpus.encoded[split][i][0]), i))
    order = order[: max(1, int(0.9 * len(order)))]
    count = min(ATTENTION_EXAMPLES, len(order))
    return [order[round((k + 0.5) * (len(order) - 1) / count)] for k in range(count)]


class Clock:
    """Time and work of a program's steps. The first dispatch, which compiles, counts apart."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.began = trainer, time.perf_counter()
        pairs = trainer.corpus.encoded["train"]
        # Real target tokens, end-of-sentence included, of one step of all runs; padding does not count.
        mean = sum(len(target) for _, target in pairs) / len(pairs)
        self.tokens = mean * trainer.config.train.batch_size * len(trainer.members)
        self.first, self.first_steps, self.rest, self.rest_steps, self.run_steps = 0.0, 0, 0.0, 0, 0
        self.last_tokens_per_second = 0.0

    def chunk(self, steps: int, going: int) -> "_Stopwatch":
        """Times a block that does `steps` steps while `going` runs go on."""
        return _Stopwatch(self, steps, going)

    def add(self, seconds: float, steps: int, going: int) -> None:
        """Counts a dispatch."""
        if not self.first_steps:
            self.first, self.first_steps = seconds, steps
        else:
            self.rest, self.rest_steps = self.rest + seconds, self.rest_steps + steps
        self.run_steps += steps * going
        self.last_tokens_per_second = self.tokens * steps / seconds

    def timing(self, steps: int) -> dict[str, float | None]:
        """A program's `timing.json`. A lone dispatch tells nothing of speed: its time is mostly that of compiling."""
        seconds = self.rest / self.rest_steps if self.rest_steps else None
        runs = len(self.trainer.members)
        return {
            "runs": runs,
            "steps": steps,
            "train_seconds": time.perf_counter() - self.began,
            "compile_seconds": None if seconds is None else max(0.0, self.first - seconds * self.first_steps),
            "steps_per_second": None if seconds is None else 1 / seconds,
            "target_tokens_per_second": None if seconds is None else self.tokens / seconds,
            "padding": self.trainer.padding,
            "buckets": len(self.trainer.buckets),
            "masked_work": 1 - self.run_steps / max(1, steps * runs),
        }


class _Stopwatch:
    def __init__(self, clock: Clock, steps: int, going: int):
        self.clock, self.steps, self.going = clock, steps, going

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.add(time.perf_counter() - self.start, self.steps, self.going)
