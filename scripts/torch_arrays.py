"""Writes tests/arrays/{lstm,gru,rnn}.npz: what PyTorch's recurrent layers compute, for tests/test_torch.py.

PyTorch is no dependency of anything else here. To write the arrays again:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    /tmp/torch/bin/python scripts/torch_arrays.py

A file holds the versions of PyTorch and NumPy, the lengths of the sequences, and, for every case `DIRECTION-LAYERS`,
weights, inputs and the factors of the loss sum(outputs * output_factors) + sum(last * last_factors); then, computed in
each precision, the padded outputs [B, T, D H], the last state of every layer and direction [L D, B, H], and the
gradient of the loss with respect to inputs and weights. `reversed` is the one-directional layer on each sequence turned
around within its length.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LENGTHS, INPUT, SIZE = [3, 5, 1, 4], 2, 3
CELLS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def turned(x: torch.Tensor) -> torch.Tensor:
    """Each sequence of a padded batch [B, T, F] from its end."""
    steps = torch.arange(x.shape[1])
    length = torch.tensor(LENGTHS)[:, None]
    order = torch.where(steps < length, length - 1 - steps, steps)
    return torch.gather(x, 1, order[:, :, None].expand(x.shape))


def case(cell: str, direction: str, layers: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one case. Weights, inputs and factors are float32, so that both precisions start from the same."""
    module = CELLS[cell](INPUT, SIZE, num_layers=layers, bidirectional=direction == "bi", batch_first=True)
    directions = 2 if direction == "bi" else 1
    states = ("h", "c") if cell == "lstm" else ("h",)

    def normal(*shape: int) -> np.ndarray:
        return (0.7 * draw.normal(size=shape)).astype(np.float32)

    given = {f"weights/{name}": normal(*weight.shape) for name, weight in module.named_parameters()}
    given["inputs"] = normal(len(LENGTHS), max(LENGTHS), INPUT)
    given["output_factors"] = normal(len(LENGTHS), max(LENGTHS), directions * SIZE)
    for state in states:
        given[f"last_factors/{state}"] = normal(layers * directions, len(LENGTHS), SIZE)

    found = dict(given)
    for precision, dtype in PRECISIONS.items():
        module.to(dtype).zero_grad()
        arrays = {name: torch.tensor(value, dtype=dtype) for name, value in given.items()}
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(arrays[f"weights/{name}"])
        inputs = arrays["inputs"].requires_grad_()
        read = turned(inputs) if direction == "reversed" else inputs
        packed, last = module(pack_padded_sequence(read, LENGTHS, batch_first=True, enforce_sorted=False))
        outputs, _ = pad_packed_sequence(packed, batch_first=True)
        outputs = turned(outputs) if direction == "reversed" else outputs
        last = dict(zip(states, last if cell == "lstm" else (last,), strict=True))
        loss = (outputs * arrays["output_factors"]).sum()
        loss = loss + sum((value * arrays[f"last_factors/{state}"]).sum() for state, value in last.items())
        loss.backward()
        results = {"outputs": outputs, "gradients/inputs": inputs.grad}
        results |= {f"last/{state}": value for state, value in last.items()}
        results |= {f"gradients/{name}": weight.grad for name, weight in module.named_parameters()}
        found |= {f"{precision}/{name}": value.detach().numpy() for name, value in results.items()}
    return found


def main() -> None:
    """Writes a file for each cell."""
    folder = Path(__file__).resolve().parent.parent / "tests" / "arrays"
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for cell in CELLS:
        arrays = {"versions": np.array([f"torch {torch.__version__}", f"numpy {np.__version__}"])}
        arrays["lengths"] = np.array(LENGTHS)
        for direction in ("uni", "reversed", "bi"):
            for layers in (1, 2):
                found = case(cell, direction, layers, draw)
                arrays |= {f"{direction}-{layers}/{name}": value for name, value in found.items()}
        np.savez_compressed(folder / f"{cell}.npz", **arrays)


if __name__ == "__main__":
    main()
