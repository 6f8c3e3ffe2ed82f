"""A study: variants x seeds, trained as few programs, resumed by their result files, told on one page."""

import contextlib
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from attn_jax import config as configs
from attn_jax import (
    devices,
    extensions,
    grouping,
    jobs,
    launch,
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
from attn_jax.evaluation import LOSS_METRICS, max_length
from attn_jax.grouping import Together
from attn_jax.jobs import Corpora, Job, Setting, Source
from attn_jax.launch import Launcher, Ray, Resources
from attn_jax.metrics import OUTPUT_METRICS
from attn_jax.pool import Local, Pool
from attn_jax.progress import Silent
from attn_jax.progression import SAVING, Saving
from attn_jax.results import Output
from attn_jax.sweep import groups, merged
from attn_jax.training import check_sources, steps_of

__all__ = ["METRICS", "Corpora", "Cut", "Local", "Resources", "Saving", "Shard", "Source", "run"]

METRICS = (*LOSS_METRICS, *OUTPUT_METRICS)
"""What runs can be selected by."""

POLL = 1.0
"""Seconds between two looks at what another process has in hand."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a study's programs, `index` of `count` from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """What `i/n` says. Raises UserError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--shard={text}: expected i/n, with i from 0 to n - 1")
        return cls(int(index), int(count))

    def of(self, programs: Sequence[list[str]]) -> list[list[str]]:
        """The programs of this part: every n-th by the number of their runs, so that no part has all the large ones."""
        return sorted(programs, key=len, reverse=True)[self.index :: self.count]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How runs are cut into programs.

    size: runs of a program, at most; 0: as `grouping` says, on so many accelerators. parts: no program has runs of two
    of them.
    """

    size: int = 0
    mesh: MeshShape | None = None
    accelerators: int = 0
    sharded: bool = False
    parts: Sequence[Sequence[str]] | None = None

    @classmethod
    def of(cls, size: int, mesh: MeshShape | None, where: Local | Resources, *, sharded: bool) -> "Cut":
        """How a study is cut that is trained there. Raises UserError if the size is negative."""
        if size < 0:
            raise UserError(f"runs_per_program={size}: must be at least 0")
        return cls(size, mesh, _accelerators(where, mesh), sharded)

    def together(self, config: Config) -> Together:
        """The most runs of this structure in a program, and why."""
        return grouping.together(config, self.accelerators, self.size, sharded=self.sharded, multiple=self.unit)

    @property
    def unit(self) -> int:
        """Of which number of runs a program should be."""
        return self.mesh.run if self.mesh else 1


def _accelerators(where: Local | Resources, mesh: MeshShape | None) -> int:
    """The GPUs or TPUs that train different runs of a program."""
    if isinstance(where, Resources):
        found = math.ceil(where.gpus + where.tpus)
    elif where.jobs > 1:
        found = min(1, len(devices.visible_gpus()))
    else:
        found = 0 if jax.default_backend() == "cpu" else jax.device_count()
    return mesh.run if mesh and found else found


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
    if mesh is not None and launcher == Local():
        devices.check(mesh)  # else this process may have other devices, and must leave them to those it starts
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
    mine, cut = _part(runs, shard, Cut.of(runs_per_program, mesh, launcher, sharded=shard is not None))

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
        return None
    if processes.count() > 1:
        raise UserError("--jobs, --launcher: processes that train as one train one program after another; use --shard")
    setting = Setting.here(corpora)
    if isinstance(where, Resources):
        return Ray(setting, where)
    return Pool(where.jobs, setting, spread=mesh is not None)


def _part(runs: Mapping[str, Config], shard: Shard | None, cut: Cut) -> tuple[dict[str, Config], Cut]:
    """The runs of a part of the study, and how they are cut: a function of the study, not of what is done."""
    if shard is None:
        return dict(runs), cut
    programs = list(_plan(runs, {}, set(), cut).values())
    parts = shard.of(programs)
    if processes.leads():
        text = f"shard {shard.index} of {shard.count}: {len(parts)} of {len(programs)} program(s)"
        text += f"; {len(programs) - len(parts)} are left to other shards"
        if len(programs) < shard.count:
            hint = _spread(runs, cut, programs, shard.count)
            text += f"; {shard.count - len(programs)} shard(s) have nothing to do: {hint}"
        print(text, file=sys.stderr, flush=True)
    mine = {member: runs[member] for part in parts for member in part}
    return mine, dataclasses.replace(cut, parts=parts)


def _spread(runs: Mapping[str, Config], cut: Cut, programs: Sequence[list[str]], count: int) -> str:
    """What to do for every one of so many shards to have a program, of which there are fewer."""
    for size in range(max(map(len, programs)) - 1, 0, -1):
        if len(_plan(runs, {}, set(), dataclasses.replace(cut, size=size))) >= count:
            return f"--runs_per_program={size} gives every shard work"
    return f"there are no more than {len(runs)} runs, of which each shard needs one"


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


@dataclasses.dataclass(frozen=True)
class Work:
    """A program to do. left: programs to do, this one included."""

    members: list[str]
    left: int


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
                work, elsewhere = _next(wanted, set(), output, cut, in_hand)
            return (None, 0, elsewhere) if work is None else (job(work.members), work.left, elsewhere)

        return launch.dispatch(choose, launcher, board)


def _wait_for_work(runs: Mapping[str, Config], trained: set[str], output: Output, cut: Cut) -> Work | None:
    """The next program to train; None when every run has a result."""
    waiting = False
    while True:
        with output.alone():
            work, elsewhere = _next(runs, trained, output, cut)
        if work is not None or not elsewhere:
            return work
        if not waiting:
            print(f"waiting for {elsewhere} run(s) that another process trains", file=sys.stderr, flush=True)
        waiting = True
        time.sleep(POLL)


def _next(
    runs: Mapping[str, Config],
    trained: set[str],
    output: Output,
    cut: Cut,
    in_hand: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Work | None, int]:
    """The next program to train; and how many runs without a result other processes have in hand.

    To be called while alone. trained: runs that this call has trained, and does not train again for the sake of another
    program. in_hand: programs that processes of this call have been given, whether or not they have begun.
    """
    in_hand = in_hand or {}
    recorded = output.programs()
    ours = {run_id for members in in_hand.values() for run_id in members}
    free: list[str] = []
    taken: set[str] = set()
    for name, members in recorded.items():
        if name not in in_hand and not all(map(output.done, members)):
            claim = output.claim(name)
            if claim is None:
                taken |= set(members)
            else:
                claim.close()
                free.append(name)
    # Not before the claims: a program that is free now may have been finished a moment ago.
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: recorded[name] for name in free if runs.keys() - trained >= set(recorded[name])}
    plan = _plan(missing, begun, taken | ours, cut)
    if cut.mesh is not None:
        # All of the plan, so that the first program does not train before the second one turns out to be impossible.
        for members in plan.values():
            devices.check_program(cut.mesh, len(members), runs[members[0]].train.batch_size)
    if not plan:
        return None, len(missing.keys() & taken - ours)
    return Work(next(iter(plan.values())), len(plan)), 0


def outlined(runs: Mapping[str, Config], output: Output, cut: Cut) -> dict[str, list[str]]:
    """The programs, by id, that a call would train one after another if no other process were at work."""
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: members for name, members in output.programs().items() if runs.keys() >= set(members)}
    return _plan(missing, begun, set(), cut)


def _plan(
    missing: Mapping[str, Config], begun: Mapping[str, list[str]], taken: set[str], cut: Cut
) -> dict[str, list[str]]:
    """Programs to do, by id: those that were begun before, as they were written down, then the other runs by group.

    taken: runs that other processes have in hand. Of programs that share a run the one that lacks most results is
    taken up; what another lacks besides makes new programs.
    """
    plan: dict[str, list[str]] = {}
    lacking = {name: missing.keys() & set(members) for name, members in begun.items()}
    for name in sorted(begun, key=lambda name: -len(lacking[name])):
        if lacking[name] and taken.isdisjoint(lacking[name]):
            plan[name] = begun[name]
            taken = taken | lacking[name]
    for part in [list(missing)] if cut.parts is None else cut.parts:
        ids = {missing[run_id]: run_id for run_id in part if run_id in missing and run_id not in taken}
        for group in groups(list(ids)):
            # Parts of nearly equal size, in units where the group has whole ones, else in pairs where programs have
            # room for whole ones: two cores share a program of two or four runs evenly, and one of three not at all.
            most = cut.together(group[0]).runs
            unit = cut.unit if len(group) % cut.unit == 0 else 1
            if unit == 1 and most % 2 == 0:
                unit = 2
            units, most = -(-len(group) // unit), max(1, most // unit)
            count = -(-units // most)
            bounds = [-(-k * units // count) * unit for k in range(count + 1)]
            for start, end in itertools.pairwise(bounds):
                members = [ids[config] for config in group[start:end]]
                plan[results.program_id(members)] = members
    return plan
