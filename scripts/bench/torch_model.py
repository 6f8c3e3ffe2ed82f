"""The model in PyTorch, written plainly and well: the same shapes and equations, the same parameters.

What was tried and kept, by time on two CPU cores: two one-directional `nn.LSTM` over padded batches, the second over
sources turned within their lengths, which PyTorch gives to oneDNN (a packed bidirectional `nn.LSTM` takes nearly three
times as long); `nn.LSTM` over all target steps where nothing is fed back, `LSTMCell` where something is; keys once a
source; logits and cross-entropy of all steps at once, of real positions alone; fused Adam; gradients set to None.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PAD, BOS = 0, 1
RNNS = {"lstm": nn.LSTM, "gru": nn.GRU}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}

State = tuple[Tensor, ...]
"""h and c of an LSTM, h of a GRU."""


def native(state: State) -> Any:
    """A state as PyTorch's modules take it."""
    return state if len(state) == 2 else state[0]


def parts(state: Any) -> State:
    """A state as PyTorch's modules give it."""
    return tuple(state) if isinstance(state, tuple) else (state,)


def turned(lengths: Tensor, steps: int) -> Tensor:
    """For each step of a batch where it is read from when sequences are turned within their lengths: [B, S]."""
    at = torch.arange(steps)
    return torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)


class Model(nn.Module):
    """A bidirectional encoder, a decoder with attention `general` after its cell, a projection.

    The decoder starts from zeros, or (bridge `mean`) from tanh(W mean(memory) + b): last states of padded sequences
    would need packing.
    """

    def __init__(self, row: Mapping[str, Any], source_size: int, target_size: int):
        super().__init__()
        sizes = row["changes"]
        embedding, encoder, self.size = (sizes[f"{part}.size"] for part in ("embedding", "encoder", "decoder"))
        self.cell, self.feeding = sizes["cell"], sizes["input_feeding"] != "none"
        memory, count = 2 * encoder, 2 if self.cell == "lstm" else 1
        self.source_embedding = nn.Embedding(source_size, embedding)
        self.target_embedding = nn.Embedding(target_size, embedding)
        kind = RNNS[self.cell]
        self.forward_rnn = kind(embedding, encoder, batch_first=True)
        self.backward_rnn = kind(embedding, encoder, batch_first=True)
        self.bridge = nn.ModuleList(
            [nn.Linear(memory, self.size) for _ in range(count)] if sizes["bridge"] == "mean" else []
        )
        self.count = count
        inputs = embedding + (self.size if self.feeding else 0)
        self.rnn = CELLS[self.cell](inputs, self.size) if self.feeding else kind(inputs, self.size, batch_first=True)
        self.score = nn.Linear(memory, self.size, bias=False)
        self.combine = nn.Linear(memory + self.size, self.size, bias=False)
        self.output = nn.Linear(self.size, target_size)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, State]:
        """Memory [B, S, K], keys [B, S, Q], mask [B, S] and the decoder's first state [B, Q]."""
        batch, steps = source.shape
        x, order = self.source_embedding(source), turned(lengths, steps)[:, :, None]
        mask = torch.arange(steps) < lengths[:, None]
        forwards, _ = self.forward_rnn(x)
        backwards, _ = self.backward_rnn(torch.gather(x, 1, order.expand_as(x)))
        backwards = torch.gather(backwards, 1, order.expand_as(backwards))
        memory = torch.cat([forwards, backwards], dim=2) * mask[:, :, None]
        mean = memory.sum(dim=1) / lengths[:, None]
        first = tuple(torch.tanh(layer(mean)) for layer in self.bridge)
        return memory, self.score(memory), mask, first or (memory.new_zeros(batch, self.size),) * self.count

    def attend(self, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Attentional vectors of queries [B, T, Q]."""
        scores = torch.bmm(h, keys.transpose(1, 2)).masked_fill(~mask[:, None, :], -torch.inf)
        context = torch.bmm(torch.softmax(scores, dim=2), memory)
        return torch.tanh(self.combine(torch.cat([context, h], dim=2)))

    def features(self, source: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        """What the projection reads, under teacher forcing: [B, T, Q]."""
        memory, keys, mask, state = self.encode(source, lengths)
        y = self.target_embedding(inputs)
        if not self.feeding:
            h, _ = self.rnn(y, native(tuple(part[None] for part in state)))
            return self.attend(h, memory, keys, mask)
        feed, out = y.new_zeros(y.shape[0], self.size), []
        for step in range(y.shape[1]):
            state = parts(self.rnn(torch.cat([y[:, step], feed], dim=1), native(state)))
            feed = self.attend(state[0][:, None], memory, keys, mask)[:, 0]
            out.append(feed)
        return torch.stack(out, dim=1)

    def loss(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per real target token."""
        inputs = torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)
        real = target != PAD
        logits = self.output(self.features(source, lengths, inputs)[real])
        return functional.cross_entropy(logits.float(), target[real])

    def step(self, tokens: Tensor, state: State, feed: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Any:
        """One step of a search: log-probabilities [B, V], state, fed vector."""
        x = torch.cat([self.target_embedding(tokens), feed], dim=1)
        state = parts(self.rnn(x, native(state)))
        feed = self.attend(state[0][:, None], memory, keys, mask)[:, 0]
        return torch.log_softmax(self.output(feed).float(), dim=1), state, feed
