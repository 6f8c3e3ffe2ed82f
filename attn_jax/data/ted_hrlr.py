"""TED talks for low-resource translation (Qi et al. 2018), through TFDS's own builder, by its TFDS name.

TFDS finds the archive under its registered name, checks its SHA-256, and reads the texts. Its downloader
would try for minutes without a network and its extraction needs TensorFlow, so both are done here first.
"""

import hashlib
import http.client
import importlib.util
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_jax.data import builder, sources
from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

FOLDER = "ted_hrlr_translate"
ARCHIVE = "qi18naacl-dataset.tar.gz"
URL = f"http://www.phontron.com/data/{ARCHIVE}"
SHA256 = "216a86c3df4d4f522856fe9b920ff5be6b394d769cc88974ae8f9f5546953bbc"
CONFIGS = (
    "az_to_en",
    "aztr_to_en",
    "be_to_en",
    "beru_to_en",
    "es_to_pt",
    "fr_to_pt",
    "gl_to_en",
    "glpt_to_en",
    "he_to_pt",
    "it_to_pt",
    "pt_to_en",
    "ru_to_en",
    "ru_to_pt",
    "tr_to_en",
)
PATTERNS: tuple[str, ...] = ("ted_hrlr_translate/<config>",)
SPLITS = {"train": "train", "dev": "validation", "test": "test"}

CITATION = (
    "Qi, Y., Sachan, D. S., Felix, M., Padmanabhan, S. J. and Neubig, G. (2018). When and why are "
    "pre-trained word embeddings useful for neural machine translation? NAACL-HLT."
)
RECOMMENDED = {
    "data.source_unit": "bpe",
    "data.target_unit": "bpe",
    "data.bpe_size": 8000,
    "cell": "gru",
    "embedding.size": 256,
    "encoder.name": "bi",
    "encoder.size": 256,
    "decoder.size": 512,
    "dropout.embedding": 0.2,
    "dropout.readout": 0.3,
    "optim.clip_norm": 1.0,
    "train.batch_size": 80,
    "train.epochs": 15.0,
}


def names() -> list[str]:
    """Every data set of this family."""
    return [f"{FOLDER}/{config}" for config in CONFIGS]


def refusal(name: str) -> str:
    """Why a name of TFDS outside this family cannot be read; empty for names that TFDS does not have."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    stem = name.partition("/")[0].partition(":")[0]
    if spec is None or not spec.submodule_search_locations or not stem.isidentifier():
        return ""
    root = Path(spec.submodule_search_locations[0])
    places = [
        root / "datasets" / stem,
        root / "translate" / f"{stem.removesuffix('_translate')}.py",
        root / "text" / f"{stem}.py",
    ]
    if not any(place.exists() for place in places):
        return ""
    return (
        f"{name}: of the data sets of TFDS only {FOLDER}/<config> is supported, since the others need "
        "TensorFlow to prepare or are not pairs of texts; write the pairs to files and use parallel_text"
    )


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of ted_hrlr_translate/<config>. Raises UserError on an unknown configuration."""
    config = name.partition("/")[2]
    if config not in CONFIGS:
        raise unknown(f"configuration of {FOLDER}", config, CONFIGS)
    files.used[f"{FOLDER}/{ARCHIVE}"] = SHA256

    def read() -> dict[str, Sequence[Example]]:
        archive = _archive(files)
        files.downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=files.downloads) as work:
            return _read(config, archive, Path(work))

    info = Info(
        name=name,
        citation=CITATION,
        licence="none stated (TED talks)",
        metric="bleu",
        url="https://github.com/neulab/word-embeddings-for-nmt",
        recommended=RECOMMENDED,
    )
    return Recipe(info, read)


def _archive(files: Files) -> Path:
    """The verified archive: under manual_dir, downloaded before, or downloaded now."""
    kept = files.downloads / FOLDER / ARCHIVE
    places = (
        [kept] if files.manual_dir is None else [files.manual_dir / FOLDER / ARCHIVE, files.manual_dir / ARCHIVE, kept]
    )
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        hint = f"put it at {FOLDER}/{ARCHIVE} below a directory and give --manual_dir=DIRECTORY"
        try:
            content = sources.download(URL)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{places[0]} is not there, and {URL} could not be downloaded ({reason}): {hint}") from None
        sources.write_atomically(kept, content)
        path = kept
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise UserError(f"{path}: SHA-256 {digest}, expected {SHA256}; remove the file or replace it by {URL}")
    return path


def _read(config: str, archive: Path, work: Path) -> dict[str, Sequence[Example]]:
    import tensorflow_datasets as tfds

    with builder.quiet():
        ted: Any = tfds.builder(f"{FOLDER}/{config}", data_dir=str(work), file_format="array_record")
        source, target = ted.info.supervised_keys
        extracted = work / "extracted" / f"TAR_GZ.{ARCHIVE}"
        with tarfile.open(archive, "r:gz") as tar:
            wanted = f"datasets/{source}_to_{target}/"
            members = [m for m in tar.getmembers() if os.path.normpath(m.name).startswith(wanted) and m.isfile()]
            tar.extractall(extracted, members, filter="data")
        ted.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(archive.parent), extract_dir=str(extracted.parent), verify_ssl=True
            ),
            download_dir=str(work / "downloads"),
        )
    return {
        split: [pair(s, t) for s, t in builder.columns(ted, theirs, (source, target))]
        for split, theirs in SPLITS.items()
    }
