"""Results on disk: OUT/runs/<run id>/ and OUT/programs/<program id>/. `result.json`, written last, means done."""

import collections
import contextlib
import json
import math
import os
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from attn_jax import config as configs
from attn_jax import trackers
from attn_jax.config import Config
from attn_jax.data.reading import words
from attn_jax.errors import UserError
from attn_jax.events import Events
from attn_jax.storage import (
    AGAIN,
    Kinds,
    check,
    locked,
    read_json,
    read_lines,
    remove_leftovers,
    write_json,
    write_text,
    writing,
)

NUMBER = float | int | None

NOT_FINITE = "loss or gradient was not finite"
"""Why a run stopped that failed, in `stopped.reason` of its result; every other reason is early stopping."""

CONFIG: Kinds = {"data.dataset": str, "score.name": str, "cell.name": str, "seed": int}
DATA: Kinds = {"name": str, "fingerprint": str}
RESULT: Kinds = {
    "run_id": str,
    "dataset.name": str,
    "dataset.fingerprint": str,
    "dataset.metric": str,
    "dataset.sizes": dict[str, int],
    "metrics": dict[str, dict[str, float | int | None]],
    "signatures": dict[str, str],
    "selected_step": int,
    "steps": int,
    "parameters": int,
    "stopped": dict | None,
    "versions": dict[str, str],
    "git": str,
}
PROGRAM: Kinds = {"members": list[str]}
TIMING: Kinds = {"runs": int, "target_tokens_per_second": NUMBER}
TIMES: Kinds = dict.fromkeys(
    (
        *("steps", "compile_seconds", "train_seconds", "steps_per_second", "padding", "masked_work"),
        *("compilations", "cached_compilations", "bytes", "devices"),
    ),
    NUMBER,
)
"""What else may be in a timing."""

MAP: Kinds = {
    "source": list[str],
    "target": list[str],
    "weights": list[list[float | int]] | list[list[list[float | int]]],
}
"""Attention on an example: weights [T][S], of a score with heads [N][T][S]."""

WORDS: Kinds = {"name": str, "target_words": dict[str, int]}
"""What is kept of a data set, by its fingerprint: how often each word stands in the targets of its training split."""

STUDY: Kinds = {
    "titles": list[str],
    "commands": list[str],
    "reference": list,
    "runs": list[str],
    "tuning": list,
    "data": dict[str, str],
}
TUNING: Kinds = {
    "variant": dict,
    "data": str,
    "metric": str,
    "fields": dict[str, list],
    "choices": list[dict],
    "chosen": dict | None,
    "runs": list[str],
}
CHOICE: Kinds = {"values": dict, "runs": list[str]}
FIGURE: Kinds = {"variant": dict, "metric": str, "value": float | int}


def read_result(path: Path) -> dict[str, Any]:
    """A `result.json`. Raises UserError if it is damaged."""
    result = read_json(path, RESULT)
    if result["stopped"] is not None:
        check(result["stopped"], {"step": int, "reason": str}, f"{path}: stopped")
    if "checksum" in result and result != sealed(result):
        raise UserError(f"{path}: was changed after it was written (its checksum differs); {AGAIN}")
    return result


def sealed(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the checksum of what else is in it."""
    rest = {name: value for name, value in result.items() if name != "checksum"}
    return {**rest, "checksum": configs.digest(rest)}


class Stored(typing.NamedTuple):
    """What a run's directory says: its configuration, the fingerprint of its data, and its result once it is done."""

    config: dict[str, Any]
    fingerprint: str
    result: dict[str, Any] | None


def read_run(folder: Path, run_id: str = "") -> Stored:
    """The files of a run. run_id: what it must be; empty: a copy under another name, with a result that tells.

    The id is a hash of configuration and data. Raises UserError if the files are damaged, or do not give the id: a
    result whose configuration was edited would tell of another run.
    """
    config, path = read_json(folder / "config.json", CONFIG), folder / "result.json"
    result = read_result(path) if path.exists() else None
    if result is not None:
        fingerprint = result["dataset"]["fingerprint"]
    elif (path := folder / "data.json").exists():
        fingerprint = read_json(path, DATA)["fingerprint"]
    else:
        return Stored(config, "unknown", None)
    run_id = run_id or (result["run_id"] if result is not None else folder.name)
    if configs.digest([config, fingerprint]) != run_id or (result is not None and result["run_id"] != run_id):
        raise UserError(
            f"{folder / 'config.json'}: with the data that {path.name} names this is not the configuration of run "
            f"{run_id}: one of the two was changed; put it back, or remove the run's directory to have it made again"
        )
    return Stored(config, fingerprint, result)


def read_timing(path: Path) -> dict[str, Any]:
    """`timing.json` of a program. Raises UserError if it is damaged."""
    found = read_json(path, TIMING)
    check(found, {name: kind for name, kind in TIMES.items() if name in found}, str(path))
    if found["runs"] < 1:
        raise UserError(f"{path}: expected 'runs' of at least 1; {AGAIN}")
    return found


def read_study(out: Path) -> dict[str, Any]:
    """`study.json`, what the page tells of the study; nothing without the file. Raises UserError if it is damaged.

    titles, commands: of every call into the directory, the last one last. reference: published figures. runs: ids, in
    the order of the page. tuning: how variants were chosen, see `tuning`. data: the fingerprint that each data set had
    in the last call that used it.
    """
    path = out / "study.json"
    empty: dict[str, Any] = {"titles": [], "commands": [], "reference": [], "runs": [], "tuning": [], "data": {}}
    if not path.exists():
        return empty
    found = empty | read_json(path, {"runs": list})
    check(found, STUDY, str(path))
    for figure in found["reference"]:
        check(figure, FIGURE, f"{path}: reference")
    for entry in found["tuning"]:
        check(entry, TUNING, f"{path}: tuning")
        for choice in entry["choices"]:
            check(choice, CHOICE, f"{path}: tuning: choices")
        fields = entry["fields"].keys()
        if not entry["choices"] or any(choice["values"].keys() != fields for choice in entry["choices"]):
            raise UserError(f"{path}: tuning: expected 'choices' with a value for each of 'fields'; {AGAIN}")
    return found


def tried(tuning: Iterable[Mapping[str, Any]]) -> set[str]:
    """The runs that were trained to choose by, of the entries of `tuning` in a study file: no results of the study."""
    return {run_id for entry in tuning for choice in entry["choices"] for run_id in choice["runs"]}


class Output:
    """An output directory, in which several processes may work. Raises UserError where it cannot be written.

    log_to: names of the `trackers` that get the runs' logs. write: False where it is only looked at; then it need not
    exist.
    """

    def __init__(self, path: str | os.PathLike, log_to: Sequence[str] = (), *, write: bool = True):
        self.path, self.log_to = Path(path), tuple(log_to)
        if not write:
            return
        try:
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            (self.path / "programs").mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"--out={path}: cannot be written ({error.strerror or error})") from None

    def run(self, run_id: str) -> Path:
        """The directory of a run."""
        return self.path / "runs" / run_id

    def program(self, program_id: str) -> Path:
        """The directory of a program."""
        return self.path / "programs" / program_id

    def done(self, run_id: str) -> bool:
        """Whether a run has a result. A result without its configuration says nothing, and does not count."""
        return all((self.run(run_id) / name).exists() for name in ("config.json", "result.json"))

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The result of a finished run; None if it is not finished. Raises UserError as `read_run` does."""
        if not (self.run(run_id) / "config.json").exists():
            return None
        return read_run(self.run(run_id), run_id).result

    def begin(self, run_id: str, config: Config, data: Mapping[str, str], step: int = 0) -> "Log":
        """The directory of a run without a result: name and fingerprint of its data, its configuration, its log.

        step: the log keeps its lines up to that step.
        """
        folder = self.run(run_id)
        with writing(folder):
            (folder / "result.json").unlink(missing_ok=True)  # One that lost its configuration.
            remove_leftovers(folder)
        write_json(folder / "data.json", dict(data))
        write_json(folder / "config.json", configs.to_dict(config))
        flat = configs.flatten(configs.to_dict(config))
        return Log(folder / "metrics.jsonl", step, [trackers.TRACKERS[name](folder, flat) for name in self.log_to])

    def keep_words(self, name: str, fingerprint: str, targets: Iterable[str]) -> None:
        """Writes how often each word stands in the training targets of a data set, once for all of its runs."""
        path = words_path(self.path, fingerprint)
        if not path.exists():
            counts = collections.Counter(word for target in targets for word in words(target))
            value = {"name": name, "target_words": dict(counts.most_common())}
            write_text(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")

    def programs(self) -> dict[str, list[str]]:
        """The members of every program that was ever begun, in their order, by the program's id.

        Raises UserError if one is damaged: the id is a hash of the members.
        """
        found = {}
        for path in sorted((self.path / "programs").glob("*/program.json")):
            found[path.parent.name] = members = read_json(path, PROGRAM)["members"]
            if program_id(members) != path.parent.name:
                raise UserError(
                    f"{path}: these are not the members that program {path.parent.name} began with; {AGAIN}"
                )
        return found

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process decides what to train, nor writes what belongs to the whole directory."""
        lock = locked(self.path / ".lock", wait=True)
        assert lock is not None  # it was waited for
        with lock:
            remove_leftovers(self.path)
            yield

    def claim(self, program_id: str) -> IO[bytes] | None:
        """Makes a program this process's own until the file is closed or the process ends; None if another has it."""
        return locked(self.program(program_id) / ".lock", wait=False)


class Log:
    """A run's `metrics.jsonl`, cut back to a step, and the same numbers as TensorBoard events and to trackers.

    Lines of test splits, which come last, are cut off, too: what goes on is tested anew. step: of the last line.
    """

    def __init__(self, path: Path, step: int = 0, tracked: Sequence[trackers.Tracker] = ()):
        self._path, self._tracked = path, tracked
        lines = read_lines(path, {"step": int}) if step else []
        kept = [line for line in lines if line["step"] <= step and line.get("split") in ("train", "dev")]
        self._count, self.step = len(kept), kept[-1]["step"] if kept else 0
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(path):
            self._file = path.open("a", encoding="utf-8")
            self._events = Events(path.parent / "tensorboard", step)

    def write(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """One line."""
        line = {"step": step, "epoch": round(epoch, 4), "split": split, **{k: _rounded(v) for k, v in values.items()}}
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
            self._events.write(step, split, finite)
        self._count, self.step = self._count + 1, step
        for tracker in self._tracked:
            tracker.write(self._count, step, {f"{split}/{name}": value for name, value in finite.items()})

    def sync(self) -> None:
        """Waits until the lines are on disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):  # what could not be written was told of already
                file.close()
        for tracker in self._tracked:
            tracker.close()


def _rounded(value: float) -> float | None:
    """Seven significant digits; JSON has no NaN or infinity."""
    value = float(value)
    return float(f"{value:.7g}") if value - value == 0 else None


def words_path(out: Path, fingerprint: str) -> Path:
    """The file of `Output.keep_words`."""
    return out / "data" / f"{fingerprint}.json"


def write_predictions(
    path: Path,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[str],
    lengths: Iterable[tuple[int, int]],
) -> None:
    """One JSON line an example. lengths: symbols of source and first reference."""
    lines = [
        json.dumps(
            {"source": s, "references": list(r), "prediction": p, "source_length": ls, "target_length": lt},
            ensure_ascii=False,
        )
        for s, r, p, (ls, lt) in zip(sources, references, predictions, lengths, strict=True)
    ]
    write_text(path, "".join(line + "\n" for line in lines))


def program_id(members: Sequence[str]) -> str:
    """The name of a program: a hash of its members in order."""
    return configs.digest(list(members))
