import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

import attn_jax
from attn_jax import metrics, study
from attn_jax.errors import UserError

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_snippet_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATTN_JAX_DATA", str(tmp_path))
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, "README.md shows the use from Python"
    names = {}
    exec(compile(next(block for block in blocks if "attn_jax.fit" in block), str(README), "exec"), names)

    printed = capsys.readouterr().out.splitlines()
    run, output = names["run"], names["output"]
    assert float(printed[0]) == run.evaluate("test")["exact_match"]
    assert float(printed[0]) > 50, "chance is 0"
    assert output.tokens == [*reversed(output.source), "</s>"]
    assert output.text == " ".join(reversed(output.source))
    assert output.weights.shape == (len(output.tokens), len(output.source))
    np.testing.assert_allclose(output.weights.sum(axis=1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a study."""
    out = tmp_path_factory.mktemp("study")
    changes = {"score": "dot", "cell": "rnn", "decode.max_length": 8}
    config = tiny.config(**changes, **{"train.steps": 100, "train.eval_every": 100, "train.select": "last"})
    study.run([config], seeds=[5], out=str(out), corpora=study.Corpora(lambda name: tiny.dataset(train=40)))
    (found,) = (out / "runs").iterdir()
    return found


def test_a_run_from_disk_decodes_as_the_study_did(folder):
    run = attn_jax.load_run(folder)
    assert (run.config.seed, run.config.score.name) == (5, "dot")
    lines = [json.loads(line) for line in (folder / "predictions.test.jsonl").read_text().splitlines()]
    outputs = run.decode([line["source"] for line in lines])
    assert [output.text for output in outputs] == [line["prediction"] for line in lines]
    assert len({output.text for output in outputs}) > 1
    alone = run.decode([lines[3]["source"]])[0]
    assert (alone.text, alone.tokens, alone.source) == (outputs[3].text, outputs[3].tokens, outputs[3].source)
    np.testing.assert_allclose(alone.weights, outputs[3].weights, rtol=1e-4)

    shown = json.loads((folder / "attention.json").read_text())["examples"]
    by_source = {tuple(output.source): output for output in outputs}
    for example in shown:
        output = by_source[tuple(example["source"])]
        assert output.tokens == example["target"]
        np.testing.assert_allclose(output.weights, example["weights"], atol=1e-4)


def test_samples_of_a_study_are_those_of_each_run_and_selection_is_greedy(tmp_path):
    data = tiny.dataset(dev=9, metric="per")
    config = tiny.config(score="dot", cell="rnn", decode="sample", decode__max_length=6, train__select="last")
    study.run([config], seeds=[0, 3], out=str(tmp_path), corpora=study.Corpora(lambda name: data))
    seen = []
    for folder in (tmp_path / "runs").iterdir():
        run = attn_jax.load_run(folder)
        lines = [json.loads(line) for line in (folder / "predictions.test.jsonl").read_text().splitlines()]
        seen.append([line["prediction"] for line in lines])
        assert seen[-1] == [output.text for output in run.decode([line["source"] for line in lines])]
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in logged if line["split"] == "dev"][-1]
        sources, references = zip(*((e.source, e.references) for e in data.splits["dev"]), strict=True)
        per = [
            metrics.score(["per"], [output.text for output in outputs], references)["per"]
            for outputs in (run.decode(sources, name="greedy"), run.decode(sources))
        ]
        assert last["per"] == pytest.approx(per[0], rel=1e-5)
        assert json.loads((folder / "result.json").read_text())["metrics"]["dev"]["per"] == pytest.approx(per[1])
        assert per[0] != per[1]
    assert seen[0] != seen[1]


def test_wrong_use_of_a_run_from_disk(folder, tmp_path):
    run = attn_jax.load_run(str(folder))
    assert run.decode([]) == []
    with pytest.raises(UserError, match=r"text 2 \(' '\) has no symbols"):
        run.decode(["a", " "])
    with pytest.raises(UserError, match="loaded without its data"):
        run.evaluate("test")
    with pytest.raises(UserError, match=r"no finished run there \(result.json is missing\)"):
        attn_jax.load_run(tmp_path)


def test_damaged_files_of_a_run_are_named(folder, tmp_path):
    for name in ("config.json", "vocabulary.json", "result.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="parameters: no saved parameters there"):
        attn_jax.load_run(tmp_path)
    (tmp_path / "parameters").mkdir()
    with pytest.raises(UserError, match="parameters: the saved parameters are damaged"):
        attn_jax.load_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json:1: not JSON"):
        attn_jax.load_run(tmp_path)


def test_fit_is_what_a_study_trains():
    data = tiny.dataset()
    config = attn_jax.configure(data, {"cell": "rnn", "score": "none"})
    run = attn_jax.fit(config, data)
    assert run.losses.shape == (config.train.steps,)
    assert run.decode(["a b"])[0].weights is None
    assert set(run.evaluate("test")) == {"loss", "perplexity", "token_accuracy", "exact_match"}
    with pytest.raises(UserError, match=r"unknown split 'tests': did you mean 'test'\?"):
        run.evaluate("tests")
    with pytest.raises(UserError, match="unknown score 'dott'"):
        attn_jax.configure(data, {"score": "dott"})


def test_fit_keeps_the_last_step_whatever_a_study_would_select():
    data = tiny.dataset()
    kept = [
        attn_jax.fit(attn_jax.configure(data, {"cell": "rnn", "score": "none", **changes}), data).params
        for changes in ({"train.select": "last"}, {"train.select": "best_dev", "train.patience": 1})
    ]
    assert all(np.array_equal(value, kept[1][name]) for name, value in kept[0].items())


def test_public_names():
    assert set(attn_jax.__all__) <= set(dir(attn_jax))
    assert all(getattr(attn_jax, name) is not None for name in attn_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = attn_jax.nothing


def test_a_run_from_disk_is_tested_on_any_data(folder, tmp_path):
    data = tiny.dataset(train=40)
    stored = json.loads((folder / "result.json").read_text())["metrics"]["test"]
    run = attn_jax.load_run(folder)
    assert run.evaluate("test", dataset=data) == pytest.approx(stored, rel=1e-5)
    right = [(output.source, output.text) for output in run.decode(["a b", "c"])]
    own = tiny.with_splits(data, mine=[(" ".join(source), text) for source, text in right] + [("a", "b b b b b b")])
    assert run.evaluate("mine", dataset=own)["exact_match"] == pytest.approx(200 / 3)
    with pytest.raises(UserError, match="unknown split 'test_2'"):
        run.evaluate("test_2", dataset=data)

    run.export(tmp_path / "model.safetensors")
    again = attn_jax.load_run(tmp_path / "model.safetensors")
    assert again.evaluate("test", dataset=data) == run.evaluate("test", dataset=data)
