"""A study: variants x seeds, trained as few programs, resumed by their result files, told on one page."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import config as configs
from attn_jax import (
    devices,
    extensions,
    jobs,
    launch,
    planning,
    processes,
    progress,
    provenance,
    report,
    results,
    storage,
    trackers,
)
from attn_jax.config import Config
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError, unknown
from attn_jax.evaluation import max_length
from attn_jax.jobs import Corpora, Job, Setting, Source
from attn_jax.launch import Launcher
from attn_jax.metrics import LOSS_METRICS, OUTPUT_METRICS
from attn_jax.planning import Cut, Shard, Work, following
from attn_jax.pool import Local, Pool
from attn_jax.progress import Silent
from attn_jax.progression import SAVING, Saving
from attn_jax.ray_tasks import Ray, Resources
from attn_jax.results import Output
from attn_jax.sweep import merged
from attn_jax.training import check_sources, steps_of

__all__ = ["METRICS", "Corpora", "Local", "Resources", "Saving", "Shard", "Source", "run"]

METRICS = (*LOSS_METRICS, *OUTPUT_METRICS)
"""What runs can be selected by."""

POLL = 1.0
"""Seconds between two looks at what another process has in hand."""


@dataclasses.dataclass(frozen=True)
class Members:
    """The runs of variants and seeds by their ids, the fingerprints of their data, and how many variants were equal."""

    runs: dict[str, Config]
    fingerprints: dict[str, str]
    dropped: int

    @classmethod
    def of(
        cls, variants: Iterable[Config], seeds: Sequence[int], corpora: Corpora, mesh: MeshShape | None = None
    ) -> "Members":
        """Raises UserError on an illegal variant, on one that does not go with its data, and without seeds."""
        distinct, dropped = merged(variants)
        if mesh is not None:
            for variant in distinct:
                devices.check_program(mesh, mesh.run, variant.train.batch_size)
        if not seeds:
            raise UserError("a study needs at least one seed")
        found = cls({}, {}, dropped)
        for variant in distinct:
            corpus = corpora.corpus(variant)
            steps_of(variant, len(corpus.encoded["train"]) / variant.train.batch_size)
            check_sources(variant, corpus)
            max_length(variant, corpus)
            if variant.train.metric not in ("", *METRICS):
                raise unknown("train.metric", variant.train.metric, METRICS)
            found.fingerprints[variant.data.dataset] = corpus.fingerprint
            for seed in seeds:
                member = configs.override(variant, {"seed": seed})
                found.runs[configs.run_id(member, corpus.fingerprint)] = member
        return found


def run(
    variants: Iterable[Config],
    *,
    seeds: Sequence[int],
    out: str,
    corpora: Corpora,
    title: str = "",
    command: str = "",
    reference: Sequence[Mapping[str, Any]] = (),
    runs_per_program: int = 0,
    saving: Saving = SAVING,
    mesh: MeshShape | None = None,
    tuning: Sequence[Mapping[str, Any]] = (),
    launcher: Local | Resources = Local(),  # noqa: B008
    shard: Shard | None = None,
    log_to: Sequence[str] = (),
) -> Path:
    """Trains every variant with every seed that has no result yet, and writes what `report.build` does.

    Several processes may do so in one directory at a time: each program is trained by one of them, and each waits for
    the runs that another has in hand. reference: published figures to be shown beside ours, [{"dataset", "variant":
    {path: value}, "metric", "value", "source"}]; one without a data set counts for all. saving: when checkpoints are
    written, from which the same call goes on after it was stopped or killed. mesh: how every program is cut over
    devices, by default as `devices.fitting` says. tuning: how variants were chosen, see `tuning`; runs that were tried
    for it are no results, and without results no page is written. launcher: in which processes programs are trained; in
    others than this one `corpora` must have been made from a `Source`. shard: trains only that part of the programs;
    the page is made of what is there. log_to: trackers that get the runs' metrics, see `trackers`. Returns the path of
    the report.

    Processes that train as one (see `processes`) must all call this, with the same arguments and a directory that all
    of them reach; the first one decides and writes. Raises UserError before anything is trained if a variant is
    illegal, and at the end if programs were given up because their processes died again and again.
    """
    members = Members.of(variants, seeds, corpora, mesh)
    runs, dropped = members.runs, members.dropped
    if dropped and processes.leads():
        print(
            f"{dropped} of {dropped + len(runs) // len(seeds)} combinations equal another one and are left out",
            file=sys.stderr,
        )
    if processes.decided(lambda: list(runs)) != list(runs):
        raise UserError(f"process {processes.index()}: its data or its flags are not those of process 0")
    call: dict[str, Any] = {"titles": [title], "commands": [command]}
    call |= {"reference": list(reference), "tuning": list(tuning)}
    call["data"] = members.fingerprints if runs.keys() - results.tried(tuning) else {}
    start = launching(launcher, corpora, mesh)
    trackers.check(log_to)
    mine, cut = planning.part(runs, shard, Cut.of(runs_per_program, mesh, launcher, sharded=shard is not None))

    def begin() -> None:
        # Not before all of the user's choices are known to be sound: a mistake leaves nothing behind.
        output = Output(out)
        with output.alone():
            _write_study(output, list(runs), call)
            # Here, not with the runs: their directories may come from elsewhere, and this is not in them.
            for name, fingerprint in call["data"].items():
                dataset = corpora.dataset(name)
                targets = (example.target for example in dataset.splits["train"])
                output.keep_words(dataset.info.name, fingerprint, targets)
        finished = {run_id: result for run_id in runs if (result := output.result(run_id)) is not None}
        _tell_reused(finished, len(runs))

    def finish() -> None:
        with output.alone():
            # A call that began after this one may have left out runs that had no result yet.
            _write_study(output, list(runs), {})
            lacking = sum(not output.done(run_id) for run_id in runs)
            if lacking and runs.keys() - results.tried(tuning):
                print(
                    f"{lacking} of {len(runs)} runs have no result yet: the table and the page are of the others",
                    file=sys.stderr,
                )
            known = {path.parent.name for path in output.path.glob("runs/*/config.json")}
            if known - results.tried(results.read_study(output.path)["tuning"]):
                report.build(output.path)

    processes.decided(begin)
    output = Output(out)

    def job(members: Sequence[str]) -> Job:
        configured = {member: runs[member] for member in members}
        return Job(out, configured, saving, mesh, tuple(log_to), cut.together(configured[members[0]]))

    if start is None:
        _train_here(mine, corpora, output, cut, job)
        lost = []
    else:
        lost = _train_elsewhere(mine, output, cut, job, start)
    processes.decided(finish)
    if lost:
        raise UserError("; ".join(lost) + "; the same command tries again")
    return output.path / "report.html"


def launching(where: Local | Resources, corpora: Corpora, mesh: MeshShape | None) -> Launcher | None:
    """What runs programs in other processes; None: this process does. Raises UserError if it cannot be used here."""
    if where == Local():
        if mesh is not None:
            devices.check(mesh)  # else this process may have other devices, and must leave them to those it starts
        return None
    if processes.count() > 1:
        raise UserError("--jobs, --launcher: processes that train as one train one program after another; use --shard")
    setting = Setting.here(corpora)
    if isinstance(where, Resources):
        return Ray(setting, where)
    return Pool(where.jobs, setting, spread=mesh is not None)


def _write_study(output: Output, ids: list[str], call: Mapping[str, Any]) -> None:
    """What the page tells about the study. What earlier calls into the same directory finished stays on the page."""
    before = results.read_study(output.path)
    call = {"titles": [], "commands": [], "reference": [], "tuning": [], "data": {}} | dict(call)
    tuning = {_tuned(entry): entry for entry in [*before["tuning"], *call["tuning"]]}
    ids = [run_id for run_id in ids if run_id not in results.tried(tuning.values())]
    # A variant for which something else is chosen now is told with its new runs alone.
    outdated = {
        run_id
        for entry in before["tuning"]
        if tuning[_tuned(entry)]["chosen"] != entry["chosen"]
        for run_id in entry["runs"]
    } - set(ids)
    kept = [run_id for run_id in before["runs"] if run_id in ids or (output.done(run_id) and run_id not in outdated)]
    study = {
        name: [*(text for text in before[name] if text not in call[name]), *filter(None, call[name])]
        for name in ("titles", "commands")
    }
    figures = {_place(figure): figure for figure in [*before["reference"], *call["reference"]]}
    study["reference"] = list(figures.values())
    study["runs"] = [*kept, *(run_id for run_id in ids if run_id not in kept)]
    study["tuning"] = list(tuning.values())
    storage.write_json(output.path / "study.json", study | {"data": before["data"] | call["data"]})


def _tuned(entry: Mapping[str, Any]) -> str:
    """The variant and the data of which an entry of `tuning` tells; a later entry replaces it."""
    return configs.digest([entry["variant"], entry["data"]])


def _place(figure: Mapping[str, Any]) -> str:
    """What a published figure says something about; a later one replaces it."""
    return configs.digest({name: value for name, value in figure.items() if name != "value"})


def _tell_reused(finished: Mapping[str, Mapping[str, Any]], total: int) -> None:
    if not finished:
        return
    print(f"{len(finished)} of {total} runs have results already and are kept", file=sys.stderr)
    now = (provenance.git_commit(), provenance.versions(), extensions.LOADED)
    other = [
        result for result in finished.values() if (result["git"], result["versions"], result.get("loaded", {})) != now
    ]
    if other:
        commits = sorted({result["git"] or "an installed package" for result in other})
        print(
            f"  {len(other)} of them by other versions of code, libraries or loaded files ({', '.join(commits)})",
            file=sys.stderr,
        )


def _train_here(
    runs: Mapping[str, Config], corpora: Corpora, output: Output, cut: Cut, job: Callable[[Sequence[str]], Job]
) -> None:
    """Trains programs, one after another, until every run has a result."""
    trained: set[str] = set()
    leads = processes.leads()
    with progress.board() if leads else contextlib.nullcontext(Silent()) as board:

        def choose() -> list[str] | None:
            work = _wait_for_work(runs, trained, output, cut)
            if work is None:
                return None
            board.total = board.number + work.left
            return work.members

        while (ids := processes.decided(choose)) is not None:
            if jobs.perform(job(ids), corpora, board.program(results.program_id(ids))) == jobs.DONE:
                trained.update(ids)


def _train_elsewhere(
    runs: Mapping[str, Config], output: Output, cut: Cut, job: Callable[[Sequence[str]], Job], launcher: Launcher
) -> list[str]:
    """Has programs trained until every run has a result. What went wrong with those that were given up, a line each."""
    with progress.board(launcher.slots) as board:

        def choose(in_hand: Mapping[str, Sequence[str]], given_up: set[str]) -> tuple[Job | None, int, int]:
            wanted = {run_id: config for run_id, config in runs.items() if run_id not in given_up}
            with output.alone():
                work, elsewhere = following(wanted, set(), output, cut, in_hand)
            return (None, 0, elsewhere) if work is None else (job(work.members), work.left, elsewhere)

        return launch.dispatch(choose, launcher, board)


def _wait_for_work(runs: Mapping[str, Config], trained: set[str], output: Output, cut: Cut) -> Work | None:
    """The next program to train; None when every run has a result."""
    waiting = False
    while True:
        with output.alone():
            work, elsewhere = following(runs, trained, output, cut)
        if work is not None or not elsewhere:
            return work
        if not waiting:
            print(f"waiting for {elsewhere} run(s) that another process trains", file=sys.stderr, flush=True)
        waiting = True
        time.sleep(POLL)
