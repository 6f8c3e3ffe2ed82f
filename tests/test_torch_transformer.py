"""The transformer against PyTorch's with its weights; scripts/torch_transformer_arrays.py made the arrays."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from attn_jax.seq2seq import build

ARRAYS = np.load(Path(__file__).parent / "arrays" / "torch_transformer.npz")

ENCODER = {"self_attn": "attention", "linear1": "feed.first", "linear2": "feed.second"}
NORMS = {"encoder": ["attention", "feed"], "decoder": ["attention", "cross", "feed"]}


def ours(torch_arrays):
    """Arrays by PyTorch's names as arrays by ours. PyTorch multiplies by transposed matrices."""
    found = {}
    for name, value in torch_arrays.items():
        side, *rest = name.split(".")
        kind = {"weight": "kernel", "bias": "bias"}[rest[-1].rpartition("_")[2]]
        value = value.T
        if rest[0] == "norm":
            found[f"{side}.last.{'gain' if kind == 'kernel' else kind}"] = value
            continue
        path, part = f"{side}.layers.{rest[1]}.", rest[2]
        if part.startswith("norm"):
            around = NORMS[side][int(part[-1]) - 1]
            found[f"{path}around_{around}.norm.{'gain' if kind == 'kernel' else kind}"] = value
        elif part == "multihead_attn" and rest[3].startswith("in_proj"):
            query, memory = np.split(value, [value.shape[-1] // 3], axis=-1)
            found |= {f"{path}cross.query.{kind}": query, f"{path}cross.memory.{kind}": memory}
        elif part == "multihead_attn":
            found[f"{path}cross.joined.{kind}"] = value
        elif rest[3].startswith("in_proj"):
            found[f"{path}{ENCODER[part]}.projections.{kind}"] = value
        else:
            joined = ".joined" if part == "self_attn" else ""
            found[f"{path}{ENCODER[part]}{joined}.{kind}"] = value
    return found


def positions(count, size):
    """Sinusoids, one number at a time."""
    rows = [[p / 10000 ** (2 * (i // 2) / size) for i in range(size)] for p in range(count)]
    return np.where(np.arange(size) % 2, np.cos(rows), np.sin(rows))


@pytest.mark.parametrize(
    ("norm", "dtype", "tolerance"),
    [("post", jnp.float64, 1e-9), ("pre", jnp.float64, 1e-9), ("post", jnp.float32, 1e-5)],
)
def test_outputs_and_gradients_are_those_of_pytorch(x64, norm, dtype, tolerance):
    stored = {name.removeprefix(f"{norm}/"): ARRAYS[name] for name in ARRAYS.files if name.startswith(f"{norm}/")}
    sizes = {"size": 6, "heads": 2, "feedforward": 7, "norm": norm}
    changes = {"model": "transformer", **{f"transformer.{name}": value for name, value in sizes.items()}}
    params = ours({name.removeprefix("weight/"): value for name, value in stored.items() if name.startswith("weight/")})
    of_weights = {name: value for name, value in stored.items() if name.startswith("gradient/") and "." in name}
    gradients = ours({name.removeprefix("gradient/"): value for name, value in of_weights.items()})
    # Every position has a symbol of its own, whose vector makes the sum of embedding and position PyTorch's input.
    ids = {}
    for side, table in (("source", "source_embedding.table"), ("target", "decoder.embedding.table")):
        batch, count, size = stored[side].shape
        ids[side] = np.arange(batch * count).reshape(batch, count)
        rows = stored[side] - positions(count, size)[None]
        params[table] = rows.reshape(-1, size) / np.sqrt(size)
        gradients[table] = stored[f"gradient/{side}"].reshape(-1, size) * np.sqrt(size)
    model = build(reference.tiny(**changes), ids["source"].size, ids["target"].size, dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    unused = {name: np.zeros(leaf.shape) for name, leaf in shapes.items() if name.startswith("decoder.output")}
    given = {name: jnp.asarray(value, dtype) for name, value in (params | unused).items()}

    @reference.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        features, _ = model.bind(params).teacher_forced(ids["source"], ~stored["padding"], ids["target"])
        return jnp.sum(features * jnp.asarray(stored["factors"], dtype)), features

    found, outputs = run(given)

    def close(found, wanted, name):
        error = np.abs(np.asarray(found, np.float64) - wanted).max()
        assert error <= tolerance * np.abs(wanted).max(), f"{name}: {error}"

    close(outputs, stored["outputs"], "outputs")
    assert found.keys() == gradients.keys() | unused.keys()
    for name, wanted in gradients.items():
        close(found[name], wanted, name)
