"""The main loop: the runs of one program from their first step to their results."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from attn_jax import config as configs
from attn_jax import evaluation, outcome, processes, storage
from attn_jax.clock import Clock
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.devices import MeshShape, Placement, fetch
from attn_jax.evaluation import Evaluator
from attn_jax.metrics import LOSS_METRICS
from attn_jax.outcome import Outcome
from attn_jax.progression import SAVING, Position, Saving, Schedule, Vault
from attn_jax.results import Log, Output
from attn_jax.selection import Selection
from attn_jax.shapes import Array
from attn_jax.training import Steps, Trainer

ATTENTION_EXAMPLES = 6
"""Examples of `test`, or of the first split that there is, whose attention is kept."""


class Progress(Protocol):
    """Who is told how training goes."""

    def begin(self, members: Sequence[Config], steps: int, step: int) -> None:
        """A program of so many steps starts, or goes on from one of them."""

    def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Steps were done; loss is the mean over runs."""

    def evaluated(self, step: int, metric: str, values: Sequence[float]) -> None:
        """Runs were evaluated on dev."""

    def finish(self, metric: str, values: Sequence[float]) -> None:
        """The program's runs have these results; metric: its name after that of the split."""


def train(
    members: Sequence[Config],
    corpus: Corpus,
    output: Output,
    program: str,
    progress: Progress,
    saving: Saving = SAVING,
    mesh: MeshShape | None = None,
) -> None:
    """Trains runs of equal structure together, tests them, and writes their results and the program's timing.

    Goes on from the program's newest checkpoint, if it has one. Of a run that has a result already nothing is written.
    mesh: how the program is cut over devices, by default as `devices.fitting` says. Of several processes, which must
    all call this, the first one writes. Raises Interrupted, with a checkpoint written, when a signal asks to stop.
    """
    placement = Placement.of(len(members), members[0].train.batch_size, mesh)
    trainer = Trainer(members, corpus, placement=placement)
    config = trainer.config
    metric = config.train.metric or corpus.dataset.info.metric
    limit = evaluation.max_length(config, corpus)
    seeds, has_dev = [member.seed for member in members], "dev" in corpus.encoded
    evaluator = Evaluator(trainer.model, corpus, max_output=limit, placement=placement, seeds=seeds)
    schedule = Schedule.of(trainer, evaluates=has_dev)
    clock = Clock(trainer)
    vault = Vault(output.program(program), members, trainer, clock, saving)
    now = vault.restore(metric) or Position.first(trainer, metric)
    logs = _begin(members, corpus, output, now.settled) if processes.leads() else {}
    selection = now.selection
    progress.begin(members, trainer.total_steps, now.step)
    with contextlib.ExitStack() as stack:
        for log in logs.values():
            stack.callback(log.close)
        with vault:
            while now.settled < trainer.total_steps and selection.going.any():
                # Between the ends of intervals nothing is decided: where a dispatch ends changes no result.
                end, going = schedule.end(now.settled), selection.going
                while now.step < end:
                    count = min(clock.dispatch, end - now.step)
                    with clock.chunk(count, int(going.sum())):
                        now.states, report = trainer.chunk(now.states, now.step, count, schedule.length)
                    now.step += count
                    now.reports.append(report)
                    progress.advance(now.step, _mean(report.loss[:, going]), clock.last_tokens_per_second)
                    vault.keep(now, logs)
                epoch = end / trainer.plan.steps_per_epoch
                selection.note_failures(fetch(now.states.failed))
                _log_training(logs, going, end, epoch, now.take_reports())
                if has_dev and schedule.evaluates(end):
                    searches = metric not in LOSS_METRICS
                    found = evaluator(now.states.params, "dev", decode=searches, greedily=True)
                    values, going = np.array([one.metrics[metric] for one in found]), selection.going
                    for run, log in _of(logs, going):
                        log.write(end, epoch, "dev", found[run].metrics)
                    selection.update(values, now.states.params, end)
                    now.states = now.states._replace(active=placement.place(selection.going))
                    progress.evaluated(end, metric, values[going].tolist())
                now.settled = end
                vault.keep(now, logs)
        step = now.settled
        # A stopped run has kept the parameters of its last good step; one that was never evaluated has none selected.
        selection.take_last(now.states.params, step, every_run=not has_dev or config.train.select == "last")
        if processes.leads():
            storage.write_json(output.program(program) / "timing.json", clock.timing(step))
        outcomes = _test(trainer, corpus, selection, step, evaluator)
        _log_tests(logs, outcomes, trainer.plan.steps_per_epoch)
    written = [outcomes[run] for run in processes.decided(lambda: list(logs))]
    for one in written:
        outcome.write(output, one, corpus, program)
    vault.remove()
    own = corpus.dataset.info.metric
    split = next(iter(outcomes[0].evaluated))
    progress.finish(f"{split} {own}", [one.evaluated[split].metrics[own] for one in written])


def _begin(members: Sequence[Config], corpus: Corpus, output: Output, step: int) -> dict[int, Log]:
    """The logs of the runs that have no result yet, cut back to a step, by the runs' places in the program."""
    data = {"name": corpus.dataset.info.name, "fingerprint": corpus.fingerprint}
    ids = [configs.run_id(member, corpus.fingerprint) for member in members]
    return {
        run: output.begin(ids[run], members[run], data, step) for run in range(len(ids)) if not output.done(ids[run])
    }


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


def _log_tests(logs: Mapping[int, Log], outcomes: Sequence[Outcome], steps_per_epoch: float) -> None:
    """A line a test split at the last step of each log; selected_step: of the parameters that were tested."""
    for run, log in logs.items():
        for split, evaluated in outcomes[run].evaluated.items():
            if split != "dev":
                values = {**evaluated.metrics, "selected_step": outcomes[run].selected_step}
                log.write(log.step, log.step / steps_per_epoch, split, values)


def _test(trainer: Trainer, corpus: Corpus, selection: Selection, step: int, evaluator: Evaluator) -> list[Outcome]:
    """Evaluates the selected parameters of every run on `test`, on other test splits, then on dev; what there is."""
    named = [split for split in corpus.encoded if split != "train"]
    splits = sorted(named, key=lambda split: (split == "dev", split != "test"))
    found = {split: evaluator(selection.params, split) for split in splits}
    first = next(iter(found))
    chosen = _representative(corpus, first)
    maps = evaluator.attention_maps(selection.params, first, chosen)
    params = fetch(selection.params)
    return [
        Outcome(
            config=member,
            params={name: value[run] for name, value in params.items()},
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
