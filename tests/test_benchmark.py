"""The pieces of scripts/benchmark that can be wrong: statistics, counts, FLOPs, the protocol. No peer is needed."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from attn_jax.data.corpus import encode
from attn_jax.seq2seq import Model
from attn_jax.training import Trainer, batch_loss

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import __main__ as driver  # noqa: E402
from bench import corpora, flops, peers, protocol, ratios, table  # noqa: E402
from bench import rows as benchmark_rows  # noqa: E402
from bench.rows import Compared, Row  # noqa: E402


def test_quartiles_are_those_of_numpy():
    values = np.random.default_rng(0).lognormal(size=9).tolist()
    for count in (1, 2, 3, 4, 9):
        found = ratios.spread(values[:count])
        np.testing.assert_allclose(found, np.percentile(values[:count], [50, 25, 75]), rtol=1e-12)


def test_ratios_are_paired_so_that_common_noise_goes_out():
    noise = [1.0, 7.0, 0.2, 3.0, 40.0]
    found = ratios.paired([3 * n for n in noise], [2 * n for n in noise])
    np.testing.assert_allclose(found, [1.5] * 3)
    # Pairs are 1/2, 4/1 and 4/4; medians are 4 and 2.
    assert ratios.paired([1, 4, 4], [2, 1, 4]).median == 1
    assert ratios.paired([6.0], [1, 2, 3]).median == 3
    with pytest.raises(ValueError, match="2 and 3 values are no pairs"):
        ratios.paired([1, 2], [1, 2, 3])


def test_quantities_of_repetitions():
    runs = [
        {"seconds": 2.0, "target_tokens": 30, "source_tokens": 50, "positions": 100, "sentences": 4, "peak_bytes": 5},
        {"seconds": 0.5, "target_tokens": 10, "source_tokens": 10, "positions": 40, "sentences": 2, "peak_bytes": 8},
    ]
    assert ratios.values(runs, "target_tokens/s") == [15, 20]
    assert ratios.values(runs, "target_tokens/sentence") == [7.5, 5]
    assert ratios.values(runs, "padding") == [pytest.approx(0.2), pytest.approx(0.5)]
    assert ratios.values(runs, "peak_bytes") == [8]
    assert ratios.values(runs, "seconds") == [2.0, 0.5]
    with pytest.raises(KeyError):
        ratios.values(runs, "flops/s")


def test_seconds_to_quality_are_scaled_by_the_speed_of_this_run():
    assert ratios.values([{"seconds": 700.0, "curve": []}], "seconds_to_quality") == [700.0]
    # Twice as fast as when it was noted: half of the 54 minutes.
    assert ratios.values([{"seconds": 10.0, "target_tokens": 27_200}], "seconds_to_quality") == [1620.0]


def test_contestants_that_did_other_work_are_named():
    measured = {"a": [{"tokens": 5}, {"tokens": 6}], "b": [{"tokens": 5}, {"tokens": 7}], "peak": [{"flops": 1}]}
    assert ratios.disagreement(measured, "tokens") == "b did [5, 7] tokens, a [5, 6]"
    assert ratios.disagreement({**measured, "b": measured["a"]}, "tokens") == ""


def measured(**seconds):
    return {name: [{"seconds": s, "target_tokens": 60} for s in values] for name, values in seconds.items()}


def test_a_target_is_met_by_the_median_of_the_ratios():
    fast, slow = [1.0, 2.0, 4.0], [3.0, 5.0, 8.0]
    found = measured(ours=fast, peer=slow)
    for bound, met in ((2.5, True), (2.51, False)):
        line = table.line(Compared("target_tokens/s", "ours", "peer", at_least=bound), found)
        assert line is not None
        assert line["ratio"]["median"] == 2.5
        assert line["met"] is met
    line = table.line(Compared("seconds", "ours", "peer", at_most=0.4), found)
    assert line is not None
    assert line["met"] is True
    assert table.line(Compared("target_tokens/s", "ours", "gone"), found) is None


def test_the_table_tells_failures_and_figures():
    row = Row("row", {"kind": "train"}, ("ours", "peer"), (Compared("target_tokens/s", "ours", "peer", 3.0),), 1)
    lines = table.summed_up(row, measured(ours=[1.0, 1.0], peer=[2.0, 2.0]))
    result = {"name": "row", "compared": lines, "absent": {"joeynmt": "no pip"}, "wrong": ["not the same work: x"]}
    text = table.markdown([result], ["head"])
    assert "| row | ours: 60.0 tokens/s | peer: 30.0 tokens/s | 2.00 (2.00 to 2.00) | at least 3: NO |" in text
    assert "- row: joeynmt: no pip" in text
    assert "- row: not the same work: x" in text


def test_every_comparison_is_between_contestants_of_its_row():
    found = [row for quick in (False, True) for row in benchmark_rows.rows(quick)]
    for row in found:
        assert {name for c in row.compared for name in (c.of, c.to) if name} <= set(row.contestants), row.name
    names = [row.name for row in benchmark_rows.rows()]
    assert len(set(names)) == len(names)
    sizes = "|".join(benchmark_rows.SIZES)
    assert sum(bool(re.fullmatch(rf"train/({sizes})/(words|bpe)/(no_)?feeding", name)) for name in names) == 12


def trainer(**changes):
    dataset = tiny.dataset(train=40)
    config = tiny.config(train__batch_size=4, train__buckets=3, **changes)
    return Trainer([config], encode(dataset, config))


def test_exported_batches_are_those_that_are_trained_on(tmp_path):
    made = trainer()
    corpora.write_steps(tmp_path, made, 12)
    corpora.write_vocabularies(tmp_path, made.corpus)
    with np.load(tmp_path / "steps.npz") as file:
        flat = dict(file)
    sides = {}
    for side in ("source", "target"):
        sides[side] = np.split(flat[side], np.cumsum(flat[f"{side}_lengths"])[:-1])
        assert len(sides[side]) == 48
    for step in range(12):
        # What `_run_chunk` gathers on the device.
        data = made._data[int(made.plan.buckets(step, 1)[0])]
        rows = made.plan.indices(made.config.seed, step, 1)[0]
        for side, padded in (("source", np.asarray(data.source)[rows]), ("target", np.asarray(data.target)[rows])):
            for row, ids in zip(padded, sides[side][4 * step : 4 * step + 4], strict=True):
                assert row[row != 0].tolist() == ids.tolist()
    # The text, read as a peer reads it, is the same numbers, but for the end of sentence.
    for name, side in zip(corpora.SIDES, ("source", "target"), strict=True):
        symbols = ["<pad>", "<s>", "</s>", "<unk>", *(tmp_path / f"vocabulary.{name}").read_text().split("\n")[:-1]]
        lines = (tmp_path / f"steps.{name}").read_text().split("\n")[:-1]
        end = [2] if side == "target" else []
        read = [[symbols.index(word) for word in line.split(" ")] + end for line in lines]
        assert read == [ids.tolist() for ids in sides[side]]


def test_numbers_have_the_vocabulary_and_the_lengths_that_are_asked_for():
    dataset = corpora.numbers(50, 7)
    config = tiny.config(data__dataset="benchmark/numbers")
    corpus = encode(dataset, config)
    assert len(corpus.source.vocabulary) == len(corpus.target.vocabulary) == 50
    assert {(len(s), len(t)) for s, t in corpus.encoded["train"]} == {(7, 7)}


def products(jaxpr, times=1):
    """FLOPs of all matrix products of a traced function, those of a scan as often as it turns."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += int(times * 2 * size * np.prod(equation.outvars[0].aval.shape))
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                total += products(getattr(part, "jaxpr", part), inner)
    return total


@pytest.mark.parametrize(
    ("cell", "feeding", "bridge"), [("lstm", True, "mean"), ("gru", False, "dense"), ("lstm", False, "zero")]
)
def test_model_flops_are_those_of_the_traced_products(cell, feeding, bridge):
    sizes = {"embedding__size": 5, "encoder__size": 3, "decoder__size": 7}
    names = {"cell": cell, "encoder": "bi", "bridge": bridge, "input_feeding": "attentional" if feeding else "none"}
    config = tiny.config(score="general", **sizes, **names)
    model = Model(config, 11, 13)
    batch, source, target = 4, 6, 9

    def loss(params):
        return batch_loss(model, params, jnp.ones((batch, source), int), jnp.ones((batch, target), int))[0].loss

    found = products(jax.make_jaxpr(jax.grad(loss))(jax.eval_shape(model.init, jax.random.key(0))).jaxpr)
    expected = flops.training_step(
        [(source, target)] * batch,
        cell=cell,
        embedding=5,
        encoder=3,
        decoder=7,
        vocabulary=13,
        feeding=feeding,
        bridge=bridge,
    )
    assert found == expected


class Echo:
    """A worker that fails when it is asked for a negative count."""

    def prepare(self, row):
        print("libraries print where they like")
        return {"kind": row["kind"]}

    def run(self, first, count):
        if count < 0:
            raise ValueError("a count\nbelow zero")
        return {"seconds": 0.25, "units": first + count}


def test_lines_are_answered():
    assert protocol.answered(Echo(), 'prepare {"kind": "x"}\n') == {"kind": "x"}
    assert protocol.answered(Echo(), "run 3 4\n") == {"seconds": 0.25, "units": 7}
    assert protocol.answered(Echo(), "memory\n")["peak_bytes"] > 1 << 20
    with pytest.raises(ValueError, match="no command"):
        protocol.answered(Echo(), "stop\n")


@contextlib.contextmanager
def client(tmp_path, code):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    with (tmp_path / "words").open("a") as log, protocol.Client([sys.executable, "-c", code], environment, log) as one:
        yield one


WORKER = """
import os, sys
from bench import protocol
class Echo:
    def prepare(self, row):
        print("libraries print where they like", flush=True)
        os.write(1, b"and so do their libraries")
        return {"kind": row["kind"]}
    def run(self, first, count):
        if count == 0:
            raise ValueError("a count\\nof zero")
        if count == 13:
            os._exit(3)
        return {"seconds": 0.25, "units": first + count}
protocol.serve(Echo())
"""


def test_a_worker_answers_fails_in_one_line_and_dies(tmp_path):
    with client(tmp_path, WORKER) as one:
        assert one.prepare({"kind": "train"})["kind"] == "train"
        before = one.memory()["peak_bytes"]
        assert one.run(2, 3) == {"seconds": 0.25, "units": 5}
        with pytest.raises(protocol.WorkerError, match=r"ValueError: a count of zero \(more in .*words\)"):
            one.run(0, 0)
        assert one.run(1, 1)["units"] == 2
        assert one.memory()["peak_bytes"] >= before
        with pytest.raises(protocol.WorkerError, match="ended with exit code 3"):
            one.run(0, 13)
    assert "libraries" in (tmp_path / "words").read_text()


def test_peak_memory_is_the_process_own():
    code = "from bench.protocol import peak_bytes; a = b'x' * (64 << 20); print(peak_bytes())"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    held = bytearray(b"y" * (200 << 20))  # of the parent: does not count
    found = int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert 64 << 20 < found < len(held)


def test_the_command_lists_rows_and_refuses_what_is_wrong(monkeypatch, capsys):
    def exit_code(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        try:
            return driver.main()
        except SystemExit as stop:
            return stop.code

    assert exit_code("--list", "--rows=^decode") == 0
    listed = capsys.readouterr().out.split("\n")
    assert listed[0].startswith("decode/greedy: ours float32, ours bfloat16, pytorch float32")
    assert [line.partition(":")[0] for line in listed] == ["decode/greedy", "decode/beam", ""]
    assert exit_code("--list", "--rows=beam", "--contestants=joey|16") == 0
    assert capsys.readouterr().out == "decode/beam: ours bfloat16, pytorch bfloat16, joeynmt float32\n"
    for flag, message in [
        ("--contestants=nobody", "is found in no name"),
        ("--contestants=[", "no regular expression"),
        ("--rows=nothing", "is found in no row"),
        ("--rows=(", "no regular expression"),
        ("--threads=999", "there are"),
        ("--repetitions=0", "must be at least 1"),
    ]:
        assert exit_code(flag, "--list") == 2
        assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_a_row_is_measured_in_turns_and_written(tmp_path, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def prepare(self, row):
            asked.append((self.name, "prepare"))
            return {"version": "fake 1"}

        def run(self, first, count):
            asked.append((self.name, first))
            if self.name == "b" and first == 4:
                raise protocol.WorkerError("died")
            return {"seconds": 1.0 if self.name == "a" else 2.0, "target_tokens": 10, "last_loss": 1.0}

        def memory(self):
            return {"peak_bytes": 1}

    monkeypatch.setattr(sys, "argv", ["benchmark", "--repetitions=3", f"--out={tmp_path}"])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    bench = driver.Bench(driver.parsed())
    monkeypatch.setattr(bench, "client", lambda row, name, **_: Fake(name))
    compared = (Compared("target_tokens/s", "a", "c", at_least=2.0), Compared("target_tokens/s", "a", "b"))
    row = Row("fake", {"kind": "peak"}, ("a", "b", "c"), compared, count=2, same="target_tokens")
    result = bench.measure(row)
    prepared = [(name, "prepare") for name in "abc"]
    assert asked == [*prepared, *[(n, 2) for n in "abc"], *[(n, 4) for n in "abc"], ("a", 6), ("c", 6)]
    assert result["absent"] == {"b": "died"}
    assert [line["met"] for line in result["compared"]] == [True]  # b has no figures
    driver.write(tmp_path, driver.machine(bench.given), [result])
    stored = json.loads((tmp_path / "benchmark.json").read_text())
    assert [one["seconds"] for one in stored["rows"][0]["measured"]["c"]] == [2.0] * 3
    assert "fake: b: died" in (tmp_path / "benchmark.md").read_text()


def test_another_model_or_other_work_is_told():
    row = Row("row", {"kind": "train"}, ("ours float32", "pytorch float32"), (), 1, same="tokens")
    names = row.contestants
    same = {name: [{"tokens": 5}] for name in names}
    facts = {names[0]: {"first_loss": 9.00001}, names[1]: {"first_loss": 9.0}}
    assert driver.wrong(row, same, facts) == []
    assert driver.wrong(row, same, {}) == []
    other = {**facts, names[1]: {"first_loss": 9.001}}
    assert driver.wrong(row, same, other)[0].startswith("not the same model: ours float32 begins with loss 9.00001")
    assert driver.wrong(row, same, {**facts, names[1]: {"first_loss": float("nan")}})
    assert driver.wrong(row, {**same, names[1]: [{"tokens": 4}]}, facts)[0].startswith("not the same work: pytorch")


def test_a_peer_that_cannot_be_installed_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "wrong.txt").write_text("no-such-thing ==\n")
    monkeypatch.setattr(peers, "REQUIREMENTS", {"pytorch": tmp_path / "wrong.txt"})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "a\nno way\n"))
    with pytest.raises(peers.PeerError, match="pytorch could not be installed: no way"):
        peers.interpreter("pytorch", tmp_path / "peers")
    assert not (tmp_path / "peers" / "pytorch" / "requirements.installed").exists()
