"""One program as a unit of work that any process can do: "run this program into this directory".

`perform` is what every launcher calls, in the study's own process or in another one. It may be called again at any
time, by several processes at once: what is done is not done again, what was begun goes on from its checkpoint, and of
processes that want the same runs one trains them.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Self

import jax

from attn_jax import config as configs
from attn_jax import data, extensions, processes, program, results, storage
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, encode
from attn_jax.data.datasets import fingerprint
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.grouping import Together
from attn_jax.program import Progress
from attn_jax.progression import SAVING, Saving
from attn_jax.results import Output


@dataclasses.dataclass(frozen=True)
class Source:
    """Where data sets come from, in words that another process understands: the arguments of `data.load`.

    files are parallel_text's alone, and manual_dir is all others'. tests: without them a data set has no split but
    train and dev, and a fingerprint of its own.
    """

    manual_dir: str | None = None
    data_dir: str | None = None
    files: Mapping[str, Sequence[str]] | None = None
    tests: bool = True

    def __call__(self, name: str) -> data.Dataset:
        """The data set of that name. Raises UserError."""
        own = name == "parallel_text"
        place: dict[str, Any] = {"files": self.files} if own else {"manual_dir": self.manual_dir}
        found = data.load(name, data_dir=self.data_dir, **place)
        return found if self.tests else without_tests(found)

    def absolute(self) -> "Source":
        """The same for a process in another working directory."""

        def one(path: str) -> str:
            return os.path.abspath(os.path.expanduser(path))

        def all_of(paths: str | Sequence[str]) -> list[str]:
            return [one(path) for path in ([paths] if isinstance(paths, str) else paths)]

        files = self.files and {split: all_of(paths) for split, paths in self.files.items()}
        manual_dir, data_dir = (path and one(path) for path in (self.manual_dir, self.data_dir))
        return Source(manual_dir, data_dir, files, self.tests)


def without_tests(whole: data.Dataset) -> data.Dataset:
    """The data set with no split but train and dev, under a fingerprint of its own: nothing can look at test."""
    splits = {split: examples for split, examples in whole.splits.items() if split in ("train", "dev")}
    return dataclasses.replace(whole, splits=splits, fingerprint=fingerprint(splits))


class Corpora:
    """Data sets and their encodings, each loaded once. load: a `Source` where other processes are to load them too."""

    def __init__(self, load: Callable[[str], data.Dataset]):
        self.load = load
        self._datasets: dict[str, data.Dataset] = {}
        self._encoded: dict[configs.Data, Corpus] = {}

    def dataset(self, name: str) -> data.Dataset:
        """The data set of that name."""
        if name not in self._datasets:
            self._datasets[name] = self.load(name)
        return self._datasets[name]

    def corpus(self, config: Config) -> Corpus:
        """The data of a run."""
        if config.data not in self._encoded:
            self._encoded[config.data] = encode(self.dataset(config.data.dataset), config)
        return self._encoded[config.data]

    def without_tests(self) -> "Corpora":
        """The same data without test splits; other processes can load it if they can load the whole."""
        if isinstance(self.load, Source):
            return Corpora(dataclasses.replace(self.load, tests=False))
        return Corpora(lambda name: without_tests(self.dataset(name)))


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to be run into a directory. members: its runs in their order, by run id. together: why so many."""

    out: str
    members: Mapping[str, Config]
    saving: Saving = SAVING
    mesh: MeshShape | None = None
    log_to: tuple[str, ...] = ()
    together: Together | None = None

    @property
    def program(self) -> str:
        """The program's id."""
        return results.program_id(list(self.members))

    def to_json(self) -> dict[str, Any]:
        """All that another process needs, but for the data, see `Source`, and the files to load."""
        return {
            "out": os.path.abspath(self.out),
            "members": {run_id: configs.to_dict(member) for run_id, member in self.members.items()},
            "saving": dataclasses.asdict(self.saving),
            "mesh": self.mesh,
            "log_to": self.log_to,
            "together": self.together,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The job that `to_json` wrote. Raises UserError where a member is not known here."""
        return cls(
            out=value["out"],
            members={run_id: configs.from_dict(member) for run_id, member in value["members"].items()},
            saving=Saving(**value["saving"]),
            mesh=None if value["mesh"] is None else MeshShape(*value["mesh"]),
            log_to=tuple(value["log_to"]),
            together=None if value["together"] is None else Together(*value["together"]),
        )


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a process that performs jobs must have in place. load: files as `--load` takes them, absolute."""

    source: Source
    load: tuple[str, ...] = ()

    @classmethod
    def here(cls, corpora: Corpora) -> Self:
        """The setting of this process, for another one. Raises UserError if the data cannot be told."""
        if not isinstance(corpora.load, Source):
            raise UserError("data that is made in this process cannot be had in another one: give study.Source")
        return cls(corpora.load.absolute(), tuple(extensions.PATHS))

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The setting that `to_json` wrote."""
        return cls(Source(**value["source"]), tuple(value["load"]))

    def enter(self) -> Corpora:
        """Loads the files, and gives the data. Raises UserError."""
        for path in self.load:
            extensions.load(path)
        return Corpora(self.source)


DONE, TAKEN = "done", "taken"
"""What became of a job: its runs have results; another process has some of them in hand, and nothing was done."""


def perform(job: Job, corpora: Corpora, progress: Progress) -> str:
    """Runs a program into its directory: DONE or TAKEN.

    The program is this process's own meanwhile, by a lock of the operating system that ends with the process. Its
    members are written down when it first starts. Processes that train as one must all call this. Raises UserError,
    and Interrupted, with a checkpoint written, when a signal asks to stop.
    """
    ids = list(job.members)
    with contextlib.ExitStack() as stack:
        output = Output(job.out, job.log_to)

        def take() -> str:
            with output.alone():
                if all(map(output.done, ids)):
                    return DONE
                claim = _claim(output, job.program, ids, job.together)
            if claim is None:
                return TAKEN
            stack.enter_context(claim)
            _tell_taken_up(output, job.program, ids)
            return "to do"

        found = processes.decided(take)
        if found in (DONE, TAKEN):
            return found
        members = list(job.members.values())
        corpus = corpora.corpus(members[0])
        if [configs.run_id(member, corpus.fingerprint) for member in members] != ids:
            raise UserError(f"{corpus.dataset.info.name}: the data of this process is not that of the study")
        with _told_of_memory(job.program, ids, output):
            program.train(members, corpus, output, job.program, progress, job.saving, job.mesh)
        assert not processes.leads() or all(map(output.done, ids)), "a program leaves no run without a result"
    return DONE


def _claim(output: Output, name: str, members: Sequence[str], together: Together | None) -> IO[bytes] | None:
    """The lock of a program, which is written down; None if another process has it, or one that lacks the same runs.

    To be called while alone: the others' claims are taken and given back one at a time.
    """
    recorded = output.programs()
    missing = {run_id for run_id in members if not output.done(run_id)}
    for other, theirs in recorded.items():
        if other != name and missing & set(theirs):
            claim = output.claim(other)
            if claim is None:
                return None
            claim.close()
    claim = output.claim(name)
    if claim is not None and name not in recorded:
        most = {"together": together._asdict()} if together else {}
        storage.write_json(output.program(name) / "program.json", {"members": list(members)} | most)
    return claim


def _tell_taken_up(output: Output, name: str, members: Sequence[str]) -> None:
    done = sum(map(output.done, members))
    if done:
        text = f"program {name} was begun before and is trained whole, {len(members)} runs; the results"
        print(f"{text} of {done} of them are there already and are not touched", file=sys.stderr, flush=True)


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
