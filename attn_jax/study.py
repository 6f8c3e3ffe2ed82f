"""A study: variants x seeds, trained as few programs, resumed by their result files, told on one page."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from attn_jax import config as configs
from attn_jax import data, devices, extensions, processes, program, report, results
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, encode
from attn_jax.data.datasets import fingerprint
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError, unknown
from attn_jax.evaluation import LOSS_METRICS, max_length
from attn_jax.metrics import OUTPUT_METRICS
from attn_jax.progress import Console, Silent
from attn_jax.progression import SAVING, Saving
from attn_jax.results import Output
from attn_jax.sweep import groups, merged
from attn_jax.training import check_sources, steps_of

METRICS = (*LOSS_METRICS, *OUTPUT_METRICS)
"""What runs can be selected by."""

POLL = 1.0
"""Seconds between two looks at what another process has in hand."""


class Corpora:
    """Data sets and their encodings, each loaded once."""

    def __init__(self, load: Callable[[str], data.Dataset]):
        self._load = load
        self._datasets: dict[str, data.Dataset] = {}
        self._encoded: dict[configs.Data, Corpus] = {}

    def dataset(self, name: str) -> data.Dataset:
        """The data set of that name."""
        if name not in self._datasets:
            self._datasets[name] = self._load(name)
        return self._datasets[name]

    def corpus(self, config: Config) -> Corpus:
        """The data of a run."""
        if config.data not in self._encoded:
            self._encoded[config.data] = encode(self.dataset(config.data.dataset), config)
        return self._encoded[config.data]

    def without_tests(self) -> "Corpora":
        """The same data with no split but train and dev, under fingerprints of their own: nothing can look at test."""

        def load(name: str) -> data.Dataset:
            whole = self.dataset(name)
            splits = {split: examples for split, examples in whole.splits.items() if split in ("train", "dev")}
            return dataclasses.replace(whole, splits=splits, fingerprint=fingerprint(splits))

        return Corpora(load)


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
            devices.check(mesh)
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
    runs_per_program: int = 16,
    saving: Saving = SAVING,
    mesh: MeshShape | None = None,
    tuning: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Trains every variant with every seed that has no result yet, and writes what `report.build` does.

    Several processes may do so in one directory at a time: each program is trained by one of them, and each waits for
    the runs that another has in hand. reference: published figures to be shown beside ours, [{"dataset", "variant":
    {path: value}, "metric", "value", "source"}]; one without a data set counts for all. saving: when checkpoints are
    written, from which the same call goes on after it was stopped or killed. mesh: how every program is cut over
    devices, by default as `devices.fitting` says. tuning: how variants were chosen, see `tuning`; runs that were tried
    for it are no results, and without results no page is written. Returns the path of the report.

    Processes that train as one (see `processes`) must all call this, with the same arguments and a directory that all
    of them reach; the first one decides and writes. Raises UserError before anything is trained if a variant is
    illegal.
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
    call = {"titles": [title], "commands": [command], "reference": list(reference), "tuning": list(tuning)}
    if runs.keys() - results.tried(tuning):
        call["data"] = members.fingerprints

    def begin() -> None:
        # Not before all of the user's choices are known to be sound: a mistake leaves nothing behind.
        output = Output(out)
        with output.alone():
            _write_study(output, list(runs), call)
        finished = {run_id: result for run_id in runs if (result := output.result(run_id)) is not None}
        _tell_reused(finished, len(runs))

    def finish() -> None:
        with output.alone():
            # A call that began after this one may have left out runs that had no result yet.
            _write_study(output, list(runs), {})
            if runs.keys() - results.tried(tuning):
                report.build(output.path)

    processes.decided(begin)
    output = Output(out)
    _train(runs, corpora, output, runs_per_program, saving, mesh)
    processes.decided(finish)
    return output.path / "report.html"


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
    results.write_json(output.path / "study.json", study | {"data": before["data"] | call["data"]})


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
    now = (results.git_commit(), results.versions(), extensions.LOADED)
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
    """A program that this process has claimed. left: programs to do, this one included."""

    program: str
    members: list[str]
    claim: IO[bytes]
    left: int


def _train(
    runs: Mapping[str, Config],
    corpora: Corpora,
    output: Output,
    size: int,
    saving: Saving,
    mesh: MeshShape | None,
) -> None:
    """Trains programs until every run has a result, each in one of the processes that work in the directory."""
    progress = Console(0) if processes.leads() else Silent()
    trained: set[str] = set()
    claims = contextlib.ExitStack()  # of the first process

    def choose() -> list | None:
        work = _wait_for_work(runs, trained, output, size, mesh)
        if work is None:
            return None
        claims.enter_context(work.claim)
        _tell_taken_up(work, output)
        progress.total = progress.number + work.left
        return [work.program, work.members]

    while (choice := processes.decided(choose)) is not None:
        name, ids = choice
        members = [runs[member] for member in ids]
        with claims:
            with _told_of_memory(name, ids, output):
                program.train(members, corpora.corpus(members[0]), output, name, progress, saving, mesh)
            assert not processes.leads() or all(map(output.done, ids)), "a program leaves no run without a result"
        trained.update(ids)


def _wait_for_work(
    runs: Mapping[str, Config], trained: set[str], output: Output, size: int, mesh: MeshShape | None
) -> Work | None:
    """The next program to train; None when every run has a result."""
    waiting = False
    while True:
        with output.alone():
            work, elsewhere = _next(runs, trained, output, size, mesh)
        if work is not None or not elsewhere:
            return work
        if not waiting:
            print(f"waiting for {elsewhere} run(s) that another process trains", file=sys.stderr, flush=True)
        waiting = True
        time.sleep(POLL)


@contextlib.contextmanager
def _told_of_memory(name: str, members: Sequence[str], output: Output) -> Iterator[None]:
    """Raises UserError where memory runs out. A program that has no checkpoint yet may be cut in smaller ones."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text and "ut of memory" not in text:
            raise
        folder = output.program(name)
        if processes.leads() and not (folder / "checkpoints").exists():
            (folder / "program.json").unlink(missing_ok=True)
        runs = len(members)
        lower = f"set --runs_per_program below {runs}, or lower" if runs > 1 else "lower"
        raise UserError(
            f"program {name}: out of memory with {runs} run(s) together; {lower} --batch_size or the model's sizes"
        ) from error


def _next(
    runs: Mapping[str, Config], trained: set[str], output: Output, size: int, mesh: MeshShape | None = None
) -> tuple[Work | None, int]:
    """The next program to train, claimed; and how many runs without a result other processes have in hand.

    trained: runs that this call has trained, and does not train again for the sake of another program.
    """
    recorded = output.programs()
    claims: dict[str, IO[bytes]] = {}
    taken: set[str] = set()
    for name, members in recorded.items():
        if not all(map(output.done, members)):
            claim = output.claim(name)
            if claim is None:
                taken |= set(members)
            else:
                claims[name] = claim
    # Not before the claims: a program that is free now may have been finished a moment ago.
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: recorded[name] for name in claims if runs.keys() - trained >= set(recorded[name])}
    plan = _plan(missing, begun, taken, size)
    if mesh is not None:
        # All of the plan, so that the first program does not train before the second one turns out to be impossible.
        for members in plan.values():
            devices.check_program(mesh, len(members), runs[members[0]].train.batch_size)
    chosen = next(iter(plan), None)
    for name, claim in claims.items():
        if name != chosen:
            claim.close()
    if chosen is None:
        return None, len(missing.keys() & taken)
    claim = claims.get(chosen) or output.claim(chosen)
    assert claim is not None  # nobody else can have begun it
    if chosen not in recorded:
        results.write_json(output.program(chosen) / "program.json", {"members": plan[chosen]})
    return Work(chosen, plan[chosen], claim, len(plan)), 0


def outlined(runs: Mapping[str, Config], output: Output, size: int) -> dict[str, list[str]]:
    """The programs, by id, that a call would train one after another if no other process were at work."""
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: members for name, members in output.programs().items() if runs.keys() >= set(members)}
    return _plan(missing, begun, set(), size)


def _plan(
    missing: Mapping[str, Config], begun: Mapping[str, list[str]], taken: set[str], size: int
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
    ids = {config: run_id for run_id, config in missing.items() if run_id not in taken}
    for group in groups(list(ids)):
        count = -(-len(group) // size)
        for k in range(count):
            # Parts of nearly equal size.
            part = [ids[config] for config in group[k * len(group) // count : (k + 1) * len(group) // count]]
            plan[results.program_id(part)] = part
    return plan


def _tell_taken_up(work: Work, output: Output) -> None:
    done = sum(map(output.done, work.members))
    if done:
        text = f"program {work.program} was begun before and is trained whole, {len(work.members)} runs; the results"
        print(f"{text} of {done} of them are there already and are not touched", file=sys.stderr, flush=True)
