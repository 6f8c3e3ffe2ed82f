"""Where published files are found: below the user's `manual_dir`, among downloads, or at their origin.

`sources.json` pins, for each folder, the repository and commit of origin and, for each file, its path there
and the SHA-256 of its uncompressed text. What is downloaded must match its pin. What lies under `manual_dir`
is read as it is, since a user may edit it; a file that differs from its pin is named in the data set's notes.
"""

import functools
import gzip
import hashlib
import http.client
import importlib.resources
import io
import json
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import Any

from attn_jax.errors import UserError

TIMEOUT_S = 10


@functools.cache
def pins() -> dict[str, Any]:
    """The table of origins: {folder: {repository, commit, files: {name: {path, sha256, member?}}}}."""
    text = importlib.resources.files("attn_jax.data").joinpath("sources.json").read_text(encoding="utf-8")
    return json.loads(text)


def pinned(folder: str) -> list[str]:
    """The names of a folder's pinned files."""
    return list(pins()[folder]["files"])


class Files:
    """The files of one data set, and the record of what was read.

    `used` maps the name of every file read to the SHA-256 of its uncompressed content, `altered` lists those
    that differ from the published ones.
    """

    def __init__(self, manual_dir: str | None, downloads: Path):
        self.manual_dir = Path(os.path.expanduser(manual_dir)) if manual_dir is not None else None
        if self.manual_dir is not None and not self.manual_dir.is_dir():
            raise UserError(f"--manual_dir={manual_dir}: no such directory; name the parent of the data sets' folders")
        self.downloads = downloads
        self.used: dict[str, str] = {}
        self.altered: list[str] = []

    def local(self, folder: str, name: str) -> bool:
        """Whether the file lies under `manual_dir`."""
        return self._path(folder, name) is not None

    def label(self, folder: str, name: str) -> str:
        """The path of the file for messages."""
        return str(self._path(folder, name) or f"{folder}/{name}")

    def read(self, folder: str, name: str) -> bytes:
        """The uncompressed content. Raises UserError when the file is neither at hand nor to be had."""
        path = self._path(folder, name)
        content = read_file(path) if path else self._downloaded(folder, name)
        digest = hashlib.sha256(content).hexdigest()
        self.used[f"{folder}/{name}"] = digest
        if digest != pins()[folder]["files"][name]["sha256"]:
            self.altered.append(f"{folder}/{name}")
        return content

    def _path(self, folder: str, name: str) -> Path | None:
        if self.manual_dir is None:
            return None
        plain = self.manual_dir / folder / name
        try:
            return next((path for path in (plain, plain.with_name(plain.name + ".gz")) if path.is_file()), None)
        except OSError as error:
            raise UserError(f"{plain}: cannot be read ({error.strerror})") from None

    def _downloaded(self, folder: str, name: str) -> bytes:
        kept = self.downloads / folder / name
        pin = pins()[folder]["files"][name]
        if kept.is_file():
            content = read_file(kept)
            if hashlib.sha256(content).hexdigest() == pin["sha256"]:
                return content
        where = f"{self.manual_dir / folder / name} is not there" if self.manual_dir else "no --manual_dir was given"
        origin = pins()[folder]
        url = f"https://raw.githubusercontent.com/{origin['repository']}/{origin['commit']}/{pin['path']}"
        hint = f"put it at {folder}/{name} (plain or .gz) below a directory and give --manual_dir=DIRECTORY"
        try:
            content = unpack(download(url), pin)
        except (
            OSError,
            http.client.HTTPException,
            zipfile.BadZipFile,
            KeyError,
            EOFError,
            zlib.error,
        ) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{where}, and {url} could not be downloaded ({reason}): {hint}") from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != pin["sha256"]:
            raise UserError(f"{url}: SHA-256 {digest}, expected {pin['sha256']}: the download was dropped; {hint}")
        write_atomically(kept, content)
        return content


def read_file(path: Path) -> bytes:
    """The content of a file, uncompressed if its name ends in .gz. Raises UserError when unreadable."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None


def download(url: str) -> bytes:
    """The content at an address, in one attempt: offline the answer must come at once. Raises OSError."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        return response.read()


def unpack(content: bytes, pin: dict[str, str]) -> bytes:
    """A pinned file out of what its origin serves: plain, gzip, or a member of a zip archive."""
    if "member" in pin:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(pin["member"])
    return gzip.decompress(content) if pin["path"].endswith(".gz") else content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader sees a part of it. Raises UserError when the place cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --data_dir") from None
