"""The main loop: the runs of one program from their first step to their results."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import checkpoint, evaluation, results
from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.evaluation import Evaluated, Evaluator
from attn_jax.metrics import higher_is_better, signature
from attn_jax.results import Log, Output
from attn_jax.shapes import Array, Params
from attn_jax.training import States, Trainer

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


@dataclasses.dataclass
class Selection:
    """The parameters to be tested, and when to stop. One entry a run."""

    metric: str
    patience: int
    best: np.ndarray
    step: np.ndarray
    waited: np.ndarray
    stopped: list[dict[str, Any] | None]
    params: Params

    @classmethod
    def start(cls, runs: int, metric: str, patience: int, params: Params) -> "Selection":
        """Nothing evaluated yet."""
        worst = -np.inf if higher_is_better(metric) else np.inf
        zeros = np.zeros(runs, np.int64)
        copied = jax.tree.map(jnp.copy, params)  # training gives its own buffers away
        return cls(metric, patience, np.full(runs, worst), zeros, zeros.copy(), [None] * runs, copied)

    def take(self, chosen: np.ndarray, params: Params, step: int) -> None:
        """Makes the present parameters of the chosen runs the selected ones."""
        if chosen.any():
            mask = jnp.asarray(chosen)

            def pick(new: Array, old: Array) -> Array:
                return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            self.params = jax.jit(lambda new, old: jax.tree.map(pick, new, old))(params, self.params)
            self.step[chosen] = step

    def update(self, values: np.ndarray, params: Params, step: int, active: np.ndarray) -> None:
        """After an evaluation: keeps what is better than before, and stops runs whose patience is over."""
        better = (values > self.best) if higher_is_better(self.metric) else (values < self.best)
        better &= active
        self.best[better] = values[better]
        self.take(better, params, step)
        self.waited = np.where(better, 0, self.waited + active)
        for run in np.flatnonzero(active & (self.waited >= self.patience) if self.patience else []):
            self.stopped[run] = {"reason": f"no better {self.metric} in {self.patience} evaluations", "step": step}

    def failed(self, states: States) -> None:
        """Notes the runs that met numbers that are not finite."""
        for run, step in enumerate(np.asarray(states.failed)):
            if step >= 0 and self.stopped[run] is None:
                self.stopped[run] = {"reason": "loss or gradient was not finite", "step": int(step)}


def train(members: Sequence[Config], corpus: Corpus, output: Output, program: str, progress: Progress) -> None:
    """Trains runs of equal structure together, tests them, and writes their results and the program's timing."""
    began = time.perf_counter()
    trainer = Trainer(members, corpus)
    config, runs = trainer.config, len(members)
    ids = [configs.run_id(member, corpus.fingerprint) for member in members]
    for run_id, member in zip(ids, members, strict=True):
        results.write_json(output.run(run_id) / "config.json", results.describe(member))
    logs = [Log(output.run(run_id) / "metrics.jsonl") for run_id in ids]

    limit = evaluation.max_length(config, corpus)
    has_dev = "dev" in corpus.encoded
    dev = Evaluator(trainer.model, corpus, "dev", max_output=limit) if has_dev else None
    metric = config.train.metric or corpus.dataset.info.metric
    every = config.train.eval_every or max(1, round(trainer.plan.steps_per_epoch))
    length = -(-every // -(-every // CHUNK)) if has_dev else min(CHUNK, trainer.total_steps)

    states = trainer.start()
    selection = Selection.start(runs, metric, config.train.patience, states.params)
    real_tokens = _target_tokens_per_example(trainer) * config.train.batch_size * runs
    progress.begin(members, trainer.total_steps)
    step, seconds, first, done_steps, run_steps = 0, 0.0, None, 0, 0
    while step < trainer.total_steps and bool(np.asarray(states.active).any()):
        boundary = min(trainer.total_steps, (step // every + 1) * every if has_dev else trainer.total_steps)
        count = min(length, boundary - step)
        active = np.asarray(states.active)
        tick = time.perf_counter()
        states, report = trainer.chunk(states, step, count, length)
        elapsed = time.perf_counter() - tick
        if first is None:
            first = elapsed  # compilation included
        else:
            seconds, done_steps = seconds + elapsed, done_steps + count
        step, run_steps = step + count, run_steps + count * int(active.sum())
        epoch = step / trainer.plan.steps_per_epoch
        selection.failed(states)
        for run in np.flatnonzero(active):
            values = {"loss": report.loss[:, run].mean(), "learning_rate": report.learning_rate[-1, run]}
            logs[run].write(step, epoch, "train", values)
        speed = real_tokens * count / elapsed
        progress.advance(step, float(np.nanmean(report.loss[:, active])) if active.any() else np.nan, speed)
        if dev is not None and (step == boundary or step == trainer.total_steps):
            active = np.asarray(states.active)
            found = dev(states.params)
            for run in np.flatnonzero(active):
                logs[run].write(step, epoch, "dev", found[run].metrics)
            values = np.array([_value(f, metric) for f in found])
            selection.update(values, states.params, step, active)
            progress.evaluated(step, metric, values[active].tolist())
            going = np.array([stop is None for stop in selection.stopped])
            states = states._replace(active=states.active & jnp.asarray(going))
    if not has_dev or config.train.select == "last":
        # A failed run keeps the parameters of its last good step.
        last = [stop["step"] if stop else step for stop in selection.stopped]
        selection.take(np.ones(runs, bool), states.params, step)
        selection.step[:] = last
    for log in logs:
        log.close()
    train_seconds = time.perf_counter() - began

    tests = [name for name in corpus.encoded if name not in ("train", "dev")]
    found = {} if dev is None else {"dev": dev(selection.params)}
    for split in tests:
        found[split] = Evaluator(trainer.model, corpus, split, max_output=limit)(selection.params)
    chosen = _representative(corpus, tests[0])
    maps = evaluation.attention_maps(trainer.model, selection.params, corpus, tests[0], chosen, limit)
    timing = {
        "runs": runs,
        "steps": step,
        "train_seconds": train_seconds,
        "compile_seconds": max(0.0, (first or 0.0) - _per_step(seconds, done_steps) * min(length, step)),
        "steps_per_second": 1 / _per_step(seconds, done_steps) if done_steps else step / (first or np.inf),
        "target_tokens_per_second": real_tokens * (done_steps / seconds if done_steps else step / (first or np.inf)),
        "total_seconds": time.perf_counter() - began,
        "padding": trainer.padding,
        "buckets": len(trainer.buckets),
        "programs_compiled": len(trainer.compiled),
        "masked_work": 1 - run_steps / max(1, step * runs),
    }
    results.write_json(output.program(program) / "timing.json", timing)
    for run, run_id in enumerate(ids):
        _write(output, run_id, run, members[run], corpus, found, maps[run], selection, program, step)
    progress.finish(metric, [found[tests[0]][run].metrics[corpus.dataset.info.metric] for run in range(runs)])


def _per_step(seconds: float, steps: int) -> float:
    return seconds / steps if steps else 0.0


def _value(evaluated: Evaluated, metric: str) -> float:
    if metric not in evaluated.metrics:
        raise KeyError(metric)
    return evaluated.metrics[metric]


def _target_tokens_per_example(trainer: Trainer) -> float:
    """Real target tokens, end-of-sentence included, of an average training pair."""
    pairs = trainer.corpus.encoded["train"]
    return sum(len(target) for _, target in pairs) / len(pairs)


def _representative(corpus: Corpus, split: str) -> list[int]:
    """Test examples whose attention is kept: evenly spread over the order by length, the longest tenth left out."""
    order = sorted(range(len(corpus.encoded[split])), key=lambda i: (len(corpus.encoded[split][i][0]), i))
    order = order[: max(1, int(0.9 * len(order)))]
    count = min(ATTENTION_EXAMPLES, len(order))
    return [order[round((k + 0.5) * (len(order) - 1) / count)] for k in range(count)]


def _write(
    output: Output,
    run_id: str,
    run: int,
    member: Config,
    corpus: Corpus,
    found: dict[str, list[Evaluated]],
    maps: list[dict[str, Any]],
    selection: Selection,
    program: str,
    steps: int,
) -> None:
    """One run's files, `result.json` last."""
    folder, info = output.run(run_id), corpus.dataset.info
    params = {name: value[run] for name, value in selection.params.items()}
    for split, evaluated in found.items():
        examples = corpus.dataset.splits[split]
        lengths = [(len(s), len(t) - 1) for s, t in corpus.encoded[split]]
        references = evaluation.references(corpus, split)
        results.write_predictions(
            folder / f"predictions.{split}.jsonl",
            [example.source for example in examples],
            references,
            evaluated[run].predictions,
            lengths,
        )
    if maps:
        results.write_json(folder / "attention.json", {"examples": maps})
    vocabulary = {
        "source": corpus.source.to_json(),
        "target": corpus.target.to_json(),
        "max_length": evaluation.max_length(member, corpus),
    }
    results.write_json(folder / "vocabulary.json", vocabulary)
    checkpoint.save_parameters(folder / "parameters", params)
    options = evaluation.scoring(corpus)
    first_test = next(split for split in found if split != "dev")
    names = evaluation.output_metrics(info.metric)
    test_references = evaluation.references(corpus, first_test)
    stopped = selection.stopped[run]
    results.write_json(
        folder / "result.json",
        {
            "run_id": run_id,
            "dataset": {
                "name": info.name,
                "fingerprint": corpus.fingerprint,
                "sizes": {split: len(examples) for split, examples in corpus.dataset.splits.items()},
                "notes": [*info.notes, *_notes(corpus)],
                "metric": info.metric,
                "citation": info.citation,
                "licence": info.licence,
            },
            "metrics": {split: evaluated[run].metrics for split, evaluated in found.items()},
            "signatures": {name: signature(name, test_references, **options) for name in names},
            "selected_step": int(selection.step[run]),
            "steps": stopped["step"] if stopped else steps,
            "parameters": int(sum(np.prod(value.shape) for value in params.values())),
            "stopped": stopped,
            "program": program,
            "versions": results.versions(),
            "device": results.device(),
            "git": results.git_commit(),
        },
    )


def _notes(corpus: Corpus) -> list[str]:
    notes = [f"vocabulary: {len(corpus.source.vocabulary)} source, {len(corpus.target.vocabulary)} target symbols"]
    if corpus.left_out:
        notes.append(f"{corpus.left_out} training pairs left out by length")
    return notes
