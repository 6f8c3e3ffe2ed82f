"""Parameters on disk, by Orbax. The only file that imports it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from attn_jax.errors import UserError
from attn_jax.shapes import Params


def _orbax() -> Any:
    from orbax.checkpoint import v1  # Half a second to import, and needed only when something is saved or restored.

    return v1


def save_parameters(path: Path, params: Params) -> None:
    """Writes one run's parameters, a flat dict {name: array}, to a directory that appears whole or not at all.

    Processes that train as one must all call this: the first one writes, and Orbax makes the others wait.
    """
    _orbax().save(path.absolute(), jax.tree.map(np.asarray, params), overwrite=True)


def load_parameters(path: Path) -> Params:
    """The parameters that `save_parameters` wrote. Raises UserError if they are missing or damaged."""
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters there")
    try:
        return _orbax().load(path.absolute())
    except Exception as error:
        raise UserError(f"{path}: the saved parameters are damaged ({type(error).__name__}: {error})"[:300]) from error
