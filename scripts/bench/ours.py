"""The contestant `ours`: this package's own training, search and programs, and the files that peers read."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_jax import cli, devices, evaluation, grouping, program, results, storage
from attn_jax import config as configs
from attn_jax.cells import CELLS
from attn_jax.config import Config
from attn_jax.devices import Placement
from attn_jax.layers import Initializer
from attn_jax.progress import Silent
from attn_jax.recurrence import recur
from attn_jax.reuse import Run, ensemble
from attn_jax.training import States, Trainer
from bench import corpora, flops
from bench.protocol import Answer, Contestant, serve

PRODUCT = 2048
"""Rows and columns of the matrices whose product shows what the machine can do."""


class Training:
    """Steps of `Trainer.chunk`, as a study does them. runs: in one program."""

    def __init__(self, row: Mapping[str, Any]):
        self.row = row
        config, self.corpus = corpora.load(row)
        members = [configs.override(config, {"seed": seed}) for seed in range(row.get("runs", 1))]
        placement = Placement.of(len(members), config.train.batch_size)
        self.trainer = Trainer(members, self.corpus, placement=placement)
        self.states: States = self.trainer.start()
        self.length = row["count"]

    def prepare(self) -> Answer:
        """Compiles, and does the first steps."""
        done = self.run(0, self.length) if self.row["warm_up"] else {}
        sizes = {"source": len(self.corpus.source.vocabulary), "target": len(self.corpus.target.vocabulary)}
        shown = {"padding_of_corpus": self.trainer.padding, "buckets": len(self.trainer.buckets)}
        return {**done, "vocabulary": sizes, **shown}

    def run(self, first: int, count: int) -> Answer:
        """Steps and what they processed; padding is what the buckets are wide."""
        began = time.perf_counter()
        self.states, steps = self.trainer.chunk(self.states, first, count, self.length)
        seconds = time.perf_counter() - began
        work = {"source_tokens": 0, "target_tokens": 0, "positions": 0, "flops": 0}
        for step in range(first, first + count):
            source, target, _ = corpora.batch(self.trainer, step)
            each = list(zip(corpora.lengths(source).tolist(), corpora.lengths(target).tolist(), strict=True))
            work["source_tokens"] += sum(s for s, _ in each)
            work["target_tokens"] += sum(t for _, t in each)
            work["positions"] += source.size + target.size
            work["flops"] += model_flops(self.trainer.config, len(self.corpus.target.vocabulary), each)
        runs = len(self.trainer.members)
        losses = {"first_loss": float(steps.loss[0, 0]), "last_loss": float(steps.loss[-1, 0])}
        return {"seconds": seconds, "steps": count, "run_steps": runs * count, **work, **losses}


def model_flops(config: Config, vocabulary: int, each: list[tuple[int, int]]) -> int:
    """Of a step, where the formula covers the model; else 0."""
    if (config.score.name, config.encoder.name, config.readout) != ("general", "bi", "projection"):
        return 0
    return flops.training_step(
        each,
        cell=config.cell.name,
        embedding=config.embedding.size,
        encoder=config.encoder.size,
        decoder=config.decoder.size,
        vocabulary=vocabulary,
        feeding=config.input_feeding == "attentional",
        bridge=config.bridge,
    )


class Quality:
    """Trains a model from its data on, with an evaluation of dev after each epoch, and tests it in the end."""

    def __init__(self, row: Mapping[str, Any]):
        self.row = row

    def prepare(self) -> Answer:
        return {}

    def run(self, first: int, count: int) -> Answer:
        """Seconds go from before the data are read to the end of training; the test with a beam comes after it.

        curve: epoch, seconds, and of dev greedy BLEU and perplexity. dev, test: of the parameters with the best BLEU.
        """
        began = time.perf_counter()
        config, corpus = corpora.load(self.row)
        trainer = Trainer([config], corpus)
        states, limit = trainer.start(), evaluation.max_length(config, corpus)
        evaluator = evaluation.Evaluator(trainer.model, corpus, max_output=limit)
        curve: list[tuple[float, float, float, float]] = []
        best: dict[str, jax.Array] = {}
        step, length = 0, 50
        for epoch in range(1, round(config.train.epochs) + 1):
            end = min(trainer.total_steps, round(epoch * trainer.plan.steps_per_epoch))
            while step < end:
                count = min(length, end - step)
                states, _ = trainer.chunk(states, step, count, length)
                step += count
            (found,) = evaluator(states.params, "dev", greedily=True)
            if found.metrics["bleu"] > max((bleu for _, _, bleu, _ in curve), default=-1):
                best = {name: jnp.array(value) for name, value in states.params.items()}
            curve.append((epoch, time.perf_counter() - began, found.metrics["bleu"], found.metrics["perplexity"]))
            print("epoch {}: {:.0f} s, dev BLEU {:.2f}, perplexity {:.2f}".format(*curve[-1]), flush=True)
        seconds = time.perf_counter() - began
        (tested,) = evaluator(best, "test")
        dev = max(bleu for _, _, bleu, _ in curve)
        return {"seconds": seconds, "dev_bleu": dev, "test_bleu": tested.metrics["bleu"], "curve": curve}


class Export:
    """Writes the files of `corpora`, with first parameters, or for decoding those of a model that is trained.

    A trained model that is there is kept: the folder is named after its settings.
    """

    def __init__(self, row: Mapping[str, Any]):
        self.row = row

    def prepare(self) -> Answer:
        folder = Path(self.row["folder"])
        config, corpus = corpora.load(self.row)
        trainer = Trainer([config], corpus)
        corpora.write_vocabularies(folder, corpus)
        weights, steps = folder / "weights.npz", self.row.get("train_steps", 0)
        if steps:
            corpora.write_test(folder, corpus, self.row["count"])
        else:
            corpora.write_steps(folder, trainer, self.row["steps"])
        if steps and weights.exists():
            return {}
        states = trainer.start()
        for start in range(0, steps, 50):
            states, _ = trainer.chunk(states, start, min(50, steps - start), 50)
        arrays = {name: np.asarray(value[0]) for name, value in states.params.items()}
        np.savez(weights, **arrays)  # type: ignore[arg-type]
        return {}

    def run(self, first: int, count: int) -> Answer:
        raise ValueError("there is nothing to time")


class Decoding:
    """Texts in, texts out, as `experiments/translate.py` does it."""

    def __init__(self, row: Mapping[str, Any]):
        config, corpus = corpora.load(row)
        with np.load(Path(row["folder"]) / "weights.npz") as file:
            params = {name: jnp.asarray(value) for name, value in file.items()}
        model = Trainer([config], corpus).model
        limit = evaluation.max_length(config, corpus)
        run = Run(config, model, params, corpus.source, corpus.target, limit)
        changes: dict[str, Any] = {"beam_size": row["beam_size"]} if row["search"] == "beam" else {"name": "greedy"}
        self.translator, self.batch = ensemble([run]).translator(**changes), row["batch"]
        self.texts = [example.source for example in corpus.dataset.splits["test"]]
        self.count = row["count"]

    def prepare(self) -> Answer:
        """Compiles a program for every length of source that there is."""
        self.run(0, self.count)
        return {}

    def run(self, first: int, count: int) -> Answer:
        """The same `count` sentences, whatever the first."""
        began = time.perf_counter()
        found = self.translator(self.texts[:count], batch_size=self.batch)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "sentences": count, "symbols": sum(len(outputs[0].tokens) for outputs in found)}


class Recurrence:
    """Forward and backward passes of one LSTM over a batch of full length: gradients of weights and inputs."""

    def __init__(self, row: Mapping[str, Any]):
        self.size, self.batch, self.steps = row["size"], row["batch"], row["steps"]
        dtype = jnp.bfloat16 if row["precision"] == "bfloat16" else None
        rngs = nnx.Rngs(params=jax.random.key(0))
        init = Initializer(configs.Init(), rngs)
        cell = CELLS["lstm"]((self.size,), self.size, settings=configs.Cell(), init=init, dtype=dtype)
        graph, self.params = nnx.split(cell)

        def loss(params: Any, inputs: jax.Array) -> jax.Array:
            cell = nnx.merge(graph, params)
            states, _ = recur(cell, cell.project(inputs), cell.zeros(self.batch, inputs.dtype))
            return jnp.sum(states)

        self.inputs = jax.random.normal(jax.random.key(1), (self.steps, self.batch, self.size))
        self.gradient = jax.jit(jax.grad(loss, (0, 1)))

    def prepare(self) -> Answer:
        self.run(0, 1)
        return {}

    def run(self, first: int, count: int) -> Answer:
        began = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(self.gradient(self.params, self.inputs))
        seconds = time.perf_counter() - began
        each = 3 * self.steps * self.batch * flops.recurrence("lstm", self.size, self.size)
        return {"seconds": seconds, "steps": count, "flops": count * each}


class Product:
    """The matrix product of the faster of XLA and NumPy, which has no bfloat16."""

    def __init__(self, row: Mapping[str, Any]):
        host = np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)).astype(np.float32)
        device = jnp.asarray(host, row["precision"])
        product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
        self.ways: dict[str, Callable[[], Any]] = {"xla": lambda: product(device).block_until_ready()}
        if row["precision"] == "float32":
            self.ways["numpy"] = lambda: host @ host

    def prepare(self) -> Answer:
        self.run(0, 1)
        return {}

    def run(self, first: int, count: int) -> Answer:
        """Five products a unit, the fastest of which counts: the peak is what the machine can do undisturbed."""
        best: dict[str, float] = {}
        for _ in range(5 * count):
            for name, multiply in self.ways.items():
                began = time.perf_counter()
                multiply()
                best[name] = min(best.get(name, np.inf), time.perf_counter() - began)
        return {"seconds": min(best.values()), "flops": 2 * PRODUCT**3, "by": min(best, key=lambda name: best[name])}


class Study:
    """Runs from their data to their results on disk, in programs as a study has them. runs: their number."""

    def __init__(self, row: Mapping[str, Any]):
        self.config, self.corpus = corpora.load(row)
        self.runs = row["runs"]

    def prepare(self) -> Answer:
        return {}

    def run(self, first: int, count: int) -> Answer:
        members = [configs.override(self.config, {"seed": seed}) for seed in range(self.runs)]
        with tempfile.TemporaryDirectory() as folder:
            output, size = results.Output(folder), grouping.together(self.config, 0).runs
            for name in range(0, self.runs, size):
                together = members[name : name + size]
                ids = [configs.run_id(member, self.corpus.fingerprint) for member in together]
                storage.write_json(output.program(str(name)) / "program.json", {"members": ids})
                program.train(together, self.corpus, output, str(name), Silent())
        return {"seconds": 0.0, "runs": self.runs}


KINDS: Mapping[str, Any] = {
    "train": Training,
    "quality": Quality,
    "export": Export,
    "decode": Decoding,
    "recurrent": Recurrence,
    "peak": Product,
    "study": Study,
}


if __name__ == "__main__":
    cli.cache_programs()  # where the product keeps them
    devices.spread_over_cores()  # as the product does
    serve(Contestant(KINDS, f"jax {jax.__version__}"))
