"""A score that a user adds: one class, and everything knows it."""

import csv
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import properties
import pytest
import test_scores
import tiny

from attn_jax import extensions
from attn_jax.errors import UserError
from attn_jax.products import contract
from attn_jax.scores import SCORES, Score

ROOT = Path(__file__).resolve().parent.parent


class Distance(Score):
    """-|q - m_j|^2 (a toy)."""

    name = "toy_distance"
    equal_sizes = True

    def __call__(self, query, keys, extra):
        steps = "" if query.ndim == 2 else "t"
        products = contract(f"b{steps}h,bsh->b{steps}s", query, keys, self.dtype)
        lengths = jnp.sum(keys**2, axis=-1)
        lengths = lengths if query.ndim == 2 else lengths[:, None, :]
        return 2 * products - lengths - jnp.sum(query**2, axis=-1, keepdims=True)

    def formula(self, query, memory, extra):
        return jnp.array([-jnp.sum((query - m) ** 2) for m in self.projected(memory)])


FILE = f"""
import jax.numpy as jnp
from attn_jax.products import contract
from attn_jax.scores import SCORES, Score

@SCORES.register
{inspect.getsource(Distance)}
"""


@pytest.fixture
def toy():
    SCORES.register(Distance)
    yield Distance.name
    SCORES.remove(Distance.name)


@pytest.mark.usefixtures("x64")
def test_properties(toy):
    assert toy in {mechanism["score"] for mechanism in tiny.mechanisms()}
    test_scores.check_score(toy)
    properties.padding_changes_nothing(tiny.config(score=toy, cell="rnn"))
    properties.group_equals_lone_run(tiny.config(score=toy, cell="rnn", input_feeding="attentional"))


def experiment(directory, *flags):
    (directory / "toy.py").write_text(FILE)
    command = [sys.executable, ROOT / "experiments" / "compare_scores.py", "--load=toy.py", *flags]
    environment = {**os.environ, "ATTN_JAX_DATA": str(directory / "data"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory, timeout=300)


def test_flags(tmp_path):
    told = experiment(tmp_path, "--help")
    assert told.returncode == 0
    assert "toy_distance" in told.stdout
    refused = experiment(tmp_path, "--dataset=synthetic/copy", "--scores=toy_distanse", "--out=out")
    assert refused.returncode == 2
    assert "did you mean 'toy_distance'?" in refused.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("x = (", "line 1: '(' was never closed"),
        ("\nimport attn_jax\n1 / 0", "line 3: ZeroDivisionError: division by zero"),
        (FILE + FILE, "score 'toy_distance' is already defined by bad"),
        (FILE.replace("    name =", "    title ="), "score class Distance needs a class attribute `name`"),
        (
            b"x = '\xff'",
            "line 1: (unicode error) 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=["syntax", "raises", "twice", "nameless", "encoding", "missing"],
)
def test_a_file_that_cannot_be_loaded_is_told_in_one_line(tmp_path, content, told):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        with pytest.raises(UserError) as refused:
            extensions.load(str(path))
    finally:
        if Distance.name in SCORES:
            SCORES.remove(Distance.name)
    assert str(refused.value) == f"--load={path}: {told}"
    assert "bad.py" not in extensions.LOADED


def test_study_and_table(tmp_path):
    names = "--dataset=synthetic/copy?vocabulary=4&max_length=4&examples=60&test_examples=10&test_max_length=11"
    sizes = ("--hidden_size=4", "--cells=rnn", "--batch_size=8", "--steps=4", "--seeds=2")
    done = experiment(tmp_path, names, *sizes, "--scores=toy_distance", "--out=out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["score"], line["seed"]) for line in lines} == {("toy_distance", seed) for seed in "01"}
    table = done.stdout.splitlines()
    assert any("toy_distance" in line for line in table)
    assert table[-1] == "out/report.html"
    assert "toy_distance" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("x64")
def test_the_score_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "LOADED", {})
    monkeypatch.setattr(extensions, "PATHS", [])
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    file = tmp_path / "my_scores.py"
    file.write_text(next(block for block in blocks if "SCORES.register" in block))
    extensions.load(str(file))
    try:
        test_scores.check_score("distance")
    finally:
        SCORES.remove("distance")
