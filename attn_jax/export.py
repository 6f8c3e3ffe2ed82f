"""Models in one file that other programs read too: safetensors, with JSON in its metadata.

The format: https://github.com/huggingface/safetensors. The only file that imports it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attn_jax.errors import UserError
from attn_jax.shapes import Params
from attn_jax.storage import write_bytes

KEY = "attn_jax"
"""The entry of the metadata that holds what is known of the model."""


def write_tensors(path: Path, params: Params, about: Mapping[str, Any]) -> None:
    """Writes a flat dict {name: array} and what is to be known about it (JSON) to a file, whole or not at all.

    Raises UserError where the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.asarray(value, order="C") for name, value in params.items()}
    # One entry alone: of several the order is random, and the same model would give different files.
    write_bytes(path, save(arrays, {KEY: json.dumps(about, ensure_ascii=False)}))


def read_tensors(path: Path) -> tuple[Params, dict[str, Any]]:
    """What `write_tensors` wrote. Raises UserError if the file is missing, damaged, or of another program."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(KEY)
            params = {name: file.get_tensor(name) for name in file.keys()} if text is not None else {}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        # NumPy lacks some of the format's types.
        raise UserError(f"{path}: not a safetensors file that can be read ({error})") from None
    if text is None:
        raise UserError(f"{path}: no model of attn_jax: the metadata of this safetensors file has no '{KEY}'")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the metadata '{KEY}' is not JSON ({error})") from None
    return params, about
