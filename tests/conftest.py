"""Strict JAX settings for all tests, and fixtures that several test files share."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
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

# One device in this process, also where its first test is the command, which makes every core a device.
jax.devices()

# The programs are tiny.
jax.config.update("jax_disable_most_optimizations", True)

from data_dir import manual_dir  # noqa: E402, F401


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside the test that asks for it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def draw_figures() -> Iterator[Callable[..., None]]:
    """Leaves out the files of `figures/`: drawing takes longer than the tiny studies of tests. What would draw them."""
    from attn_jax import report

    draw = report.write_figures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_figures", lambda *_: None)
        yield draw
