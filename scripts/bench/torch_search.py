"""Greedy and beam search over a batch in PyTorch."""

import torch
from torch import Tensor

from bench.torch_model import Model

PAD, BOS, EOS = 0, 1, 2


def _started(model: Model, source: Tensor, lengths: Tensor) -> tuple:
    memory, keys, mask, state = model.encode(source, lengths)
    return memory, keys, mask, state, memory.new_zeros(len(source), model.size)


def greedy(model: Model, source: Tensor, lengths: Tensor, limit: int) -> list[list[int]]:
    """The likeliest symbol at each step, until every sentence has ended."""
    memory, keys, mask, state, feed = _started(model, source, lengths)
    last = torch.full((len(source),), BOS)
    done = torch.zeros(len(source), dtype=torch.bool)
    found = []
    for _ in range(limit):
        logs, state, feed = model.step(last, state, feed, memory, keys, mask)
        logs[:, [PAD, BOS]] = -torch.inf
        last = logs.argmax(dim=1).masked_fill(done, PAD)
        found.append(last)
        done |= last == EOS
        if bool(done.all()):
            break
    return [_until_end(row) for row in torch.stack(found, dim=1).tolist()]


def beam(model: Model, source: Tensor, lengths: Tensor, limit: int, width: int) -> list[list[int]]:
    """The best of `width` hypotheses by log-probability; one that has ended stays in the beam as it is."""
    memory, keys, mask, state, feed = _started(model, source, lengths)
    batch, k = len(source), width
    memory, keys, mask, feed = (part.repeat_interleave(k, dim=0) for part in (memory, keys, mask, feed))
    state = tuple(part.repeat_interleave(k, dim=0) for part in state)
    total = torch.full((batch, k), -torch.inf)
    total[:, 0] = 0
    last = torch.full((batch * k,), BOS)
    done = torch.zeros(batch * k, dtype=torch.bool)
    found = torch.empty((batch * k, 0), dtype=torch.long)
    rows = torch.arange(batch)[:, None] * k
    for _ in range(limit):
        logs, state, feed = model.step(last, state, feed, memory, keys, mask)
        logs[:, [PAD, BOS]] = -torch.inf
        logs[done] = -torch.inf
        logs[done, PAD] = 0
        size = logs.shape[1]
        total, place = (total[:, :, None] + logs.reshape(batch, k, size)).reshape(batch, -1).topk(k, dim=1)
        order, last = (rows + place // size).reshape(-1), (place % size).reshape(-1)
        state, feed = tuple(part[order] for part in state), feed[order]
        found = torch.cat([found[order], last[:, None]], dim=1)
        done = done[order] | (last == EOS)
        # A live hypothesis only loses: a sentence is done when its best has ended.
        if bool(done.reshape(batch, k)[:, 0].all()):
            break
    return [_until_end(row) for row in found.reshape(batch, k, -1)[:, 0].tolist()]


def _until_end(row: list[int]) -> list[int]:
    """A row's symbols, end-of-sentence included."""
    return row[: row.index(EOS) + 1] if EOS in row else [n for n in row if n != PAD]
