"""Parameters on disk, by Orbax. The only file that imports it."""

import gc
import logging
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

    Raises UserError where it cannot be written.
    """
    try:
        _orbax().save(path.absolute(), jax.tree.map(np.asarray, params), overwrite=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path}: the parameters cannot be written ({reason}); once they can, go on") from error


def load_parameters(path: Path) -> Params:
    """The parameters that `save_parameters` wrote. Raises UserError if they are missing or damaged."""
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters there")
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return _orbax().load(path.absolute())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
    finally:
        # With the first read that fails the others are given up, and asyncio logs each as soon as it is collected.
        gc.collect()
        logger.setLevel(level)
    raise UserError(f"{path}: the saved parameters are damaged ({reason})")
