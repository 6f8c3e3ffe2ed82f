"""Recurrent layers against PyTorch's, whose results lie in tests/arrays (scripts/torch_arrays.py writes them)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from attn_jax.encoders import DIRECTIONS, Encoder

ARRAYS = Path(__file__).parent / "arrays"
CELLS = ("lstm", "gru", "rnn")


def stored(cell):
    with np.load(ARRAYS / f"{cell}.npz") as file:
        return dict(file)


def at_cells(encoder, weights):
    """PyTorch's weights, or gradients, as {path: (value, how the bias is made of PyTorch's two)} of our parameters."""
    found = {}
    for layer, directions in enumerate(encoder.layers):
        for number, _ in enumerate(directions):
            suffix = f"l{layer}" + ("_reverse" if number else "")
            part = {name: weights[f"{name}_{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            path = f"layers.{layer}.{number}"
            found[f"{path}.kernels.0"] = part["weight_ih"].T
            found[f"{path}.recurrent"] = part["weight_hh"].T
            found[f"{path}.bias"] = part["bias_ih"], part["bias_hh"]
    return found


def copied(encoder, cell, weights):
    """Our parameters for PyTorch's weights. Its two biases are one here, but for the GRU's candidate."""
    params = {}
    for path, value in at_cells(encoder, weights).items():
        if not path.endswith(".bias"):
            params[path] = value
            continue
        from_input, from_state = value
        params[path] = from_input + from_state
        if cell == "gru":
            size = encoder.size
            params[path][2 * size :] = from_input[2 * size :]
            params[path.replace(".bias", ".candidate_bias")] = from_state[2 * size :]
    return params


def expected_gradients(encoder, cell, gradients):
    """PyTorch's gradients by the paths of our parameters."""
    found = {}
    for path, value in at_cells(encoder, gradients).items():
        if not path.endswith(".bias"):
            found[path] = value
            continue
        found[path], from_state = value
        if cell == "gru":
            found[path.replace(".bias", ".candidate_bias")] = from_state[2 * encoder.size :]
    return found


def by_layer(states, directions):
    """PyTorch's last states [layers * directions, B, H] as a part of our summary [B, layers, directions * H]."""
    count, batch, size = states.shape
    apart = states.reshape(count // directions, directions, batch, size)
    return apart.transpose(2, 0, 1, 3).reshape(batch, -1, directions * size)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_last_states_and_gradients_are_those_of_pytorch(cell, direction, layers):
    arrays = stored(cell)
    case = reference.under(arrays, f"{direction}-{layers}/")
    lengths, size = arrays["lengths"], case["weights/weight_hh_l0"].shape[1]
    changes = {"encoder": direction, "encoder.layers": layers, "encoder.size": size, "cell.forget_bias": 0.0}
    config = reference.tiny(cell=cell, **changes)
    _, steps, width = case["inputs"].shape
    mask = np.arange(steps)[None] < lengths[:, None]
    factors = case["output_factors"], reference.under(case, "last_factors/")
    states = ("h", "c") if cell == "lstm" else ("h",)

    for precision, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        expected = reference.under(case, f"{precision}/")
        with jax.enable_x64(precision == "float64"):
            dtype = jnp.dtype(precision)
            encoder = Encoder(width, config, init=reference.initializer(dtype, "uniform"))
            graph, state = nnx.split(encoder)
            # To their precision before the two biases are added.
            given = {name: value.astype(dtype) for name, value in reference.under(case, "weights/").items()}
            weights = copied(encoder, cell, given)
            paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
            assert paths.keys() == weights.keys()
            params = {name: jnp.asarray(value, dtype) for name, value in weights.items()}

            @reference.jit
            def run(params, inputs, graph=graph, paths=paths, dtype=dtype):
                def loss(params, inputs):
                    flat = [(paths[name], nnx.Param(value)) for name, value in params.items()]
                    found = nnx.merge(graph, nnx.from_flat_state(flat))(jnp.swapaxes(inputs, 0, 1), mask)
                    total = jnp.sum(found.states * factors[0].astype(dtype))
                    for name, last in zip(states, found.summary, strict=True):
                        total += jnp.sum(last * by_layer(factors[1][name], len(DIRECTIONS[direction])).astype(dtype))
                    return total, found

                return jax.grad(loss, (0, 1), has_aux=True)(params, inputs)

            (by_params, by_inputs), found = run(params, jnp.asarray(case["inputs"], dtype))

        def close(one, other, what, tolerance=tolerance):
            # Relative to the largest of an array: elements that nearly cancel have no digits of their own.
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=what)

        close(found.states, expected["outputs"], f"{precision} outputs")
        for name, last in zip(states, found.summary, strict=True):
            close(last, by_layer(expected[f"last/{name}"], len(DIRECTIONS[direction])), f"{precision} last {name}")
        close(by_inputs, expected["gradients/inputs"], f"{precision} gradient of inputs")
        wanted = expected_gradients(encoder, cell, reference.under(expected, "gradients/"))
        assert wanted.keys() == by_params.keys()
        for name, value in wanted.items():
            close(by_params[name], value, f"{precision} gradient of {name}")


def test_the_arrays_say_what_made_them():
    for cell in CELLS:
        versions = stored(cell)["versions"].tolist()
        assert [version.split()[0] for version in versions] == ["torch", "numpy"]
