"""Names of tables as help reads them from the sources, against the tables themselves."""

import importlib
import json
import subprocess
import sys

import pytest

from attn_jax import tables
from attn_jax.registry import Registry
from attn_jax.scores import SCORES

TABLES = (
    *(("scores", "SCORES"), ("cells", "CELLS"), ("normalizers", "NORMALIZERS"), ("windows", "WINDOWS")),
    *(("bridges", "BRIDGES"), ("combines", "COMBINES"), ("readouts", "READOUTS"), ("layers", "EMBEDDINGS")),
    *(("encoders", "DIRECTIONS"), ("decoder", "FEEDINGS"), ("alignment", "METHODS"), ("alignment", "OFFSETS")),
)


def test_sources_tell_the_names_without_jax():
    program = (
        "import json, sys; from attn_jax import tables;"
        "found = [tables.names(*pair) for pair in json.loads(sys.argv[1])];"
        "print(json.dumps([found, 'jax' in sys.modules]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, json.dumps(TABLES)], capture_output=True, text=True, check=True
    )
    found, jax_imported = json.loads(process.stdout)
    assert not jax_imported
    for (module, table), names in zip(TABLES, found, strict=True):
        assert names == list(getattr(importlib.import_module(f"attn_jax.{module}"), table)), (module, table)


def test_an_imported_table_tells_what_was_registered_since():
    class Added(SCORES["dot"]):
        name = "added_here"

    SCORES.register(Added)
    try:
        assert tables.names("scores", "SCORES") == (*(name for name in SCORES if name != Added.name), Added.name)
    finally:
        SCORES.remove(Added.name)


def test_an_unknown_table_is_an_error():
    assert isinstance(SCORES, Registry)
    with pytest.raises(LookupError, match="registry has no table NOTHING"):
        tables._read("registry", "NOTHING")
