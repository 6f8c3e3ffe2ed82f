"""A study: variants x seeds, trained as few programs, resumed by their result files, told on one page."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import config as configs
from attn_jax import data, program, report, results
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus, encode
from attn_jax.errors import UserError, unknown
from attn_jax.evaluation import LOSS_METRICS
from attn_jax.metrics import OUTPUT_METRICS
from attn_jax.progress import Console
from attn_jax.results import Output
from attn_jax.sweep import groups, merged
from attn_jax.training import steps_of

METRICS = (*LOSS_METRICS, *OUTPUT_METRICS)
"""What runs can be selected by."""


class Corpora:
    """Data sets and their encodings, each loaded once."""

    def __init__(self, load: Callable[[str], data.Dataset]):
        self._load = load
        self._datasets: dict[str, data.Dataset] = {}
        self._encoded: dict[configs.Data, Corpus] = {}

    def dataset(self, name: str) -> data.Dataset:
        """The data set of that name."""
        if name not in self._datasets:
            self._datasets[name] = self._load(name)
        return self._datasets[name]

    def corpus(self, config: Config) -> Corpus:
        """The data of a run."""
        if config.data not in self._encoded:
            self._encoded[config.data] = encode(self.dataset(config.data.dataset), config)
        return self._encoded[config.data]


def run(
    variants: Iterable[Config],
    *,
    seeds: Sequence[int],
    out: str,
    corpora: Corpora,
    title: str = "",
    command: str = "",
    reference: Sequence[Mapping[str, Any]] = (),
    runs_per_program: int = 16,
) -> Path:
    """Trains every variant with every seed that has no result yet, and writes results.csv and report.html.

    reference: published figures to be shown beside ours, [{"variant": {path: value}, "metric", "value", "source"}].
    Returns the path of the report. Raises UserError before anything is trained if a variant is illegal.
    """
    distinct, dropped = merged(variants)
    if not seeds:
        raise UserError("a study needs at least one seed")
    if dropped:
        print(
            f"{dropped} of {dropped + len(distinct)} combinations equal another one and are left out", file=sys.stderr
        )
    runs: dict[str, Config] = {}
    for variant in distinct:
        corpus = corpora.corpus(variant)
        steps_of(variant, len(corpus.encoded["train"]) / variant.train.batch_size)
        if variant.train.metric not in ("", *METRICS):
            raise unknown("train.metric", variant.train.metric, METRICS)
        for seed in seeds:
            member = configs.override(variant, {"seed": seed})
            runs[configs.run_id(member, corpus.fingerprint)] = member
    # Not before all of the user's choices are known to be sound: a mistake leaves nothing behind.
    output = Output(out)
    _write_study(output, list(runs), title, command, reference)

    finished = {run_id: result for run_id in runs if (result := output.result(run_id)) is not None}
    _tell_reused(finished, len(runs))
    programs = _programs({k: v for k, v in runs.items() if k not in finished}, runs, output, runs_per_program)
    progress = Console(len(programs))
    for program_id, members in programs:
        ids = [configs.run_id(member, corpora.corpus(member).fingerprint) for member in members]
        results.write_json(output.program(program_id) / "program.json", {"members": ids})
        program.train(members, corpora.corpus(members[0]), output, program_id, progress)
    report.build(output.path)
    return output.path / "report.html"


def _write_study(output: Output, ids: list[str], title: str, command: str, reference: Sequence[Mapping]) -> None:
    """What the page tells about the study. Runs of earlier calls into the same directory stay on the page."""
    path = output.path / "study.json"
    before = results.read_json(path)["runs"] if path.exists() else []
    order = [*before, *(run_id for run_id in ids if run_id not in before)]
    results.write_json(path, {"title": title, "command": command, "reference": list(reference), "runs": order})


def _tell_reused(finished: Mapping[str, Mapping[str, Any]], total: int) -> None:
    if not finished:
        return
    print(f"{len(finished)} of {total} runs have results already and are kept", file=sys.stderr)
    now = (results.git_commit(), results.versions())
    other = [result for result in finished.values() if (result["git"], result["versions"]) != now]
    if other:
        commits = sorted({result["git"] or "an installed package" for result in other})
        print(f"  {len(other)} of them by other versions of code or libraries ({', '.join(commits)})", file=sys.stderr)


def _programs(
    missing: Mapping[str, Config], wanted: Mapping[str, Config], output: Output, size: int
) -> list[tuple[str, list[Config]]]:
    """Programs to run: those that were begun before, as they were written down, then the other runs by group."""
    programs, taken = [], set()
    for program_id, members in output.unfinished_programs():
        if all(member in wanted for member in members):
            programs.append((program_id, [wanted[member] for member in members]))
            taken |= set(members)
    ids = {config: run_id for run_id, config in missing.items()}
    for group in groups([config for run_id, config in missing.items() if run_id not in taken]):
        count = -(-len(group) // size)
        for k in range(count):
            # Parts of nearly equal size.
            part = group[k * len(group) // count : (k + 1) * len(group) // count]
            programs.append((results.program_id([ids[config] for config in part]), part))
    return programs
