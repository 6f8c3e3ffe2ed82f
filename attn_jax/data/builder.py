"""Prepared data sets on disk: a TFDS builder of text pairs, in ArrayRecord files, without TensorFlow.

A prepared data set is named by a key that hashes what it was made from, so an edited file never meets an old
copy. TFDS writes beside the final place and renames at the end; one process at a time prepares (a lock),
others wait and find it done.
"""

import contextlib
import fcntl
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax.data.datasets import Dataset, Example, Info, fingerprint, validate
from attn_jax.errors import UserError

VERSION = "1.0.0"


def default_data_dir() -> Path:
    """$ATTN_JAX_DATA, or .cache/attn_jax/data in the home directory. Raises UserError without either."""
    given, home = os.environ.get("ATTN_JAX_DATA"), os.path.expanduser("~")
    if not given and home == "~":
        raise UserError("there is no home directory to keep prepared data in: give --data_dir or set ATTN_JAX_DATA")
    return Path(given or os.path.join(home, ".cache", "attn_jax", "data"))


def prepared(info: Info, key: str, read: Callable[[], Mapping[str, Sequence[Example]]], data_dir: Path) -> Dataset:
    """The data set of a key: from `data_dir` if it is there and whole, else made by `read` and kept there.

    Raises:
        UserError: when it must be made and `data_dir` cannot be written, and whatever `read` raises.
    """
    kept = _kept(info, key, data_dir)
    if kept is None:
        _check_writable(data_dir)
        with _lock(data_dir / f".{_slug(info.name)}-{key}.lock"):
            kept = _kept(info, key, data_dir)
            if kept is None:
                splits = read()
                validate(info.name, splits)
                try:
                    _write(info, key, splits, data_dir)
                except (OSError, RuntimeError) as error:  # ArrayRecord's own errors are of the second kind.
                    raise _unwritable(data_dir, error) from None
                kept = _kept(info, key, data_dir)
    if kept is None:
        raise UserError(f"{data_dir}: prepared data cannot be read back; choose another --data_dir")
    return kept


def _builder(info: Info, key: str, splits: Mapping[str, Sequence[Example]], data_dir: Path, mark: str = "") -> Any:
    """The TFDS builder of one data set; `splits` is only needed to write it."""
    import tensorflow_datasets as tfds

    class TextPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Source texts with their accepted targets, one a line; order is kept."""

        name = "text_pairs"
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{info.name} (metric: {info.metric})",
                features=tfds.features.FeaturesDict(
                    {"source": tfds.features.Text(), "references": tfds.features.Text()}
                ),
                homepage=info.url or None,
                citation=info.citation,
                license=info.licence,
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(fingerprint=mark),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
            for number, example in enumerate(splits[split]):
                yield number, {"source": example.source, "references": "\n".join(example.references)}

    config = tfds.core.BuilderConfig(name=f"{_slug(info.name)}-{key}", version=TextPairs.VERSION)
    with quiet():
        return TextPairs(config=config, data_dir=str(data_dir), file_format="array_record")


def _write(info: Info, key: str, splits: Mapping[str, Sequence[Example]], data_dir: Path) -> None:
    folder = _folder(info, key, data_dir)
    if folder.exists():  # Damaged, or it would have been read; what makes the builder would read it again.
        shutil.rmtree(folder)
    for leftover in folder.parent.glob("*incomplete*"):
        shutil.rmtree(leftover, ignore_errors=True)
    builder = _builder(info, key, splits, data_dir, fingerprint(splits))
    with quiet():
        builder.download_and_prepare()


def _kept(info: Info, key: str, data_dir: Path) -> Dataset | None:
    """The data set as it was prepared; None when it is not there or is not what was written."""
    if not (_folder(info, key, data_dir) / "dataset_info.json").is_file():
        return None
    try:
        builder = _builder(info, key, {}, data_dir)
        splits = {split: _examples(builder, split) for split in builder.info.splits}
        mark = fingerprint(splits)
        return Dataset(info, splits, mark) if mark == builder.info.metadata["fingerprint"] else None
    except Exception:  # Whatever a truncated file makes its reader raise, the remedy is to prepare again.
        return None


def _folder(info: Info, key: str, data_dir: Path) -> Path:
    """Where a prepared data set lies: TFDS's `data_path`."""
    return data_dir / "text_pairs" / f"{_slug(info.name)}-{key}" / VERSION


def _examples(builder: Any, split: str) -> tuple[Example, ...]:
    references = (
        (source, tuple(text.split("\n"))) for source, text in columns(builder, split, ("source", "references"))
    )
    return tuple(Example(source, texts[0], texts) for source, texts in references)


def columns(builder: Any, split: str, keys: Sequence[str]) -> list[tuple[str, ...]]:
    """The text features `keys` of all records of a split; parsed here in a sixth of TFDS's own time."""
    from tensorflow_datasets.core.decode import DeserializeMethod
    from tensorflow_datasets.proto import tf_example_pb2

    parse = tf_example_pb2.Example.FromString
    with quiet():
        source = builder.as_data_source(split=split, deserialize_method=DeserializeMethod.RAW_BYTES)
        rows = source.__getitems__(range(len(source)))
    features = (parse(row).features.feature for row in rows)
    return [tuple(feature[key].bytes_list.value[0].decode() for key in keys) for feature in features]


def _slug(name: str) -> str:
    """A data set's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_]+", ".", name)[:80]


def _check_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise _unwritable(data_dir, error) from None


def _unwritable(data_dir: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)[:200]
    return UserError(
        f"--data_dir={data_dir}: cannot be written ({reason}); choose another --data_dir or set ATTN_JAX_DATA"
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an OS lock, which ends with the process however the process ends."""
    try:
        file = path.open("w")
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS: its prints, progress bars and warnings (no TensorFlow, custom configuration)."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
