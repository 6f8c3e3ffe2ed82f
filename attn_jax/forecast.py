"""What a study would do and how long it would take, told without training: variants, groups, programs, an estimate.

Nothing is written to the output directory. The speed of a group comes from what the directory has of it (timing.json).
Of the other groups the one with the fewest and the one with the most multiplications are timed for a few real steps,
whose compilation the study itself then finds in the cache of compiled programs; between them speed is interpolated.

Programs that train at a time share the cores and slow each other down by nothing else: so many of them take as long as
the places that they are handed out to, and no less than all of their work takes on all cores.
"""

import dataclasses
import heapq
import io
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from attn_jax import config as configs
from attn_jax import devices, ray_tasks, results, storage, trackers, tuning
from attn_jax.config import Config
from attn_jax.data.corpus import Corpus
from attn_jax.devices import MeshShape, Placement
from attn_jax.errors import UserError
from attn_jax.planning import Cut, outlined
from attn_jax.pool import Local
from attn_jax.progression import Schedule
from attn_jax.ray_tasks import Resources
from attn_jax.report_labels import labels
from attn_jax.results import Output
from attn_jax.seq2seq import Model
from attn_jax.shapes import Array, Params
from attn_jax.study import Corpora, Members, launching
from attn_jax.training import Trainer, batch_loss, steps_of

TIMED_SECONDS = 1.0
"""Steps of a group are timed for about so long, after its compilation."""

SEARCH = 1.0
"""Evaluating as many sentences as a batch has takes about so many times as long as a step of training: measured."""

COMPILATIONS = 2.0
"""Compiling all that a program needs takes about so many times as long as compiling its training: measured."""

# Fields that leave the seconds of a step as they are.
_INDIFFERENT = ("train.steps", "train.epochs", "train.eval_every", "train.select", "train.metric", "train.patience")


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of a step for each run of a program, and of compiling it.

    cached: it will be found compiled. cores: that it keeps busy, on average.
    """

    seconds: float
    compile: float
    cached: bool = False
    cores: float = 1.0


class Room(NamedTuple):
    """How many programs train at a time, on how many cores, and that in words."""

    slots: int
    cores: int
    told: str

    @classmethod
    def of(cls, where: Local | Resources, mesh: MeshShape | None = None) -> "Room":
        """What there is for programs that are trained there."""
        cores, gpus = devices.available_cores(), len(devices.visible_gpus())
        alone = cls(1, cores, "one program after another")
        if isinstance(where, Local):
            if gpus and where.jobs > 1:
                # Programs that share a device take turns.
                slots = 1 if mesh else min(where.jobs, gpus)
                return cls(slots, cores, f"{slots} program(s) at a time, one on each of the GPUs")
            slots = where.jobs
        elif ray_tasks.address_of(where) != ray_tasks.LOCAL:
            return alone._replace(
                told="one program after another; Ray trains as many at a time as the cluster has room for"
            )
        else:
            has = ((cores, where.cpus), (gpus, math.ceil(where.gpus)))  # on parts of a GPU they take turns, too
            slots = max(1, min((int(count / each) for count, each in has if each), default=1))
        if slots == 1:
            return alone
        return cls(slots, cores, f"{slots} programs at a time on {cores} core(s)")

    def seconds(self, programs: Iterable[tuple[float, float]]) -> float:
        """How long programs take, of each its seconds alone and the cores that it keeps busy, in their order."""
        free, work = [0.0] * self.slots, 0.0
        for seconds, cores in programs:
            heapq.heapreplace(free, free[0] + seconds)
            work += seconds * min(cores, self.cores)
        return max(*free, work / self.cores)


def of_study(
    variants: Iterable[Config],
    *,
    seeds: Sequence[int],
    out: str,
    corpora: Corpora,
    runs_per_program: int = 0,
    mesh: MeshShape | None = None,
    launcher: Local | Resources = Local(),  # noqa: B008
    log_to: Sequence[str] = (),
) -> None:
    """Prints what `study.run` would do. Raises UserError as it does."""
    members = Members.of(variants, seeds, corpora, mesh)
    launching(launcher, corpora, mesh)
    trackers.check(log_to)
    teller = _Teller(_looked_at(out), Cut.of(runs_per_program, mesh, launcher, sharded=False), launcher)
    teller.tell(members, corpora)
    teller.conclude()


def of_tuning(
    candidates: tuning.Candidates,
    *,
    seeds: Sequence[int],
    out: str,
    corpora: Corpora,
    runs_per_program: int = 0,
    mesh: MeshShape | None = None,
    launcher: Local | Resources = Local(),  # noqa: B008
    log_to: Sequence[str] = (),
) -> None:
    """Prints what `tuning.run` would do. Raises UserError as it does."""
    tuning.check_seeds(seeds)
    Members.of(candidates.tried, seeds, corpora, mesh)
    launching(launcher, corpora, mesh)
    trackers.check(log_to)
    output = _looked_at(out)
    teller = _Teller(output, Cut.of(runs_per_program, mesh, launcher, sharded=False), launcher)
    hidden = corpora.without_tests()
    seeds_text = f"seeds {candidates.seeds[0]} to {candidates.seeds[-1]}"
    print(f"First, to choose {', '.join(candidates.fields)} on dev ({seeds_text}; test is not read):\n")
    if candidates.dropped:
        print(f"{candidates.dropped} variant(s) equal another one and are left out")
    teller.tell(Members.of(candidates.tried, candidates.seeds, hidden, mesh), hidden)
    picked = [tuning.chosen(entry, output) for entry in tuning.entries(candidates, corpora, output)]
    known = None not in picked
    print(
        "\nThen, " + ("with what was chosen:\n" if known else "as if the first choice of every variant were taken:\n")
    )
    final = [
        next((config for values, config in one.choices if values == choice), one.choices[0][1])
        for one, choice in zip(candidates.variants, picked, strict=True)
    ]
    teller.tell(Members.of(dict.fromkeys(final), seeds, corpora, mesh), corpora)
    teller.conclude()


def _looked_at(out: str) -> Output:
    output = Output(out, write=False)
    if output.path.exists() and not output.path.is_dir():
        raise UserError(f"--out={out}: cannot be written (Not a directory)")
    return output


class _Teller:
    """Prints the parts of a forecast. total: seconds of all so far; speeds: of groups, by what matters to speed."""

    def __init__(self, output: Output, cut: Cut, launcher: Local | Resources):
        self.output, self.cut, self.room = output, cut, Room.of(launcher, cut.mesh)
        # A process beside others has one accelerator, or all cores.
        accelerated = launcher.gpus or launcher.tpus if isinstance(launcher, Resources) else devices.visible_gpus()
        elsewhere = launcher != Local()
        # A mesh of other machines' devices may be more than there is here.
        self.strange = elsewhere and cut.mesh is not None and math.prod(cut.mesh) > jax.device_count()
        mesh = None if self.strange else cut.mesh
        self.mesh = mesh or (MeshShape() if elsewhere and accelerated else None)
        self.total, self.timed, self.interpolated = 0.0, 0, 0
        self.speeds = _recorded(output)

    def tell(self, members: Members, corpora: Corpora) -> None:
        """Prints the variants and the programs that would be trained."""
        groups: dict[str, int] = {}
        variants: dict[Config, list[str]] = {}
        for run_id, config in members.runs.items():
            groups.setdefault(configs.structure(config), len(groups) + 1)
            variants.setdefault(dataclasses.replace(config, seed=0), []).append(run_id)
        flats = [configs.flatten(configs.to_dict(variant)) for variant in variants]
        names = dict(zip(variants, labels(flats), strict=True))
        rows = []
        for variant, ids in variants.items():
            corpus = corpora.corpus(variant)
            done = sum(map(self.output.done, ids))
            steps = steps_of(variant, len(corpus.encoded["train"]) / variant.train.batch_size)
            group = groups[configs.structure(variant)]
            rows.append((names[variant], f"{parameters(variant, corpus):,}", f"{steps:,}", f"{done}/{len(ids)}", group))
        print(_table("variant", ["parameters", "steps", "runs done", "group"], rows))
        if members.dropped:
            print(f"{members.dropped} combination(s) equal another one and are left out")
        plan = outlined(members.runs, self.output, self.cut)
        done = sum(map(self.output.done, members.runs))
        print(
            f"{len(variants)} variant(s), {len(groups)} group(s), {len(members.runs)} run(s), {done} of them done; "
            f"{len(plan)} program(s) to train",
            flush=True,
        )
        self._learn({name: [members.runs[run_id] for run_id in ids] for name, ids in plan.items()}, corpora)
        programs, spent = [], []
        for name, ids in plan.items():
            runs = [members.runs[run_id] for run_id in ids]
            step, steps, seconds = self._estimated(name, runs, corpora.corpus(runs[0]))
            spent.append((seconds, self.speeds[speed_key(runs[0])].cores))
            shown, *more = dict.fromkeys(names[dataclasses.replace(run, seed=0)] for run in runs)
            shown += f" and {len(more)} more" if more else ""
            state = f"from step {step:,}" if step else "begun" if self.output.program(name).exists() else "new"
            group = groups[configs.structure(runs[0])]
            seeds = sorted({run.seed for run in runs})
            told = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
            programs.append((shown, told, len(runs), group, name, state, f"{steps - step:,}", clock(seconds)))
        if programs:
            print(_table("program", ["seeds", "runs", "group", "id", "state", "steps to do", "about"], programs))
        self.total += self.room.seconds(spent)

    def conclude(self) -> None:
        """Prints the estimate."""
        basis = [f"{self.timed} group(s) timed for a moment"] * bool(self.timed)
        basis += [f"{self.interpolated} by their multiplications"] * bool(self.interpolated)
        told = ", ".join(basis) or "by what is timed in the directory"
        told += ", on the devices that are here and not on the mesh" * (self.strange and self.timed > 0)
        text = f"about {clock(self.total)}, {self.room.told} ({told}; less where runs stop early)"
        print(f"\n{text if self.total else 'nothing to train'}; nothing was written to {self.output.path}")

    def _learn(self, programs: Mapping[str, Sequence[Config]], corpora: Corpora) -> None:
        """Finds the speed of every group that is not known: times two of them and interpolates."""
        unknown = {speed_key(runs[0]): runs for runs in programs.values() if speed_key(runs[0]) not in self.speeds}
        if not unknown:
            return
        costs = {key: multiplications(runs[0], corpora.corpus(runs[0])) for key, runs in unknown.items()}
        ends = list(dict.fromkeys([min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)]))
        for key in ends:
            self.speeds[key] = timed(unknown[key], corpora.corpus(unknown[key][0]), self.mesh)
        low, high = (self.speeds[key] for key in (ends[0], ends[-1]))
        for key in unknown.keys() - set(ends):
            share = (costs[key] - costs[ends[0]]) / max(1.0, costs[ends[-1]] - costs[ends[0]])
            pairs = ((low.seconds, high.seconds), (low.compile, high.compile), (low.cores, high.cores))
            seconds, compiling, cores = (least + share * (most - least) for least, most in pairs)
            self.speeds[key] = Speed(seconds, compiling, cores=cores)
        self.timed, self.interpolated = self.timed + len(ends), self.interpolated + len(unknown) - len(ends)

    def _estimated(self, name: str, runs: Sequence[Config], corpus: Corpus) -> tuple[int, int, float]:
        """Step at which a program would go on, its last step, and the seconds until its results are there."""
        config, speed = runs[0], self.speeds[speed_key(runs[0])]
        batch = config.train.batch_size
        per_epoch = len(corpus.encoded["train"]) / batch
        steps, step = steps_of(config, per_epoch), _saved_step(self.output, name)
        seconds = speed.seconds * len(runs)
        sizes = {split: len(pairs) for split, pairs in corpus.encoded.items() if split != "train"}
        evaluations = (steps - step) // (config.train.eval_every or max(1, int(per_epoch)))
        sentences = sum(sizes.values()) + sizes.get("dev", 0) * evaluations
        compiling = (COMPILATIONS - speed.cached) * speed.compile
        return step, steps, compiling + seconds * (steps - step + SEARCH * sentences / batch)


def speed_key(config: Config) -> str:
    """Equal for runs whose steps take equally long: of a group, whatever the length of training."""
    default = Config()
    same = {path: configs.get(default, path) for path in _INDIFFERENT}
    search = dataclasses.replace(config, decode=default.decode)
    return configs.structure(configs.override(search, same))


def timed(runs: Sequence[Config], corpus: Corpus, mesh: MeshShape | None = None) -> Speed:
    """Times some steps of a program of these runs, which compiles it."""
    placement = Placement.of(len(runs), runs[0].train.batch_size, mesh)
    trainer = Trainer(runs, corpus, placement=placement)
    length = Schedule.of(trainer, evaluates="dev" in corpus.encoded).length
    states = jax.block_until_ready(trainer.start())
    spent: list[float] = []
    step, count, busy = 0, 1, 0.0
    while not spent or (len(spent) < 4 and sum(spent[1:]) < TIMED_SECONDS):
        begun, used = time.perf_counter(), time.process_time()
        states, _ = trainer.chunk(states, step, count, length)
        spent.append(time.perf_counter() - begun)
        busy += (time.process_time() - used) * (len(spent) > 1)
        step += count
        seconds = spent[-1] / count
        if len(spent) > 1:
            count = int(np.clip(TIMED_SECONDS / seconds, 1, length))
    first, *rest = spent
    return Speed(seconds / len(runs), max(0.0, first - seconds), cached=True, cores=busy / sum(rest))


def multiplications(config: Config, corpus: Corpus) -> float:
    """Scalar multiplications in the matrix products of one step of a run, for sentences of mean length."""
    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    params = jax.eval_shape(model.init, jax.random.key(0))
    lengths = np.mean([(len(source), len(target)) for source, target in corpus.encoded["train"]], axis=0)
    source, target = (jax.ShapeDtypeStruct((config.train.batch_size, math.ceil(n)), np.int32) for n in lengths)

    def loss(params: Params, source: Array, target: Array) -> Array:
        return batch_loss(model, params, source, target)[0].loss

    return _in_products(jax.make_jaxpr(jax.grad(loss))(params, source, target).jaxpr)


def _in_products(jaxpr: Any) -> float:
    """Multiplications of a program, loops of known length counted as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), _ = equation.params["dimension_numbers"]
            contracted = [equation.invars[0].aval.shape[axis] for axis in left]
            total += float(np.prod(equation.outvars[0].aval.shape) * np.prod(contracted))
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inside = [_in_products(inner) for inner in jaxprs_in_params(equation.params)]
        # Of branches one is taken.
        total += times * (max(inside) if equation.primitive.name == "cond" else sum(inside))
    return total


def parameters(config: Config, corpus: Corpus) -> int:
    """The number of parameters of a configuration's model, which is not made."""
    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(int(np.prod(one.shape)) for one in jax.tree.leaves(shapes))


def _recorded(output: Output) -> dict[str, Speed]:
    """The speeds that programs of the directory had."""
    found = {}
    for name, members in output.programs().items():
        place, first = output.program(name) / "timing.json", output.run(members[0]) / "config.json"
        if not (place.exists() and first.exists()):
            continue
        timing = results.read_timing(place)
        if timing.get("steps_per_second") and timing.get("compile_seconds") is not None:
            config = configs.from_dict(storage.read_json(first, results.CONFIG))
            seconds = 1 / timing["steps_per_second"] / timing["runs"]
            found[speed_key(config)] = Speed(seconds, timing["compile_seconds"])
    return found


def _saved_step(output: Output, program: str) -> int:
    """The step of a program's newest checkpoint; 0 without one."""
    names = [path.name for path in (output.program(program) / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _table(first: str, titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, overflow="fold", max_width=60)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(file=io.StringIO(), width=160, force_terminal=False, highlight=False, markup=False)
    console.print(table)
    lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def clock(seconds: float) -> str:
    """A duration: 41 s, 3 min, 5.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
