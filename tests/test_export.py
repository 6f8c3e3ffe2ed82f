"""Models as safetensors files: out and in again, and files that are something else."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from fuzzing import BYTES
from safetensors.numpy import load_file, save_file

import attn_jax
from attn_jax import config as configs
from attn_jax.errors import UserError

EXAMPLES = tiny.dataset().splits["test"]


@pytest.fixture(scope="module")
def run():
    """A trained model whose outputs differ."""
    data = tiny.dataset(train=40)
    changes = {"score": "dot", "cell": "rnn", "train.steps": 100, "decode.max_length": 8}
    return attn_jax.fit(attn_jax.configure(data, changes), data)


@pytest.fixture
def path(run, tmp_path):
    run.export(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewritten(path: Path, change) -> Path:
    """The file with tensors and metadata changed by another program."""
    tensors, about = load_file(path), about_of(path)
    change(tensors, about)
    save_file(tensors, path, {"attn_jax": json.dumps(about)})
    return path


def about_of(path: Path):
    # The format: eight bytes of length, then a JSON header.
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["attn_jax"])


def test_a_model_comes_back_bit_by_bit(run, path):
    back = attn_jax.import_run(path)
    assert back.config == run.config
    assert back.params.keys() == run.params.keys()
    for name, value in run.params.items():
        found = np.asarray(back.params[name])
        assert found.dtype == value.dtype
        assert found.tobytes() == np.asarray(value).tobytes()
        assert found.shape == value.shape
    texts = [example.source for example in EXAMPLES]
    outputs = [output.text for output in run.decode(texts)]
    assert [output.text for output in back.decode(texts)] == outputs
    assert len(set(outputs)) > 1
    again = path.with_name("again.safetensors")
    back.export(str(again))
    assert again.read_bytes() == path.read_bytes()


def test_other_programs_read_the_file(run, path):
    tensors = load_file(path)
    assert {name: value.shape for name, value in tensors.items()} == {n: v.shape for n, v in run.params.items()}
    about = about_of(path)
    assert configs.from_dict(about["config"]) == run.config
    assert about["vocabulary"]["source"]["symbols"] == run.source.vocabulary.to_json()


def test_the_file_alone_is_enough(run, path):
    program = (
        "import sys, attn_jax; outputs = attn_jax.import_run(sys.argv[1]).decode(['a b', 'd']);"
        "print(','.join(output.text for output in outputs))"
    )
    process = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, cwd=path.parent)
    assert process.returncode == 0, process.stderr
    assert process.stdout == ",".join(output.text for output in run.decode(["a b", "d"])) + "\n"


def test_special_numbers_and_shapes_come_back(tmp_path):
    from attn_jax.export import read_tensors, write_tensors

    params = {
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 3), np.float32),
        "double": np.array(1 / 3),
    }
    write_tensors(tmp_path / "below" / "x", params, {"text": "가 \u2028"})
    found, about = read_tensors(tmp_path / "below" / "x")
    assert about == {"text": "가 \u2028"}
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in params.items()
    }


def smaller(tensors, about):
    tensors["decoder.output.bias"] = tensors["decoder.output.bias"][:-1]


def half(tensors, about):
    tensors["decoder.output.bias"] = tensors["decoder.output.bias"].astype(np.float16)


def fewer(tensors, about):
    del tensors["decoder.output.bias"]


def more(tensors, about):
    tensors["zzz"] = np.zeros(2, np.float32)


def other_score(tensors, about):
    about["config"]["score"]["name"] = "general"


def other_size(tensors, about):
    about["config"]["embedding"]["size"] += 1


def unknown_score(tensors, about):
    about["config"]["score"]["name"] = "dott"


def shorter_vocabulary(tensors, about):
    about["vocabulary"]["target"]["symbols"].pop()


def no_vocabulary(tensors, about):
    del about["vocabulary"]


def not_an_object(tensors, about):
    about.clear()


CHANGES = {
    smaller: r"parameters: 'decoder\.output\.bias' is float32\[7\], expected float32\[8\]$",
    half: r"parameters: 'decoder\.output\.bias' is float16\[8\], expected float32\[8\]$",
    fewer: r"parameters: 'decoder\.output\.bias' is missing, expected float32\[8\]$",
    more: "parameters: 'zzz' is none of the model's",
    other_score: r"parameters: 'decoder\.[\w.]+' is missing, expected float32\[4, 4\]$",
    other_size: r"parameters: '[\w.]+' is float32\[[\d, ]+\], expected float32\[[\d, ]+\]$",
    unknown_score: "unknown score 'dott': did you mean 'dot'",
    shorter_vocabulary: r"parameters: '[\w.]+' is float32\[8(, \d+)?\], expected float32\[7(, \d+)?\]$",
    no_vocabulary: "metadata: expected 'vocabulary' of type dict",
    not_an_object: "metadata: expected 'config' of type dict",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_named(change, path):
    with pytest.raises(UserError, match=CHANGES[change]) as told:
        attn_jax.import_run(rewritten(path, change))
    assert str(told.value).startswith(f"{path}: ")


def test_files_of_other_programs(path, tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    save_file({"a": np.zeros(3)}, tmp_path / "tagged", {"attn_jax": "{"})
    (tmp_path / "text").write_text("a model\n")
    (tmp_path / "empty").write_bytes(b"")
    for name, message in {
        "foreign": "no model of attn_jax: the metadata of this safetensors file has no 'attn_jax'",
        "tagged": "the metadata 'attn_jax' is not JSON",
        "text": "not a safetensors file that can be read",
        "empty": "not a safetensors file that can be read",
        "nowhere": "cannot be read",
        ".": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message):
            attn_jax.import_run(tmp_path / name)


def test_a_damaged_file_is_refused_or_has_other_numbers_only(run, path):
    whole, header = path.read_bytes(), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    refused = 0
    for damage in BYTES:
        for seed in range(40):
            path.write_bytes(damage(whole, random.Random(f"{damage.__name__} {seed}")))
            try:
                found = attn_jax.import_run(path)
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017
                refused += 1
            else:
                assert len(path.read_bytes()) == len(whole)
                if path.read_bytes()[:header] == whole[:header]:
                    assert found.config == run.config
    assert refused > 80


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x: cannot be written \((Not a directory|File exists)\)"):
        run.export(tmp_path / "file" / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be written \(Is a directory\)"):
        run.export(tmp_path / "folder")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"], "nothing is left behind"
