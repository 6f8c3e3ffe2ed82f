"""What checkpoints cost: a program's time with one every 100 steps and without, interleaved in one process.

    .venv/bin/python scripts/checkpoint_cost.py --segments=6

The demo's program (SCAN simple, dot score, 3 runs). Each segment does 300 steps and waits until its checkpoints are on
disk; segments with and without alternate. Prints the median time of each kind and their ratio.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from attn_jax import config, data, reuse
from attn_jax.clock import Clock
from attn_jax.data.corpus import encode
from attn_jax.progression import Position, Saving, Vault
from attn_jax.storage import write_json
from attn_jax.training import Trainer

STEPS, EVERY = 300, 100


def main() -> None:
    """Times the segments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=6, help="segments of each kind (6)")
    options = parser.parse_args()
    dataset = data.load("scan/simple")
    first = reuse.configure(dataset, {"score": "dot", "train.steps": 10_000})
    members = [config.override(first, {"seed": seed}) for seed in range(3)]
    trainer = Trainer(members, encode(dataset, first))
    now = Position.first(trainer, dataset.info.metric)
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name) / "program.json", {"members": []})
        for segment in range(-1, 2 * options.segments):
            saves = segment % 2 == 1
            vault = Vault(Path(name), members, trainer, Clock(trainer), Saving(EVERY, keep=2))
            vault._saved_step = now.step
            began = time.perf_counter()
            with vault:
                for _ in range(STEPS // EVERY):
                    now.states, _ = trainer.chunk(now.states, now.step, EVERY, EVERY)
                    now.step += EVERY
                    now.settled = now.step
                    if saves:
                        vault.keep(now, {})
            if segment >= 0:  # the first one compiles, and imports what writes checkpoints
                times[saves].append(time.perf_counter() - began)
                print(f"{'with' if saves else 'without':8s} {times[saves][-1]:.3f} s", flush=True)
    on, off = statistics.median(times[True]), statistics.median(times[False])
    print(f"{STEPS} steps: without {off:.3f} s, with a checkpoint every {EVERY} steps {on:.3f} s: {on / off - 1:+.1%}")


if __name__ == "__main__":
    main()
