"""Kills a small study at random moments and resumes it with the same command, until enough kills were survived.

    scripts/torture --kills=50 --terms=20 --seed=0

The study has two programs of four runs, which are spread over the cores, dropout, early stopping, and a checkpoint
every 20 steps. It is done once without interruption. Then it is begun in empty directories again and again; each
process is killed after a random part of the time that the whole study took (of more and more of it), and started again
with the same command, until the study is complete and equals the first one bit for bit: results.csv, metrics,
predictions, and parameters of every run. SIGKILL first, then SIGTERM, which must end with exit code 75 or find the
study complete.
"""

import argparse
import collections
import difflib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from attn_jax import checkpoint

ROOT = Path(__file__).resolve().parent.parent

STUDY = [
    *("experiments/compare_scores.py", "--dataset=synthetic/reverse", "--scores=none,dot", "--seeds=4"),
    *("--hidden_size=16", "--steps=400", "--set=train.eval_every=50", "--set=train.patience=3"),
    *("--set=dropout.embedding=0.1", "--set=dropout.recurrent=0.1", "--checkpoint_every=20"),
]


def contents(out: Path) -> dict[str, bytes]:
    """All that a study leaves for good."""
    found = {"results.csv": (out / "results.csv").read_bytes()}
    for folder in sorted((out / "runs").iterdir()):
        for path in sorted(folder.glob("*.json*")):
            found[f"{folder.name}/{path.name}"] = path.read_bytes()
        for name, value in checkpoint.load_parameters(folder / "parameters").items():
            found[f"{folder.name}/parameters/{name}"] = np.asarray(value).tobytes()
    return found


class Study:
    """The study's command in one directory."""

    def __init__(self, out: Path, data: Path):
        self.out = out
        self.command = [sys.executable, *STUDY, f"--out={out}", f"--data_dir={data}"]

    def start(self) -> subprocess.Popen[str]:
        """A process that works on the study; what it says goes to a file."""
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        return subprocess.Popen(self.command, cwd=ROOT, stdout=self.log, stderr=self.log, text=True)

    def said(self) -> str:
        """All that the last process said."""
        self.log.seek(0)
        return self.log.read()


def moment(said: str) -> str:
    """What a process was at, by its last words."""
    lines = [line for line in said.split("\n") if line.strip()]
    last = next((line for line in reversed(lines) if "stopp" not in line), "")
    if not last:
        return "start-up"
    if last.startswith("program") or "goes on from" in last or "kept" in last or "begun before" in last:
        return "preparing, compiling"
    if last.startswith("  step"):
        return "training, saving, evaluating"
    return "testing, report"


def difference(name: str, wanted: bytes | None, found: bytes | None) -> str:
    """Where two contents differ."""
    if wanted is None or found is None or "/parameters/" in name:
        return f"{name}: differs, or only one has it"
    lines = [content.decode("utf-8", "replace").splitlines() for content in (wanted, found)]
    return "\n".join([f"{name}:", *difflib.unified_diff(*lines, "uninterrupted", "resumed", n=1, lineterm="")])


def rounds(kind: int, count: int, whole: float, draw: random.Random, wanted: dict[str, bytes], folder: Path) -> None:
    """Interrupts until it was done `count` times; raises AssertionError on a difference."""
    done, complete, moments = 0, 0, collections.Counter[str]()
    while done < count:
        study, here = Study(folder / f"{kind}-{complete}", folder / "data"), 0
        while True:
            process = study.start()
            try:
                # Later and later, so that a machine that is slower by now gets to the end, too.
                process.wait(draw.uniform(0, whole * (1 + here / 4)))
            except subprocess.TimeoutExpired:
                process.send_signal(kind)
                code = process.wait(120)
                # Before Python has come to our code SIGTERM ends a process as it ends any other.
                early = () if study.said() else (-signal.SIGTERM,)
                # 0: the study was complete a moment before.
                assert code in (0, *((-signal.SIGKILL,) if kind == signal.SIGKILL else (75, *early))), study.said()
                if code:
                    done, here = done + 1, here + 1
                    moments[moment(study.said())] += 1
                    continue
            assert process.returncode == 0, study.said()
            break
        found = contents(study.out)
        different = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
        assert not different, "\n".join(difference(name, wanted.get(name), found.get(name)) for name in different)
        complete += 1
        print(f"{signal.Signals(kind).name}: {done} interruptions, {complete} studies equal", flush=True)
    print(f"{signal.Signals(kind).name} came during: " + ", ".join(f"{k} {v}" for k, v in sorted(moments.items())))


def main() -> None:
    """Runs the study alone, then the two series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of SIGKILLs (50)")
    parser.add_argument("--terms", type=int, default=20, help="number of SIGTERMs (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        whole = 0.0
        for attempt in ("cold", "alone"):  # the first one fills the caches of data and of compiled programs
            began, study = time.monotonic(), Study(folder / attempt, folder / "data")
            assert study.start().wait() == 0, study.said()
            whole = time.monotonic() - began
        wanted = contents(folder / "alone")
        assert wanted == contents(folder / "cold"), "two runs of the same study differ"
        print(f"uninterrupted: {whole:.1f} s, {len(wanted)} files and arrays; seed {options.seed}", flush=True)
        rounds(signal.SIGKILL, options.kills, whole, draw, wanted, folder)
        rounds(signal.SIGTERM, options.terms, whole, draw, wanted, folder)


if __name__ == "__main__":
    main()
