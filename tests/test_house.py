"""A file imports only from files that are listed above its own, and the command line imports little."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "attn_jax"

# A package is one room: its files may import each other. `__init__` is the public face of all.
ROOMS = """
    errors interruption extensions registry tables shapes config
    scan_outputs products layers scores normalizers windows attention cells recurrence
    encoders bridges combines readouts encoder_decoder decoder transformer seq2seq
    data losses gradients metrics decoding beam_search search alignment
    processes devices grouping optimizers training evaluation checkpoint events
    provenance storage trackers results curves export selection outcome
    clock progression program jobs
    combinators sweep translator reuse
    signflip stats power_law cost ranking bootstrap factors effects breakdown plots figure_files tuned
    report_run report_labels report_data report_table report_export report_charts report_curves report_maps
    report_tuning report_page report
    progress launch pool worker ray_tasks planning study tuning forecast
    cli_parsers cli_help cli_flags cli_choices cli_study cli
    __init__
"""
ORDER = ROOMS.split()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str, package: tuple[str, ...] = ("attn_jax",)) -> Iterator[tuple[int, str]]:
    """Line and room of every import from attn_jax, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in names:
            if parts[0] == "attn_jax":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"
            elif parts[0] in ("experiments", "tests"):
                yield node.lineno, parts[0]


def violations(room: str, source: str, package: tuple[str, ...] = ("attn_jax",)) -> list[str]:
    allowed = {*ORDER[: ORDER.index(room) + 1]} - (set() if room == "data" else {room})
    return [
        f"line {line}: {room} must not import {imported}"
        for line, imported in imported_rooms(source, package)
        if imported not in allowed
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_up_the_list(path: Path) -> None:
    room = room_of(path)
    assert room in ORDER, f"add {room} to ORDER in {Path(__file__).name}, above what imports it"
    package = path.relative_to(ROOT).parent.parts
    assert violations(room, path.read_text("utf-8"), package) == []


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("scores", "from attn_jax import layers, cells", ["line 1: scores must not import cells"]),
        ("scores", "from attn_jax.layers import Dense", []),
        ("scores", "def f():\n    import attn_jax.study", ["line 2: scores must not import study"]),
        ("cells", "from . import study", ["line 1: cells must not import study"]),
        ("cells", "from .layers import Dense", []),
        ("cells", "from attn_jax import Dot", ["line 1: cells must not import Dot"]),
        ("study", "from experiments import compare", ["line 1: study must not import experiments"]),
        ("cells", "import attn_jax", ["line 1: cells must not import __init__"]),
        ("data", "from attn_jax.data.text import Vocabulary\nimport jax", []),
        ("data", "from attn_jax.losses import nll", ["line 1: data must not import losses"]),
    ],
)
def test_the_checker_sees_a_wrong_import(room: str, source: str, expected: list[str]) -> None:
    assert violations(room, source) == expected


def test_a_relative_import_in_a_package_is_resolved() -> None:
    assert violations("data", "from ..losses import nll", ("attn_jax", "data")) == [
        "line 1: data must not import losses"
    ]
    assert violations("data", "from .text import Vocabulary", ("attn_jax", "data")) == []


HEAVY = {
    *("jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "array_record", "scipy", "pandas"),
    *("matplotlib", "plotly", "sacrebleu", "sentencepiece", "rapidfuzz", "rich", "jinja2", "tensorboardX"),
}

HELP = """
import json, runpy, sys
script = sys.argv.pop(1)
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "experiments").glob("*.py")))
def test_help_imports_nothing_heavy(script: str) -> None:
    command = [sys.executable, "-c", HELP, str(ROOT / "experiments" / script), "--help"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    *shown, modules = process.stdout.splitlines()
    assert "Flags:" in shown
    loaded = {name.partition(".")[0] for name in json.loads(modules)}
    assert "attn_jax" in loaded
    assert loaded & HEAVY == set()
