"""The contestant `joeynmt`: its own training loop and its own prediction, on the same sentences.

Its batches are its own: it shuffles the sentences of a repetition and pads them, so that the same real tokens take more
positions. It appends end-of-sentence to sources, starts the decoder from one dense layer of the last states, and has no
bias in its projection. For decoding it gets the parameters that the others have, and with them what makes the models
one: no end-of-sentence after sources, a bias, a decoder that starts from zeros.
"""

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joeynmt
import numpy as np
import torch
from joeynmt.config import parse_global_args, set_validation_args
from joeynmt.prediction import predict, prepare
from joeynmt.training import TrainManager
from torch import nn

from bench import torch_weights
from bench.protocol import Answer, Contestant, serve

ORDER = (3, 0, 1, 2)
"""Where its first four symbols (<unk>, <pad>, <s>, </s>) are among ours."""


def configuration(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What one would write in its YAML file."""
    folder, changes = Path(row["folder"]), row["changes"]
    decoding = row["kind"] == "decode"

    def side(language: str) -> dict[str, Any]:
        return {
            "lang": language,
            "level": "word",
            "voc_file": str(folder / f"vocabulary.{language}"),
            "max_length": -1,
        }

    def part(name: str) -> dict[str, Any]:
        return {
            "type": "recurrent",
            "rnn_type": changes["cell"],
            "embeddings": {"embedding_dim": changes["embedding.size"], "scale": False},
            "hidden_size": changes[f"{name}.size"],
            "num_layers": 1,
            "dropout": 0.0,
        }

    decoder = {
        "attention": "luong",
        "init_hidden": "zero" if decoding else "bridge",
        "input_feeding": changes["input_feeding"] != "none",
    }
    return {
        "name": "benchmark",
        "joeynmt_version": joeynmt.__version__,
        "model_dir": place,
        "use_cuda": False,
        "random_seed": 0,
        "data": {
            "train": str(folder / ("test" if decoding else "steps")),
            "dev": str(folder / ("test" if decoding else "steps")),
            "dataset_type": "plain",
            "src": side("en"),
            "trg": side("de"),
        },
        "model": {
            "initializer": "xavier_uniform",
            "bias_initializer": "zeros",
            "encoder": {**part("encoder"), "bidirectional": True},
            "decoder": {**part("decoder"), **decoder},
        },
        "training": {
            "optimizer": "adam",
            "learning_rate": changes["optim.learning_rate"],
            "learning_rate_min": 1e-8,
            "scheduling": "exponential",
            "decrease_factor": 1.0,
            "clip_grad_norm": changes["optim.clip_norm"],
            "batch_size": changes["train.batch_size"],
            "batch_type": "sentence",
            "normalization": "tokens",
            "epochs": 1,
            "shuffle": True,
            "logging_freq": 100,
            "validation_freq": 10**9,
        },
        "testing": {
            "batch_size": row.get("batch", 64),
            "batch_type": "sentence",
            "beam_size": row["beam_size"] if row.get("search") == "beam" else 1,
            "beam_alpha": -1,
            "eval_metrics": [],
        },
    }


class Base:
    """Its model and data sets. What it writes goes to a directory that is thrown away."""

    def __init__(self, row: Mapping[str, Any]):
        self.row, self.folder = row, Path(row["folder"])
        self.place = tempfile.TemporaryDirectory(prefix="joeynmt-")
        self.args = parse_global_args(configuration(row, self.place.name), rank=0, mode="train")
        self.model, self.train, self.dev, _ = prepare(self.args, rank=0, mode="train")


class Training(Base):
    """An epoch of its training loop over the sentences of the steps that are asked for."""

    def __init__(self, row: Mapping[str, Any]):
        super().__init__(row)
        self.texts = {language: list(self.train.data[language]) for language in ("en", "de")}
        self.manager = TrainManager(
            rank=0,
            model=self.model,
            model_dir=self.args.model_dir,
            device=self.args.device,
            autocast=self.args.autocast,
            seed=self.args.seed,
            train_args=self.args.train,
            dev_args=set_validation_args(self.args.test),
        )
        # Its loop saves a checkpoint when it ends; an epoch of a few steps would be mostly that.
        self.manager._save_checkpoint = lambda *_: None

    def prepare(self) -> Answer:
        if self.row["warm_up"]:
            return self.run(0, self.row["count"])
        return {}

    def run(self, first: int, count: int) -> Answer:
        size = self.row["changes"]["train.batch_size"]
        part = slice(first * size, (first + count) * size)
        self.train.data = {language: lines[part] for language, lines in self.texts.items()}
        self.train.reset_indices()
        counted = {"source_tokens": 0, "target_tokens": 0, "positions": 0}
        step = self.manager._train_step

        def counting(batch: Any) -> Any:
            counted["source_tokens"] += int(batch.src_length.sum())
            counted["target_tokens"] += batch.ntokens
            counted["positions"] += batch.src.numel() + batch.trg.numel()
            return step(batch)

        self.manager._train_step = counting
        began = time.perf_counter()
        self.manager.train_and_validate(train_data=self.train, valid_data=self.dev)
        seconds = time.perf_counter() - began
        self.manager._train_step = step
        return {"seconds": seconds, "steps": count, **counted}


class Decoding(Base):
    """`joeynmt.prediction.predict` on the test sentences: its batches, its search, its texts."""

    def __init__(self, row: Mapping[str, Any]):
        super().__init__(row)
        with np.load(self.folder / "weights.npz") as file:
            load(self.model, dict(file))
        encode = self.dev.sequence_encoder["en"]
        self.dev.sequence_encoder = {
            **self.dev.sequence_encoder,
            "en": lambda sentences, bos, eos: encode(sentences, bos=bos, eos=False),
        }

    def prepare(self) -> Answer:
        self.run(0, 0)
        return {}

    def run(self, first: int, count: int) -> Answer:
        began = time.perf_counter()
        _, _, _, tokens, _, _ = predict(
            model=self.model,
            data=self.dev,
            device=self.args.device,
            n_gpu=0,
            normalization=self.args.train.normalization,
            args=self.args.test,
            autocast=self.args.autocast,
        )
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "sentences": len(tokens), "symbols": sum(map(len, tokens))}


def load(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Gives its model the parameters of this package, with symbols in its order."""

    def symbols(array: np.ndarray) -> np.ndarray:
        return array[[*ORDER, *range(len(ORDER), len(array))]]

    size = weights["decoder.core.combine.dense.kernel"].shape[1]
    kernel = weights["decoder.core.combine.dense.kernel"]
    memory = len(kernel) - size
    output = nn.Linear(size, len(weights["decoder.output.bias"]))
    model.decoder.output_layer = output
    found = {
        "src_embed.lut.weight": torch_weights.tensor(symbols(weights["source_embedding.table"])),
        "trg_embed.lut.weight": torch_weights.tensor(symbols(weights["decoder.embedding.table"])),
        "decoder.output_layer.weight": torch_weights.tensor(symbols(weights["decoder.output.kernel"].T)),
        "decoder.output_layer.bias": torch_weights.tensor(symbols(weights["decoder.output.bias"])),
        # It has the state before the context.
        "decoder.att_vector_layer.weight": torch_weights.tensor(np.concatenate([kernel[memory:], kernel[:memory]]).T),
        "decoder.att_vector_layer.bias": torch.zeros(size),
        "decoder.attention.key_layer.weight": torch_weights.score(weights),
    }
    places = [
        ("encoder.rnn", "encoder.layers.0.0", "_l0"),
        ("encoder.rnn", "encoder.layers.0.1", "_l0_reverse"),
        ("decoder.rnn", "decoder.core.cells.0", "_l0"),
    ]
    for name, place, suffix in places:
        of_cell = torch_weights.recurrent(weights, place, suffix)
        found |= {f"{name}.{key}": value for key, value in of_cell.items()}
    model.load_state_dict(found)


KINDS: Mapping[str, Any] = {"train": Training, "decode": Decoding}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.getLogger().setLevel(logging.WARNING)
    serve(Contestant(KINDS, f"joeynmt {joeynmt.__version__}, torch {torch.__version__}"))
