"""Fair comparison: every variant is tuned with the same budget on dev, then trained anew with fresh seeds and tested.

The runs of the first part have seeds of their own and data without test splits, so that nothing of test can reach the
choice. The entries of `tuning` in `study.json`, one a variant, say what was tried and chosen:

    variant: its configuration as it is described, before the choice      data: the fingerprint of its data
    metric: of dev, whose mean over seeds decides                         fields: {path: values}
    choices: [{values: {path: value}, runs: ids}], which differ for it    chosen: values, or null     runs: ids
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import config as configs
from attn_jax import processes, results, study
from attn_jax.combinators import grid
from attn_jax.config import Config
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.metrics import LOSS_METRICS
from attn_jax.progression import SAVING, Saving
from attn_jax.results import Output
from attn_jax.seq2seq import canonical, check
from attn_jax.study import Corpora, Local, Members, Resources, Shard
from attn_jax.tuned import Tried, Tuned, show_choice

FIRST_SEED = 1_000_000
"""Of the runs that are tried. Those that are reported have the seeds below."""

INCOMPARABLE = ("train.metric", "data.lowercase", "data.bleu_tokenizer")
"""Fields that change what the dev metric means."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variant as it is described, and the distinct configurations that it may become, each with its values."""

    variant: Config
    choices: Sequence[tuple[dict[str, Any], Config]]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What is tuned, {path: values}; the variants; the seeds of what is tried; and how many variants were equal."""

    fields: Mapping[str, Sequence[Any]]
    variants: Sequence[Candidate]
    seeds: range
    dropped: int

    @property
    def tried(self) -> list[Config]:
        """All configurations among which is chosen, each once."""
        return list(dict.fromkeys(config for one in self.variants for _, config in one.choices))


def candidates(
    variants: Callable[[Mapping[str, Any]], Sequence[Config]],
    axes: Mapping[str, Sequence[Any]],
    corpora: Corpora,
    seeds: int,
) -> Candidates:
    """Every variant with every combination of the values of some fields.

    variants: the variants with further changes by path, always as many in the same order. seeds: with how many every
    choice is tried. Raises UserError on an illegal combination, on data without a dev split, on fields that change
    the dev metric itself, and where no value makes a difference.
    """
    fields = {
        configs.resolve(path): [configs.get(configs.override(Config(), {path: value}), path) for value in values]
        for path, values in axes.items()
    }
    for path in INCOMPARABLE:
        if path in fields:
            raise UserError(f"--tune: {path} changes what values on dev mean, and cannot be chosen by them")
    described, dropped = variants({}), 0
    found: dict[tuple[Config, ...], Candidate] = {}
    table = [(choice, variants(choice)) for choice in grid(fields)]
    for number, variant in enumerate(described):
        name = variant.data.dataset
        if "dev" not in corpora.dataset(name).splits:
            raise UserError(f"--tune: {name} has no dev split to choose by")
        distinct: dict[Config, dict[str, Any]] = {}
        for choice, row in table:
            check(row[number])
            distinct.setdefault(canonical(row[number]), choice)
        _check_symbols(list(distinct), fields)
        key = tuple(distinct)
        dropped += key in found
        found.setdefault(key, Candidate(canonical(variant), [(values, one) for one, values in distinct.items()]))
    if not found:
        raise UserError("the study has no variants")
    if all(len(one.choices) == 1 for one in found.values()):
        raise UserError(
            f"--tune: there is nothing to choose: the values of {', '.join(fields)} give every variant once"
        )
    return Candidates(fields, list(found.values()), range(FIRST_SEED, FIRST_SEED + seeds), dropped)


def _check_symbols(choices: Sequence[Config], fields: Iterable[str]) -> None:
    """Raises UserError where the metric is a mean over target symbols, and choices have different ones."""
    metric = choices[0].train.metric
    if metric not in LOSS_METRICS:
        return
    if len({configs.target_symbols(configs.flatten(configs.to_dict(choice))) for choice in choices}) > 1:
        changing = [path for path in fields if path in configs.TARGET_SYMBOLS]
        raise UserError(
            f"--tune: {', '.join(changing)} changes the target symbols, of which {metric} is a mean: its values on dev "
            "cannot be compared"
        )


def entries(candidates: Candidates, corpora: Corpora, output: Output) -> list[dict[str, Any]]:
    """The entries of `study.json`; what a finished call into the same directory chose among the same stays in them."""
    hidden, before = corpora.without_tests(), results.read_study(output.path)["tuning"]
    found = []
    for one in candidates.variants:
        choices = []
        for values, config in one.choices:
            fingerprint = hidden.dataset(config.data.dataset).fingerprint
            members = [configs.override(config, {"seed": seed}) for seed in candidates.seeds]
            choices.append({"values": values, "runs": [configs.run_id(member, fingerprint) for member in members]})
        info = corpora.dataset(one.variant.data.dataset)
        entry = {
            "variant": configs.to_dict(one.variant),
            "data": info.fingerprint,
            "metric": one.choices[0][1].train.metric or info.info.metric,
            "fields": dict(candidates.fields),
            "choices": choices,
        }
        known: dict[str, Any] = {"chosen": None, "runs": []}
        for earlier in before:
            if all(earlier[name] == value for name, value in entry.items()):
                known = {name: earlier[name] for name in known}
        found.append(entry | known)
    return found


def chosen(entry: Mapping[str, Any], output: Output) -> dict[str, Any] | None:
    """The values with the best mean on dev, of equal ones the first; None while a run has no result."""
    tried = []
    for choice in entry["choices"]:
        found = [output.result(run_id) for run_id in choice["runs"]]
        if any(result is None for result in found):
            return None
        values = [result["metrics"]["dev"].get(entry["metric"]) for result in found if result is not None]
        tried.append(Tried(choice["values"], values))
    return dict(Tuned("", entry["metric"], entry["fields"], tried).ranked[0].values)


def run(
    candidates: Candidates,
    *,
    seeds: Sequence[int],
    out: str,
    corpora: Corpora,
    title: str = "",
    command: str = "",
    reference: Sequence[Mapping[str, Any]] = (),
    runs_per_program: int = 0,
    saving: Saving = SAVING,
    mesh: MeshShape | None = None,
    launcher: Local | Resources = Local(),  # noqa: B008
    shard: Shard | None = None,
    log_to: Sequence[str] = (),
) -> Path:
    """Tries every choice, takes the best of each variant, and trains and tests that with `seeds`; see `study.run`.

    Repeated, it does what is missing; nothing that is finished changes. shard: tries that part of the programs and,
    once every run that is tried has a result, trains that part of those of what is chosen; while other shards lack
    results it ends with a line that says so, and may leave no page. Raises UserError before anything is trained if
    a choice is illegal or does not go with its data, test splits included.
    """
    check_seeds(seeds)
    Members.of(candidates.tried, seeds, corpora, mesh)
    output = Output(out, write=False)
    told = entries(candidates, corpora, output)
    options: dict[str, Any] = {
        "out": out,
        "title": title,
        "command": command,
        "reference": reference,
        "runs_per_program": runs_per_program,
        "saving": saving,
        "mesh": mesh,
        "launcher": launcher,
        "shard": shard,
        "log_to": log_to,
    }
    if processes.leads():
        _tell(candidates)
    page = study.run(candidates.tried, seeds=candidates.seeds, corpora=corpora.without_tests(), tuning=told, **options)
    tried = results.tried(told)
    lacking = processes.decided(lambda: sum(not output.done(run_id) for run_id in tried))
    if lacking:
        if processes.leads():
            text = f"{lacking} of {len(tried)} runs that are tried have no result yet and are left to other shards"
            print(f"{text}; when all have one, the same command trains what is chosen", file=sys.stderr, flush=True)
        return page
    picked = processes.decided(lambda: [chosen(entry, output) for entry in told])
    final = []
    for entry, one, values in zip(told, candidates.variants, picked, strict=True):
        assert values is not None  # every run that was tried has a result now
        config = next(config for choice, config in one.choices if choice == values)
        members = [configs.override(config, {"seed": seed}) for seed in seeds]
        runs = [configs.run_id(member, entry["data"]) for member in members]
        final.append((config, entry | {"chosen": values, "runs": runs}))
        if processes.leads():
            print(f"chosen on dev: {show_choice(values)} for {_name(one, candidates)}", file=sys.stderr, flush=True)
    configurations = list(dict.fromkeys(config for config, _ in final))
    return study.run(configurations, seeds=seeds, corpora=corpora, tuning=[entry for _, entry in final], **options)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises UserError if a seed of reported runs is one of those that are tried."""
    if any(seed >= FIRST_SEED for seed in seeds):
        raise UserError(f"tuned variants are trained with seeds below {FIRST_SEED}: the others are for what is tried")


def _tell(candidates: Candidates) -> None:
    total, seeds = len(candidates.tried), len(candidates.seeds)
    if candidates.dropped:
        print(f"{candidates.dropped} variant(s) equal another one and are left out", file=sys.stderr)
    print(
        f"tuning {', '.join(candidates.fields)} on dev: {len(candidates.variants)} variant(s), {total} configurations, "
        f"{seeds} seed(s) each; test is not read",
        file=sys.stderr,
        flush=True,
    )


def _name(one: Candidate, candidates: Candidates) -> str:
    varying = configs.differences([other.variant for other in candidates.variants])
    return ", ".join(str(configs.get(one.variant, path)) for path in varying) or "the one variant"
