"""Parameters and states of training on disk, by Orbax. The only file that imports it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.errors import UserError
from attn_jax.shapes import Params, PyTree


def _orbax() -> Any:
    from orbax.checkpoint import v1  # Half a second to import, and needed only when something is saved or restored.

    return v1


def save_parameters(path: Path, params: Params) -> None:
    """Writes one run's parameters, a flat dict {name: array}, to a directory that appears whole or not at all."""
    _orbax().save(path.absolute(), jax.tree.map(np.asarray, params), overwrite=True)


def load_parameters(path: Path) -> Params:
    """The parameters that `save_parameters` wrote. Raises UserError if they are missing or damaged."""
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters there")
    try:
        return _orbax().load(path.absolute())
    except Exception as error:
        raise UserError(f"{path}: the saved parameters are damaged ({_reason(error)})") from error


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
        copied = jax.tree.map(jnp.copy, tree)  # training gives its own buffers away
        try:
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
        self, abstract: Callable[[dict[str, Any]], PyTree], accepts: Callable[[dict[str, Any]], str]
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and what is known about it; None if there is none.

        abstract: what is known -> the shapes, types and shardings to restore. accepts: what is known -> why the
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
                tree = None if refused else self._manager().load(step, abstract(about))
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
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
