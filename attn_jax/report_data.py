"""A study as its result files tell it: runs, variants, and a section for the data of each data set.

Reads only what is on disk (DESIGN.md, Results on disk). A run counts as done when its `result.json` is there.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attn_jax import bootstrap, curves, metrics, ranking, results, stats
from attn_jax import config as configs
from attn_jax import effects as grids
from attn_jax.errors import UserError
from attn_jax.factors import factors
from attn_jax.metrics import higher_is_better
from attn_jax.report_labels import differing, key, labels, mattering, matters, names_of, show, telling
from attn_jax.report_run import Run
from attn_jax.storage import read_json
from attn_jax.tuned import Tried, Tuned


@dataclasses.dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but the seed. `index` is the place in the study and chooses the colour.

    config: what was trained. described: the same before tuning chose values for it; without tuning the same. tuned: the
    fields that were tuned and what was tried, {path: values}.
    """

    index: int
    label: str
    config: Mapping[str, Any]
    runs: Sequence[Run]
    described: Mapping[str, Any]
    tuned: Mapping[str, Sequence[Any]]

    @property
    def done(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    def values(self, split: str, metric: str) -> dict[int, float]:
        """{seed: value} of the runs that have one."""
        found = {run.seed: run.value(split, metric) for run in self.done}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Section:
    """What a study says about one data set; `variants` are in the order of the study.

    Runs on other data of the same name (a file that was edited, another partition) make a section of their own, with
    which nothing is compared. earlier: whether the study's last call found other data under that name. title: the
    name, with the fingerprint where the name alone does not say which data. tuned: how variants were chosen.
    """

    dataset: str
    fingerprint: str
    earlier: bool
    title: str
    metric: str
    split: str
    variants: Sequence[Variant]
    tuned: Sequence[Tuned] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, by variant."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def done(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    @property
    def tested(self) -> list[str]:
        """The test splits of the results, that of the main metric first; dev where that is the main one."""
        splits = dict.fromkeys(split for run in self.done if run.result for split in run.result["metrics"])
        return [self.split, *(split for split in splits if split not in (self.split, "dev"))]

    @functools.cached_property
    def scorings(self) -> dict[str, list[Variant]]:
        """Variants with results by how their main metric was computed, as `Run.scoring` says.

        Values of different scorings (tokenisers of BLEU, letter case) are not on one scale: between them there is no
        difference, test or rank.
        """
        found: dict[str, list[Variant]] = {}
        for variant in self.variants:
            if variant.done:
                found.setdefault(variant.done[0].scoring(self.metric), []).append(variant)
        return found

    def reference(self, variant: Variant) -> Variant:
        """The variant that one is compared with: the best one of its scoring."""
        own = next((members for members in self.scorings.values() if variant in members), [variant])
        return next(one for one, _ in self.ranked if one in own)

    @functools.cached_property
    def ranked(self) -> list[tuple[Variant, stats.Summary | None]]:
        """Variants with the summary of their main metric, best first, those without a value last.

        Of several `scorings` those of the first come first.
        """
        rows = []
        for variant in self.variants:
            values = variant.values(self.split, self.metric)
            rows.append((variant, stats.summary(list(values.values())) if values else None))
        sign = -1 if higher_is_better(self.metric) else 1
        place = {variant.index: n for n, members in enumerate(self.scorings.values()) for variant in members}
        return sorted(
            rows, key=lambda row: (row[1] is None, place.get(row[0].index, 0), sign * row[1].mean if row[1] else 0.0)
        )

    @functools.cached_property
    def tests(self) -> dict[tuple[int, int], stats.Compared]:
        """Paired tests of the main metric between variants of one scoring, by their indices: row - column."""
        scales = [variant.done[0].scoring(self.metric) if variant.done else "" for variant in self.variants]
        return stats.pairwise([variant.values(self.split, self.metric) for variant in self.variants], scales)

    @functools.cached_property
    def ranks(self) -> dict[int, ranking.Ranks]:
        """By index, the ranks of the main metric that the tests leave open to each variant with a value.

        None with several `scorings`.
        """
        if len(self.scorings) > 1:
            return {}
        valued = [variant.index for variant, summary in self.ranked if summary is not None]
        return ranking.ranks(valued, self.tests, higher_is_better(self.metric))

    @functools.cached_property
    def resampled(self) -> bootstrap.Resampled | None:
        """Bootstrap of the main metric over seeds and sentences; its variants are numbered by their indices.

        None where the metric is not one of output text, or no run has predictions. Reads all predictions once, and
        takes seconds for many of them. Raises UserError where the number of predictions differs between runs.
        """
        if self.metric not in metrics.OUTPUT_METRICS:
            return None
        statistics = [
            {run.seed: found for run in v.done if len(found := run.statistics(self.split, self.metric))}
            for v in self.variants
        ]
        sizes = collections.Counter(len(found) for own in statistics for found in own.values())
        if len(sizes) > 1:
            usual = max(sizes, key=lambda size: (sizes[size], size))
            name = f"predictions.{self.split}.jsonl"
            counts = {run.folder / name: len(run.predictions(self.split)) for v in self.variants for run in v.done}
            wrong, count = next((path, count) for path, count in counts.items() if count not in (0, usual))
            raise UserError(
                f"{wrong}: has {count} predictions, and those of other runs have {usual}: remove the file, whose "
                "run then counts without its sentences"
            )
        if not sizes:
            return None
        return bootstrap.resample(statistics, functools.partial(metrics.aggregates, self.metric))

    @functools.cached_property
    def best(self) -> dict[int, float]:
        """By index, the share of bootstrap resamples in which a variant is the best.

        Empty without `resampled`, and with several `scorings`.
        """
        if self.resampled is None or len(self.scorings) > 1:
            return {}
        return self.resampled.best(higher_is_better(self.metric))

    def factors(self, one: Variant, other: Variant) -> list[str]:
        """Names of the choices in which two variants differ; a difference of several cannot be put down to any one.

        What was chosen for two variants by the same tuning is no such choice: see `designs`. All fields that differ
        where the code that is loaded does not know a name of theirs.
        """
        both = designs([one, other])
        try:
            return factors(*(_config(json.dumps(flat)) for flat in both))
        except UserError:
            return differing(both)

    @functools.cached_property
    def effects(self) -> grids.Effects | None:
        """What the axes of the study do to the main metric; None where its variants make no grid, or no one scale."""
        if len(self.scorings) > 1:
            return None
        flats = designs(self.variants)
        paths = telling(flats)
        cells = {
            tuple(show(flat.get(path)) if matters(flat, path) else "-" for path in paths): variant.values(
                self.split, self.metric
            )
            for flat, variant in zip(flats, self.variants, strict=True)
        }
        return grids.effects(names_of(paths), cells)

    @functools.cached_property
    def moving_together(self) -> dict[str, list[str]]:
        """By axis of `effects`, the other fields whose value goes with that of the axis: their effect is in its own."""
        flats = designs(self.variants)
        paths = telling(flats)
        rest = [path for path in differing(flats) if path not in paths]

        def levels(*chosen: str) -> int:
            return len({key(flat, chosen) for flat in flats})

        together = {
            name: [other for other in rest if levels(path, other) == levels(path)]
            for name, path in zip(names_of(paths), paths, strict=True)
        }
        return {name: found for name, found in together.items() if found}


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything under an output directory; at least one run or one set of measured curves.

    tried: runs that were trained to tune the others, and are no results.
    """

    out: Path
    title: str
    commands: Sequence[str]
    references: Sequence[Mapping[str, Any]]
    runs: Sequence[Run]
    missing: Sequence[str]
    others: int
    sections: Sequence[Section]
    tried: Sequence[Run]
    programs: Mapping[str, Mapping[str, Any]]
    measured: Sequence[curves.Measured] = ()

    @functools.cached_property
    def target_words(self) -> dict[str, dict[str, int]]:
        """{word: count} in the training targets, by the data's fingerprint, where it was kept."""
        paths = {run.fingerprint: results.words_path(self.out, run.fingerprint) for run in self.runs}
        return {mark: read_json(path, results.WORDS)["target_words"] for mark, path in paths.items() if path.exists()}

    def timings(self, runs: Iterable[Run]) -> list[Mapping[str, Any]]:
        """`timing.json` of the programs that trained any of the runs."""
        wanted = {run.run_id for run in runs}
        return [p["timing"] for p in self.programs.values() if p["timing"] and wanted & set(p["members"])]


def load(out: Path) -> Study:
    """Reads the study under `out`.

    With a `study.json` its runs count, in its order; without one, all under `runs/`. Raises UserError if
    there is neither a run nor a measured curve, or a file cannot be read.
    """
    folders = {path.parent.name: path.parent for path in sorted(out.glob("runs/*/config.json"))}
    measured = list(curves.read_all(out))
    if not folders and not measured:
        raise UserError(f"{out}: no runs found: expected {out}/runs/<run id>/config.json")
    study = results.read_study(out)
    tried = results.tried(study["tuning"])
    listed = study["runs"] or [name for name in folders if name not in tried]
    runs = [_run(folders[name]) for name in listed if name in folders]
    return Study(
        out=out,
        title="; ".join(study["titles"] or filter(None, dict.fromkeys(m.study for m in measured)))
        or out.resolve().name,
        commands=list(dict.fromkeys([*study["commands"], *(m.command for m in measured if m.command)])),
        references=study["reference"],
        runs=runs,
        missing=[name for name in listed if name not in folders],
        others=len(folders.keys() - set(listed) - tried),
        sections=_sections(runs, study["data"], [_Entry.of(entry, folders) for entry in study["tuning"]]),
        tried=[_run(folders[name]) for name in folders if name in tried],
        programs={path.parent.name: _program(path) for path in sorted(out.glob("programs/*/program.json"))},
        measured=measured,
    )


def _run(folder: Path) -> Run:
    stored = results.read_run(folder, folder.name)
    config = mattering(configs.flatten(stored.config))
    return Run(folder.name, folder, config, stored.fingerprint, stored.result)


def _program(path: Path) -> Mapping[str, Any]:
    members, place, timing = read_json(path, results.PROGRAM)["members"], path.with_name("timing.json"), None
    if place.exists():
        timing = results.read_timing(place)
    return {"members": members, "timing": timing}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """How a variant was tuned: its configuration before the choice, its data, its runs; and what was found."""

    config: Mapping[str, Any]
    fingerprint: str
    runs: set[str]
    tuned: Tuned

    @classmethod
    def of(cls, entry: Mapping[str, Any], folders: Mapping[str, Path]) -> "_Entry":
        tried = [
            Tried(
                choice["values"],
                [
                    _run(folders[name]).value("dev", entry["metric"]) if name in folders else None
                    for name in choice["runs"]
                ],
            )
            for choice in entry["choices"]
        ]
        tuned = Tuned("", entry["metric"], entry["fields"], tried, entry["chosen"])
        return cls(mattering(configs.flatten(entry["variant"])), entry["data"], set(entry["runs"]), tuned)


def _sections(runs: Sequence[Run], now: Mapping[str, str], tuning: Sequence[_Entry]) -> list[Section]:
    """Sections in the order of the study, older data of a name after its present data; now: fingerprints by name."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(run.dataset, {}).setdefault(run.fingerprint, []).append(run)
    sections = []
    for dataset, by_data in groups.items():
        for fingerprint in sorted(by_data, key=lambda mark: mark != now.get(dataset)):
            earlier = now.get(dataset, fingerprint) != fingerprint
            title = dataset
            if earlier or len(by_data) > 1:
                title += f" ({'earlier ' * earlier}data {fingerprint[:8]})"
            entries = [entry for entry in tuning if entry.fingerprint == fingerprint]
            sections.append(_section(dataset, fingerprint, earlier, title, by_data[fingerprint], entries))
    return sections


def _section(
    dataset: str, fingerprint: str, earlier: bool, title: str, runs: Sequence[Run], tuning: Sequence[_Entry]
) -> Section:
    results = [run.result for run in runs if run.result is not None]
    metric = next((str(result["dataset"]["metric"]) for result in results), "loss")
    splits = dict.fromkeys(["test", "dev", *(split for result in results for split in result["metrics"])])
    split = next((s for s in splits if any(run.value(s, metric) is not None for run in runs)), "test")
    variants, tuned = _variants(runs, tuning)
    return Section(dataset, fingerprint, earlier, title, metric, split, variants, tuned)


def _variants(runs: Sequence[Run], tuning: Sequence[_Entry]) -> tuple[list[Variant], list[Tuned]]:
    """Variants, and how they were tuned. A tuned one is named as it was described, whatever was chosen for it."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps({path: value for path, value in run.config.items() if path != "seed"}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    members = [sorted(group, key=lambda run: run.seed) for group in groups.values()]
    entries = [next((e for e in tuning if any(run.run_id in e.runs for run in group)), None) for group in members]
    configured = [entry.config if entry else group[0].config for entry, group in zip(entries, members, strict=True)]
    others = [entry for entry in tuning if entry not in entries]
    names = labels([*configured, *(entry.config for entry in others)])
    plain = {name for name, entry in zip(names, entries, strict=False) if entry is None}
    names = [
        f"{name}, tuned" if name in plain and (n >= len(entries) or entries[n]) else name
        for n, name in enumerate(names)
    ]
    variants = [
        Variant(index, name, group[0].config, group, described, entry.tuned.fields if entry else {})
        for index, (name, group, described, entry) in enumerate(
            zip(names[: len(members)], members, configured, entries, strict=True)
        )
    ]
    told = [(entry, name) for entry, name in zip([*entries, *others], names, strict=True) if entry]
    return variants, [dataclasses.replace(entry.tuned, label=name) for entry, name in told]


@functools.lru_cache(maxsize=1000)
def _config(flat: str) -> configs.Config:
    """Of the JSON of a flat configuration; each is compared with that of every other variant."""
    return configs.override(configs.Config(), json.loads(flat))


def designs(variants: Sequence[Variant]) -> list[Mapping[str, Any]]:
    """The configurations by which variants are compared: what the study sets out to differ, not what it picked by dev.

    Of variants that were tuned alike, over the same values of the same fields, these are the described ones: that each
    has the values that suit it is what makes them comparable. Where one was tuned and another was not, or otherwise,
    the difference between what was trained counts.
    """
    alike = all(variant.tuned == variants[0].tuned for variant in variants)
    return [variant.described if alike else variant.config for variant in variants]
