"""Peers in virtual environments of their own, made once by venv and pip from pinned versions."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

REQUIREMENTS = {"pytorch": HERE / "pytorch.txt", "joeynmt": HERE / "joeynmt.txt"}


class PeerError(Exception):
    """Why a peer is not there, in one line."""


def interpreter(peer: str, place: Path) -> Path:
    """The Python of a peer's environment under `place`; made if it is not there as its requirements say.

    Where pip looks for packages is the user's configuration of pip. Raises PeerError.
    """
    wanted = REQUIREMENTS[peer].read_text(encoding="utf-8")
    folder = place / peer
    python, stamp = folder / "bin" / "python", folder / "requirements.installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    print(f"benchmark: installing {peer} into {folder} (once)", file=sys.stderr, flush=True)
    quiet = ["-qq", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", *quiet, "-r", str(REQUIREMENTS[peer])],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.split("\n") if line.strip()] or [f"exit code {done.returncode}"]
            raise PeerError(f"{peer} could not be installed: {said[-1].strip()[:200]}")
    stamp.write_text(wanted, encoding="utf-8")
    return python
