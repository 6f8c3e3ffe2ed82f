"""Files that appear whole or not at all, and reading what may be damaged, with one line that says where."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import GenericAlias, UnionType
from typing import IO, Any

from attn_jax.errors import UserError

Kinds = Mapping[str, type | UnionType | GenericAlias]
"""What the values at dotted paths of a JSON object must be, e.g. int, float | None, list[str], dict[str, int]."""

UNFINISHED = ".attn_jax-unfinished"
"""How the names of files end that are being written."""

AGAIN = "remove it to have it made again, or put it back"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, naming what is written, where the operating system refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); once it can, the same command goes on") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file as `write_bytes` does, in UTF-8. Raises UserError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that it appears whole or not at all, its directories made as needed. Raises UserError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left half written in a directory in which no other process is at work now."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, kinds: Kinds | None = None) -> Any:
    """A JSON file. Raises UserError if it is missing or damaged, or if a value that `kinds` names is not as it says."""
    value = _parsed(_text(path), str(path))
    if kinds is not None:
        check(value, kinds, str(path))
    return value


def _text(path: Path, remedy: str = AGAIN) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); {remedy}") from None


def _parsed(text: str, where: str, line: int = 0, remedy: str = AGAIN) -> Any:
    """The value of a JSON text. line: its number in a file of many; 0: the text is the whole file."""
    try:
        value = json.loads(text)
        if "\\u" in text:  # Half of a surrogate pair is JSON, but no text that could be written or hashed.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{line or error.lineno}: not JSON ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets thousands deep
        raise UserError(f"{where}:{line or 1}: not JSON that can be read ({error}); {remedy}") from None
    return value


def check(value: Any, kinds: Kinds, where: str) -> None:
    """Raises UserError, naming the place, unless value is an object with such values."""
    absent = object()
    for name, kind in kinds.items():
        found = value
        for key in name.split("."):
            found = found.get(key, absent) if isinstance(found, dict) else absent
        if not _is(found, kind):
            raise UserError(f"{where}: expected '{name}' of type {kind.__name__ if type(kind) is type else kind}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type: a plain one, one of several, or a list or dict of such."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is UnionType:
        return any(_is(value, one) for one in inner)
    if outer is list:
        return isinstance(value, list) and all(_is(one, inner[0]) for one in value)
    if outer is dict:
        return isinstance(value, dict) and all(_is(one, inner[1]) for one in value.values())
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def read_lines(path: Path, kinds: Kinds) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none without the file. Raises UserError naming file and line.

    A last line without its newline is one that a killed process left half written: it is left out.
    """
    if not path.exists():
        return []
    remedy = "remove it to do without it, or put it back"
    *lines, _ = _text(path, remedy).split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        rows.append(_parsed(line, str(path), number, remedy))
        check(rows[-1], kinds, f"{path}:{number}")
    return rows


def locked(path: Path, *, wait: bool) -> IO[bytes] | None:
    """A file, open, with the operating system's exclusive lock on it; None if it is taken and not waited for."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(f"{path}: cannot be locked ({error.strerror or error}): use a file system with locks") from None
    return file
