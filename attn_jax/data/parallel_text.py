"""The user's own text: line-aligned files, or files of `source<TAB>target` lines."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attn_jax.data import reading
from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import read_file
from attn_jax.errors import UserError

REQUIRED = ("train", "test")
RECOMMENDED = {
    "data.source_unit": "bpe",
    "data.target_unit": "bpe",
    "data.bpe_size": 4000,
    "cell": "gru",
    "embedding.size": 256,
    "encoder.name": "bi",
    "encoder.size": 256,
    "decoder.size": 512,
    "dropout.embedding": 0.2,
    "dropout.readout": 0.2,
    "optim.clip_norm": 1.0,
    "train.epochs": 10.0,
}


def recipe(files: Mapping[str, str | Sequence[str]] | None) -> tuple[Recipe, dict[str, str]]:
    """The recipe of the given files, and the SHA-256 of each.

    Args:
        files: for each split a pair of line-aligned files (source, target), or one TSV file; plain or .gz.

    Raises:
        UserError: on missing splits, and on files that cannot be read.
    """
    if not files or any(split not in files for split in REQUIRED):
        raise UserError(
            "parallel_text: give the files of at least the splits train and test, two line-aligned files or "
            "one TSV each"
        )
    paths = {split: [value] if isinstance(value, str) else [*value] for split, value in files.items()}
    for split, given in paths.items():
        if not split.isidentifier() or not split.isascii():
            raise UserError(f"parallel_text: split name '{split}': use letters, digits and underscores")
        if len(given) not in (1, 2) or not all(given):
            raise UserError(f"parallel_text: split {split} has {len(given)} files; give source and target, or one TSV")
    contents = {split: [(_content(path), path) for path in given] for split, given in paths.items()}

    def read() -> dict[str, Sequence[Example]]:
        return {split: _pairs(content) for split, content in contents.items()}

    info = Info(
        name="parallel_text",
        citation="The user's own files.",
        licence="the user's",
        metric="bleu",
        tokenize="13a",
        url="",
        recommended=RECOMMENDED,
    )
    used = {
        f"{split}:{number}": hashlib.sha256(data).hexdigest()
        for split, content in contents.items()
        for number, (data, _) in enumerate(content)
    }
    return Recipe(info, read), used


def _content(path: str) -> bytes:
    return read_file(Path(os.path.expanduser(path)))


def _pairs(content: Sequence[tuple[bytes, str]]) -> list[Example]:
    for data, path in content:
        if not data.strip():
            raise UserError(f"{path}: the file is empty; every split needs at least one pair")
    if len(content) == 1:
        return [pair(*row) for row in reading.columns(*content[0], 2, "source<TAB>target")]
    (source, source_path), (target, target_path) = content
    return reading.parallel(source, source_path, target, target_path)
