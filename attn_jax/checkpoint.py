"""Parameters and states of training on disk, by Orbax. The only file that imports it."""

import copy
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax import processes
from attn_jax.errors import UserError
from attn_jax.shapes import Params, PyTree

CHECKSUMS = "checksums.json"
"""In a directory of parameters: the SHA-256 of every other file, by its path. Orbax notices only some damage."""

MARGIN = 1 << 18
"""Bytes that are wanted beside those of arrays, for all the small files around them."""


def _orbax() -> Any:
    from orbax.checkpoint import v1  # Half a second to import, and needed only when something is saved or restored.

    return v1


def save_parameters(path: Path, params: Params) -> None:
    """Writes one run's parameters, a flat dict {name: array}, to a directory that appears whole or not at all.

    Processes that train as one must all call this: the first one writes, and Orbax makes the others wait. Raises
    UserError where it cannot be written.
    """
    arrays = jax.tree.map(np.asarray, params)
    try:
        if processes.leads():
            check_room(path.parent, arrays)
        _orbax().save(path.absolute(), arrays, overwrite=True)
        if processes.leads():
            (path / CHECKSUMS).write_text(json.dumps(_checksums(path), indent=1), encoding="utf-8")
    except Exception as error:
        raise UserError(
            f"{path}: the parameters cannot be written ({_reason(error)}); once they can, the same command goes on"
        ) from error


def load_parameters(path: Path) -> Params:
    """The parameters that `save_parameters` wrote. Raises UserError if they are missing or damaged."""
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters there")
    try:
        if (path / CHECKSUMS).exists():
            found = _checksums(path)
            for name, digest in json.loads((path / CHECKSUMS).read_text(encoding="utf-8")).items():
                if found.get(name) != digest:
                    raise ValueError(f"{name} was changed or removed")
        return _orbax().load(path.absolute())
    except Exception as error:
        raise UserError(f"{path}: the saved parameters are damaged ({_reason(error)})") from error


def check_room(folder: Path, tree: PyTree) -> None:
    """Raises OSError if there is no room for so many arrays: it is taken, and given back at once.

    Orbax writes many files at a time, and where that fails leaves tracebacks on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # macOS lacks it
            os.posix_fallocate(file.fileno(), 0, MARGIN + sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))


def _checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of every file of a directory, by its path, but of the file that keeps them."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / CHECKSUMS)
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Checkpoints:
    """The checkpoints of a program, by step: written beside training, each whole or not at all, the newest few kept.

    directory: theirs alone. keep: how many. What a killed process left half written is removed.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory, self.keep = directory, keep
        self._opened: Any = None

    def _manager(self) -> Any:
        if self._opened is None:
            training = _orbax().training
            try:
                self._opened = training.Checkpointer(
                    self.directory.absolute(),
                    preservation_policy=training.preservation_policies.LatestN(self.keep),
                    cleanup_tmp_directories=True,
                )
            except Exception as error:
                raise UserError(f"{self.directory}: cannot hold checkpoints ({_reason(error)})") from error
        return self._opened

    def save(self, step: int, tree: PyTree, about: dict[str, Any]) -> None:
        """Begins to write arrays and what is to be known about them (JSON); waits only for an earlier write to end.

        Raises UserError if that or this one fails.
        """
        # Written while training goes on, which changes what it is told about and gives its own buffers away.
        copied, about = jax.tree.map(jnp.copy, tree), copy.deepcopy(about)
        try:
            if processes.leads():
                check_room(self.directory.parent, tree)
            self._manager().save_async(
                # One that is there already could not be read.
                step,
                copied,
                force=True,
                overwrite=True,
                custom_metadata=about,
            )
        except Exception as error:
            raise UserError(f"{self.directory}: a checkpoint cannot be written ({_reason(error)})") from error

    def restore(
        self, abstract: Callable[[], PyTree], accepts: Callable[[dict[str, Any]], str]
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and what is known about it; None if there is none.

        abstract: makes the shapes, types and shardings to restore. accepts: what is known -> why the
        checkpoint does not belong here, or nothing. One that cannot be read is named on stderr. Raises UserError if
        none of those that are there can be read, or if one belongs elsewhere.
        """
        if not self.directory.is_dir():
            return None
        steps = sorted((one.step for one in self._manager().checkpoints), reverse=True)
        for step in steps:
            try:
                about = self._manager().metadata(step).custom_metadata
                if not isinstance(about, dict):
                    raise ValueError("it says nothing about itself")
                refused = accepts(about)
                tree = None if refused else self._manager().load(step, abstract())
            except Exception as error:
                print(f"{self.directory / str(step)}: this checkpoint is damaged ({_reason(error)})", file=sys.stderr)
                continue
            if refused:
                raise UserError(f"{self.directory / str(step)}: {refused}; remove the directory to begin anew")
            return tree, about
        if steps:
            raise UserError(
                f"{self.directory}: none of the checkpoints can be read; remove the directory to begin the program anew"
            )
        return None

    def close(self) -> None:
        """Waits until everything is written. Raises UserError if that fails."""
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                opened.close()
            except Exception as error:
                raise UserError(f"{self.directory}: a checkpoint cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
