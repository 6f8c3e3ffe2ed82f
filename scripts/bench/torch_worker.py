"""The contestant `pytorch`: the same batches, parameters and searches in PyTorch."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench import torch_search, torch_weights
from bench.flops import recurrence
from bench.protocol import Answer, Contestant, serve
from bench.torch_model import Model

BATCH = 64
PRODUCT = 2048


def autocast(row: Mapping[str, Any]) -> Any:
    """PyTorch's own mixed precision on CPU, where a row asks for bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=row["precision"] == "bfloat16")


def ragged(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Sequences that lie one after another."""
    return np.split(flat, np.cumsum(lengths)[:-1])


def padded(sequences: list[np.ndarray]) -> Tensor:
    """[B, T] as wide as the longest."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(ids.astype(np.int64)) for ids in sequences], batch_first=True)


def batches(folder: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sources, their lengths, and targets of every step, each batch as wide as its own longest sentences."""
    with np.load(folder / "steps.npz") as file:
        sides = [ragged(file[side], file[f"{side}_lengths"]) for side in ("source", "target")]
    found = []
    for start in range(0, len(sides[0]), BATCH):
        source, target = (side[start : start + BATCH] for side in sides)
        found.append((padded(source), torch.tensor([len(ids) for ids in source]), padded(target)))
    return found


def model_of(row: Mapping[str, Any]) -> Model:
    """The model with the parameters of the row's folder."""
    with np.load(Path(row["folder"]) / "weights.npz") as file:
        weights = dict(file)
    sizes = (len(weights[name]) for name in ("source_embedding.table", "decoder.embedding.table"))
    model = Model(row, *sizes)
    torch_weights.load(model, weights)
    return model


class Training:
    """Forward, backward, clipping and Adam."""

    def __init__(self, row: Mapping[str, Any]):
        self.row, self.batches, self.model = row, batches(Path(row["folder"])), model_of(row)
        self.clip = row["changes"]["optim.clip_norm"]
        rate = row["changes"]["optim.learning_rate"]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, fused=True)

    def prepare(self) -> Answer:
        if self.row["warm_up"]:
            return self.run(0, self.row["count"])
        return {}

    def run(self, first: int, count: int) -> Answer:
        losses, work = [], {"source_tokens": 0, "target_tokens": 0, "positions": 0}
        began = time.perf_counter()
        for source, lengths, target in self.batches[first : first + count]:
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.row):
                loss = self.model.loss(source, lengths, target)
            loss.backward()
            clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - began
        for source, lengths, target in self.batches[first : first + count]:
            work["source_tokens"] += int(lengths.sum())
            work["target_tokens"] += int((target != 0).sum())
            work["positions"] += source.numel() + target.numel()
        ends = {"first_loss": float(losses[0]), "last_loss": float(losses[-1])}
        return {"seconds": seconds, "steps": count, **work, **ends}


class Decoding:
    """Batches of similar lengths, ids in and ids out."""

    def __init__(self, row: Mapping[str, Any]):
        self.row, self.model = row, model_of(row).eval()
        with np.load(Path(row["folder"]) / "test.npz") as file:
            sources = sorted(ragged(file["ids"], file["lengths"]), key=len)
        parts = [sources[start : start + row["batch"]] for start in range(0, len(sources), row["batch"])]
        self.batches = [(padded(part), torch.tensor([len(ids) for ids in part])) for part in parts]

    def prepare(self) -> Answer:
        self.run(0, 0)
        return {}

    def run(self, first: int, count: int) -> Answer:
        began = time.perf_counter()
        with torch.inference_mode(), autocast(self.row):
            found = list(self._found())
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "sentences": len(found), "symbols": sum(map(len, found))}

    def _found(self) -> Iterator[list[int]]:
        for source, lengths in self.batches:
            limit = 2 * source.shape[1] + 10
            if self.row["search"] == "greedy":
                yield from torch_search.greedy(self.model, source, lengths, limit)
            else:
                yield from torch_search.beam(self.model, source, lengths, limit, self.row["beam_size"])


class Recurrence:
    """Forward and backward passes of `nn.LSTM`: gradients of weights and inputs."""

    def __init__(self, row: Mapping[str, Any]):
        self.row, size = row, row["size"]
        self.rnn = nn.LSTM(size, size)
        self.inputs = torch.randn(row["steps"], row["batch"], size, requires_grad=True)

    def prepare(self) -> Answer:
        self.run(0, 1)
        return {}

    def run(self, first: int, count: int) -> Answer:
        began = time.perf_counter()
        for _ in range(count):
            self.rnn.zero_grad(set_to_none=True)
            self.inputs.grad = None
            with autocast(self.row):
                states, _ = self.rnn(self.inputs)
            states.float().sum().backward()
        seconds = time.perf_counter() - began
        size = self.row["size"]
        each = 3 * self.row["steps"] * self.row["batch"] * recurrence("lstm", size, size)
        return {"seconds": seconds, "steps": count, "flops": count * each}


class Product:
    """The matrix product of PyTorch."""

    def __init__(self, row: Mapping[str, Any]):
        self.matrix = torch.randn(PRODUCT, PRODUCT, dtype=getattr(torch, row["precision"]))

    def prepare(self) -> Answer:
        self.run(0, 1)
        return {}

    def run(self, first: int, count: int) -> Answer:
        """Five products a unit, the fastest of which counts."""
        best = np.inf
        for _ in range(5 * count):
            began = time.perf_counter()
            self.matrix @ self.matrix
            best = min(best, time.perf_counter() - began)
        return {"seconds": best, "flops": 2 * PRODUCT**3}


KINDS: Mapping[str, Any] = {"train": Training, "decode": Decoding, "recurrent": Recurrence, "peak": Product}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    serve(Contestant(KINDS, f"torch {torch.__version__}"))
