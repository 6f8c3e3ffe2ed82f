"""What the README says of the code is so."""

import re
from pathlib import Path

import pytest

from attn_jax import config
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS
from attn_jax.combines import COMBINES
from attn_jax.decoder import FEEDINGS
from attn_jax.encoders import DIRECTIONS
from attn_jax.layers import EMBEDDINGS
from attn_jax.normalizers import NORMALIZERS
from attn_jax.readouts import READOUTS
from attn_jax.scores import NONE, SCORES
from attn_jax.windows import WINDOWS

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")

TABLES = {
    "model": config.choices("model"),
    "score": [NONE, *SCORES],
    "cell": CELLS,
    "normalizer": NORMALIZERS,
    "window": WINDOWS,
    "placement": config.choices("placement"),
    "combine": COMBINES,
    "input_feeding": FEEDINGS,
    "readout": READOUTS,
    "encoder": DIRECTIONS,
    "bridge": BRIDGES,
    "embedding": EMBEDDINGS,
}


@pytest.mark.parametrize("axis", TABLES)
def test_the_table_of_variants_names_every_value(axis):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{axis}` |"))
    _, _, flag, values, _ = row.split("|")
    assert flag.strip() == f"`--{axis}s`"
    assert sorted(re.findall(r"`(\w+)`", values)) == sorted(TABLES[axis])
