"""Parameters of this package, by its names, as PyTorch's modules have them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bench.torch_model import Model

Weights = Mapping[str, np.ndarray]


def tensor(array: np.ndarray) -> Tensor:
    """A contiguous copy."""
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def recurrent(weights: Weights, place: str, suffix: str = "") -> dict[str, Tensor]:
    """A cell's parameters by PyTorch's names. Gates have the same order; what is one bias here is two there."""
    kernels = [weights[f"{place}.kernels.{n}"] for n in range(9) if f"{place}.kernels.{n}" in weights]
    bias = weights[f"{place}.bias"]
    of_state = np.zeros_like(bias)
    if f"{place}.candidate_bias" in weights:
        candidate = weights[f"{place}.candidate_bias"]
        of_state[-len(candidate) :] = candidate
    arrays = {
        "weight_ih": np.concatenate(kernels).T,
        "weight_hh": weights[f"{place}.recurrent"].T,
        "bias_ih": bias,
        "bias_hh": of_state,
    }
    return {name + suffix: tensor(array) for name, array in arrays.items()}


def load(model: Model, weights: Weights) -> None:
    """Gives a model these parameters. Raises RuntimeError where they do not fit."""
    found = {
        "source_embedding.weight": tensor(weights["source_embedding.table"]),
        "target_embedding.weight": tensor(weights["decoder.embedding.table"]),
        "combine.weight": tensor(weights["decoder.core.combine.dense.kernel"].T),
        "output.weight": tensor(weights["decoder.output.kernel"].T),
        "output.bias": tensor(weights["decoder.output.bias"]),
    }
    for number in range(len(model.bridge)):
        found[f"bridge.{number}.weight"] = tensor(weights[f"decoder.bridge.dense.{number}.kernel"].T)
        found[f"bridge.{number}.bias"] = tensor(weights[f"decoder.bridge.dense.{number}.bias"])
    for name, place in (("forward_rnn", "encoder.layers.0.0"), ("backward_rnn", "encoder.layers.0.1")):
        found |= {f"{name}.{key}": value for key, value in recurrent(weights, place, "_l0").items()}
    suffix = "" if model.feeding else "_l0"
    found |= {f"rnn.{key}": value for key, value in recurrent(weights, "decoder.core.cells.0", suffix).items()}
    found["score.weight"] = score(weights)
    model.load_state_dict(found)


def score(weights: Weights) -> Tensor:
    """The matrix that makes keys of memory, for scores query . (W memory)."""
    return tensor(weights["decoder.core.attention.score.kernel"].T)
