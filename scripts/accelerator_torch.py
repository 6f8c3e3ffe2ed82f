"""PyTorch's answers to two cases of scripts/accelerator. Only a worker imports this file."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerator_plan import Case, Sizes


class UnavailableError(Exception):
    """The case cannot be measured here."""


class Measured:
    """As that of accelerator_jax."""

    def __init__(self, call: Callable[[], torch.Tensor]):
        self.call = call
        self.value = float(call())

    def seconds(self, calls: int) -> float:
        """Of a call, from so many."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls


def describe() -> dict[str, Any]:
    """The device and the versions. Raises UnavailableError without CUDA."""
    if not torch.cuda.is_available():
        raise UnavailableError("this PyTorch finds no CUDA device")
    # As the arms of JAX do.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return {"platform": "gpu", "device": torch.cuda.get_device_name(), "versions": {"torch": torch.__version__}}


def prepare(case: Case, sizes: Sizes) -> Measured:
    """Runs a case once."""
    return {"decoder": _decoder, "cudnn": _cudnn}[case.kind](case, sizes)


def _cudnn(case: Case, sizes: Sizes) -> Measured:
    """The gradient of an LSTM layer."""
    layer = torch.nn.LSTM(case.hidden, case.hidden).cuda()
    inputs = torch.randn(sizes.steps, sizes.batch, case.hidden, device="cuda", requires_grad=True)

    def call() -> torch.Tensor:
        loss = (layer(inputs)[0] ** 2).sum()
        torch.autograd.grad(loss, [*layer.parameters(), inputs])
        return loss.detach()

    return Measured(call)


def _decoder(case: Case, sizes: Sizes) -> Measured:
    """The gradient of a loop over an LSTMCell with general attention and input feeding."""
    size = case.hidden
    cell, attend = torch.nn.LSTMCell(2 * size, size).cuda(), torch.nn.Linear(size, size, bias=False).cuda()
    combine = torch.nn.Linear(2 * size, size, bias=False).cuda()
    embedding = torch.nn.Embedding(32, size).cuda()
    tokens = torch.randint(4, 32, (sizes.steps, sizes.batch), device="cuda")
    memory = torch.randn(sizes.batch, sizes.steps, size, device="cuda", requires_grad=True)
    leaves = [*cell.parameters(), *attend.parameters(), *combine.parameters(), *embedding.parameters(), memory]

    def call() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            keys, embedded = attend(memory), embedding(tokens)
            h = c = fed = torch.zeros(sizes.batch, size, device="cuda")
            outputs = []
            for x in embedded:
                h, c = cell(torch.cat([x, fed], dim=1), (h, c))
                weights = torch.softmax(torch.bmm(keys, h[:, :, None])[:, :, 0], dim=1)
                context = torch.bmm(weights[:, None], memory)[:, 0]
                fed = torch.tanh(combine(torch.cat([context, h], dim=1)))
                outputs.append(fed)
            loss = (torch.stack(outputs).float() ** 2).sum()
        torch.autograd.grad(loss, leaves)
        return loss.detach()

    return Measured(call)
