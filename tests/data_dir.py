"""Where the published files lie that tests compare with."""

import os
from pathlib import Path

import pytest


def find_manual_dir() -> Path | None:
    """$ATTN_JAX_MANUAL_DIR, or shared/data beside the repository; None when there is neither."""
    given = os.environ.get("ATTN_JAX_MANUAL_DIR")
    path = Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def manual_dir() -> Path:
    """The parent of the data sets' folders; the test is skipped where there is none."""
    path = find_manual_dir()
    if path is None:
        pytest.skip("no published data: set ATTN_JAX_MANUAL_DIR to the parent of the data sets' folders")
    return path
