"""A user's own scores, cells and other parts, from Python files that register them."""

import hashlib
import runpy
import traceback
from pathlib import Path

from attn_jax.errors import UserError

LOADED: dict[str, str] = {}
"""SHA-256 of every file that was loaded, by its name; results keep it."""


PATHS: list[str] = []
"""Where they are, absolute, in the order of loading."""


def load(path: str) -> None:
    """Runs a Python file, once, whose classes enter the tables by `@SCORES.register` and the like.

    Raises UserError, with file and line, if it is missing or fails.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"--load={path}: cannot be read ({error.strerror or error})") from None
    digest = hashlib.sha256(content).hexdigest()
    if LOADED.get(file.name) == digest:
        return
    if file.name in LOADED:
        raise UserError(f"--load={path}: another file named {file.name} is loaded already; give it another name")
    try:
        runpy.run_path(str(file), run_name=file.stem)
    except SyntaxError as error:
        raise UserError(f"--load={path}: line {error.lineno}: {error.msg}") from None
    except UserError as error:
        raise UserError(f"--load={path}: {error}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f"line {lines[-1]}: " if lines else ""
        reason = " ".join(str(error).split())
        raise UserError(f"--load={path}: {where}{type(error).__name__}: {reason}") from None
    LOADED[file.name] = digest
    PATHS.append(str(file.absolute()))
