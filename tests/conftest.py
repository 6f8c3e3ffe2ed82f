"""Strict JAX settings for all tests, and fixtures that several test files share."""

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported. Subprocesses of tests inherit it, and find attn_jax where it is not installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ["ATTN_JAX_CACHE"] = str(ROOT / ".pytest_cache" / "xla")
# Compiling is most of what these tests do; XLA's newer way to emit fused loops doubles it.
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag, and end the process
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ["ATTN_JAX_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The programs are tiny.
jax.config.update("jax_disable_most_optimizations", True)

from data_dir import manual_dir  # noqa: E402, F401


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside the test that asks for it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _no_figure_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the tiny studies whose figures nobody looks at."""
    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr("attn_jax.report.write_figures", lambda folder, shown: None)
