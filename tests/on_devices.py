"""Trains one small program on several meshes, in one process or in several, and keeps what came out.

Run by tests/test_devices.py and scripts/devices.py. The program has dropout, two buckets, a run that stops early and
one that overflows.
"""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import tiny
from absl import flags

from attn_jax import cli, cli_flags, processes
from attn_jax.data.corpus import encode
from attn_jax.devices import MeshShape, Placement, fetch
from attn_jax.evaluation import Evaluator
from attn_jax.selection import Selection
from attn_jax.training import States, Trainer

STEPS, EVERY, LIMIT = 20, 5, 5

COLLECTIVE = re.compile(r"\b(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)[-\w]*\(")

COMMON = {
    "cell": "gru",
    "score": "general",
    "input_feeding": "attentional",
    "train.batch_size": 4,
    "train.buckets": 2,
    "train.steps": STEPS,
    "dropout.embedding": 0.3,
    "dropout.readout": 0.1,
    "loss.label_smoothing": 0.1,
    "optim.clip_norm": 0.5,
    "decode": "beam",
    "decode.beam_size": 2,
}
RATES = (0.05, 1e-300, 0.01, 1e308)
"""Of the four runs: the second one never gets better, the last one overflows."""

cli_flags.define_devices()
flags.DEFINE_list("meshes", ["run=1"], "meshes, a + for the comma in each")
flags.DEFINE_integer("bits", 64, "of numbers: 32 or 64")
flags.DEFINE_string("results", "", "file of the results, .npz, PROCESS in its name for the number of the process")
flags.DEFINE_string(
    "checkpoint", "", "directory; the first mesh writes its states half-way, the others go on from there"
)
flags.DEFINE_bool("forever", False, "then train on the last mesh until killed")


class Setting:
    """The program on one mesh."""

    def __init__(self, mesh: str):
        bits = flags.FLAGS.bits
        config = tiny.config(**{path.replace(".", "__"): value for path, value in COMMON.items()})
        rates = RATES if bits == 64 else (0.05, 1e-30, 0.01, 1e30)
        members = [
            tiny.changed(config, {"optim.learning_rate": rate, "seed": 7 - run, "dropout.embedding": 0.1 + 0.1 * run})
            for run, rate in enumerate(rates)
        ]
        corpus = encode(tiny.dataset(train=23), config)
        self.placement = Placement.of(len(members), config.train.batch_size, MeshShape.parse(mesh))
        self.trainer = Trainer(members, corpus, dtype=np.dtype(f"float{bits}"), placement=self.placement)
        assert len(self.trainer.buckets) == 2
        self.evaluator = Evaluator(self.trainer.model, corpus, max_output=LIMIT, placement=self.placement)

    def train(self, states: States, first: int, last: int) -> tuple[States, Selection, list[np.ndarray]]:
        """As `program.train` does."""
        selection, losses = Selection.start(len(RATES), "loss", 1, states.params), []
        for step in range(first, last, EVERY):
            states, report = self.trainer.chunk(states, step, EVERY, EVERY)
            losses.append(report.loss)
            selection.note_failures(fetch(states.failed))
            found = self.evaluator(states.params, "dev", decode=False)
            selection.update(np.array([one.metrics["loss"] for one in found]), states.params, step + EVERY)
            states = states._replace(active=self.placement.place(selection.going))
        return states, selection, losses

    def compiled(self) -> jax.stages.Compiled:
        """The program of a dispatch."""
        trainer = self.trainer
        rows = self.placement.put(np.zeros((EVERY, len(RATES), 4), np.int32), None, "run", "data")
        ids = np.zeros(EVERY, np.int32)
        states = jax.eval_shape(trainer.start)
        states = self.placement.abstract(states, "run")
        lowered = trainer._chunk.lower(states, trainer._data, trainer.numbers, trainer.keys, 0, EVERY, ids, rows)
        return lowered.compile()

    def exchanges(self, training: jax.stages.Compiled) -> int:
        """Collectives of the program of a dispatch, and of those of searches."""
        params = self.placement.abstract(jax.eval_shape(self.trainer.start).params, "run")
        batch = self.evaluator.batches("dev")[0]
        settings = self.trainer.config.decode
        searches = [
            self.evaluator._program(each).lower(params, self.evaluator._seeds, *batch[1:]).compile().as_text()
            for each in (settings, dataclasses.replace(settings, name="greedy"))
        ]
        return len(COLLECTIVE.findall("".join([training.as_text(), *searches])))

    def results(self) -> dict[str, np.ndarray]:
        """Everything that comes out of 20 steps."""
        states, selection, losses = self.train(self.trainer.start(), 0, STEPS)
        tested = self.evaluator(selection.params, "test")
        greedily = self.evaluator(selection.params, "test", greedily=True)
        out = {f"params/{name}": value for name, value in fetch(states.params).items()}
        out |= {f"selected/{name}": value for name, value in fetch(selection.params).items()}
        out |= {f"optimizer/{n}": leaf for n, leaf in enumerate(jax.tree.leaves(fetch(states.optimizer)))}
        out |= {"losses": np.concatenate(losses)[:, :3], "loss": np.array([one.metrics["loss"] for one in tested])}
        program = self.compiled() if processes.count() == 1 else None
        exact = {
            "active": fetch(states.active),
            "failed": fetch(states.failed),
            "step": selection.step,
            "stopped": np.array([str(stop) for stop in selection.stopped]),
            "predictions": np.array([one.predictions for one in tested]),
            "greedy": np.array([one.predictions for one in greedily]),
            "devices": np.array(states.params["decoder.output.bias"].sharding.num_devices),
            "flops": np.array(program.cost_analysis()["flops"] if program else 0.0),
            "exchanges": np.array(self.exchanges(program) if program else 0),
            "aliased": np.array(program.memory_analysis().alias_size_in_bytes if program else 0),
            "states": np.array(sum(leaf.nbytes for leaf in jax.tree.leaves(fetch(states)))),
        }
        return out | {f"exact/{name}": value for name, value in exact.items()}

    def resumed(self, directory: Path, *, write: bool) -> dict[str, np.ndarray]:
        """The parameters after 20 steps, the last 10 of them from a checkpoint."""
        from orbax.checkpoint import v1

        first = jax.eval_shape(self.trainer.start)
        if write:
            states, *_ = self.trainer.chunk(self.trainer.start(), 0, EVERY, EVERY)
            states, *_ = self.trainer.chunk(states, EVERY, EVERY, EVERY)
            v1.save(directory, states._asdict())
        restored = v1.load(directory, self.placement.abstract(first, "run")._asdict())
        states = States(**restored)
        assert states.params["decoder.output.bias"].sharding.num_devices == self.placement.sharding("run").num_devices
        for step in (10, 15):
            states, _ = self.trainer.chunk(states, step, EVERY, EVERY)
        return {f"resumed/{name}": value for name, value in fetch(states.params).items()}


def main() -> None:
    """Trains on each mesh in turn."""
    given = flags.FLAGS
    jax.config.update("jax_enable_x64", given.bits == 64)
    jax.config.update("jax_disable_most_optimizations", True)
    found: dict[str, np.ndarray] = {}
    for number, mesh in enumerate(given.meshes):
        setting = Setting(mesh.replace("+", ","))
        results = setting.results()
        if given.checkpoint:
            results |= setting.resumed(Path(given.checkpoint), write=number == 0)
        found |= {f"{mesh}:{name}": value for name, value in results.items()}
    np.savez(given.results.replace("PROCESS", str(processes.index())), **found)
    while given.forever:
        setting.train(setting.trainer.start(), 0, STEPS)
        print("trained", flush=True)


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
