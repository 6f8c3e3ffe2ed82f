"""Results on disk: OUT/runs/<run id>/ and OUT/programs/<program id>/. `result.json`, written last, means done."""

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import config as configs
from attn_jax.errors import UserError

PACKAGES = ("attn_jax", "jax", "jaxlib", "flax", "optax", "numpy", "sacrebleu")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it appears whole or not at all, its directories made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); remove it to have it made again") from None


class Output:
    """An output directory. Raises UserError where it cannot be written."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
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

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The result of a finished run; None if it is not finished."""
        path = self.run(run_id) / "result.json"
        return read_json(path) if path.exists() else None

    def unfinished_programs(self) -> list[tuple[str, list[str]]]:
        """Programs, by id and members, with a member that has no result: taken up as they were written down."""
        found = []
        for path in sorted((self.path / "programs").glob("*/program.json")):
            members = read_json(path)["members"]
            if any(self.result(member) is None for member in members):
                found.append((path.parent.name, members))
        return found


class Log:
    """A run's `metrics.jsonl`, begun anew."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def write(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """One line."""
        line = {"step": step, "epoch": round(epoch, 4), "split": split, **{k: _rounded(v) for k, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _rounded(value: float) -> float | None:
    """Seven significant digits; JSON has no NaN or infinity."""
    value = float(value)
    return float(f"{value:.7g}") if value - value == 0 else None


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


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"
    return found


@functools.cache
def git_commit() -> str:
    """The commit of this code, with a plus sign if files differ from it; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def device() -> str:
    """The device that computes, in words."""
    import jax

    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({_processor()})"
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
