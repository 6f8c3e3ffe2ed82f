"""Writes tests/arrays/torch_transformer.npz: outputs and gradients of `torch.nn.Transformer`, with its weights.

    python3.11 -m venv torchenv && torchenv/bin/pip install torch numpy
    torchenv/bin/python scripts/torch_transformer_arrays.py

Two layers a side, relu, a padded batch, a causal target mask, no dropout; for layer norm after (`post/`) and before
(`pre/`) each sublayer. PyTorch ends each stack with one more norm; the publication has it before the sublayers only, so
with `post` it is taken out. Everything is computed in float64. The arrays have PyTorch's names and shapes;
tests/test_torch_transformer.py says which of our parameters is which.
"""

import platform
from pathlib import Path

import numpy as np
import torch

SIZE, HEADS, LAYERS, FEEDFORWARD = 6, 2, 2, 7
SOURCE_LENGTHS, STEPS = (5, 2, 4), 6
OUT = Path(__file__).resolve().parent.parent / "tests" / "arrays" / "torch_transformer.npz"


def arrays(pre: bool) -> dict[str, np.ndarray]:
    """Weights, inputs, outputs [B, T, E], and the gradients of sum(outputs * factors) of one model."""
    torch.manual_seed(1 + pre)
    torch.set_default_dtype(torch.float64)
    model = torch.nn.Transformer(
        SIZE,
        HEADS,
        LAYERS,
        LAYERS,
        FEEDFORWARD,
        dropout=0.0,
        activation="relu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=pre,
    )
    if not pre:
        model.encoder.norm = model.decoder.norm = None
    with torch.no_grad():
        for parameter in model.parameters():  # other than first values, no bias is zero and no gain one
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch, longest = len(SOURCE_LENGTHS), max(SOURCE_LENGTHS)
    source = torch.randn(batch, longest, SIZE, requires_grad=True)
    target = torch.randn(batch, STEPS, SIZE, requires_grad=True)
    factors = torch.randn(batch, STEPS, SIZE)
    padding = torch.arange(longest)[None] >= torch.tensor(SOURCE_LENGTHS)[:, None]
    outputs = model(
        source,
        target,
        tgt_mask=torch.triu(torch.ones(STEPS, STEPS, dtype=torch.bool), 1),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    (outputs * factors).sum().backward()
    found = {"source": source, "target": target, "factors": factors, "padding": padding, "outputs": outputs}
    found |= {"gradient/source": source.grad, "gradient/target": target.grad}
    for name, parameter in model.named_parameters():
        found |= {f"weight/{name}": parameter, f"gradient/{name}": parameter.grad}
    return {name: value.detach().numpy() for name, value in found.items()}


if __name__ == "__main__":
    found = {f"{norm}/{name}": value for norm in ("post", "pre") for name, value in arrays(norm == "pre").items()}
    versions = f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, versions=versions, **found)
    print(f"{OUT}: {OUT.stat().st_size} bytes, {versions}")
