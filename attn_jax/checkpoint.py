"""Parameters on disk, by Orbax. The only file that imports it."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

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

    Raises UserError where it cannot be written.
    """
    arrays = jax.tree.map(np.asarray, params)
    try:
        check_room(path.parent, arrays)
        _orbax().save(path.absolute(), arrays, overwrite=True)
        (path / CHECKSUMS).write_text(json.dumps(_checksums(path), indent=1), encoding="utf-8")
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"[:200]
        raise UserError(
            f"{path}: the parameters cannot be written ({reason}); once they can, the same command goes on"
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
        raise UserError(f"{path}: the saved parameters are damaged ({type(error).__name__}: {error})"[:300]) from error


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
