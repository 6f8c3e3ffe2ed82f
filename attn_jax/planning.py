"""Which runs make which programs, and which program is next."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence

import jax

from attn_jax import devices, grouping, processes, results
from attn_jax.config import Config
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.grouping import Together
from attn_jax.pool import Local
from attn_jax.ray_tasks import Resources
from attn_jax.results import Output
from attn_jax.sweep import groups


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a study's programs, `index` of `count` from 0."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """What `i/n` says. Raises UserError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--shard={text}: expected i/n, with i from 0 to n - 1")
        return cls(int(index), int(count))

    def of(self, programs: Sequence[list[str]]) -> list[list[str]]:
        """The programs of this part: every n-th by the number of their runs, so that no part has all the large ones."""
        return sorted(programs, key=len, reverse=True)[self.index :: self.count]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How runs are cut into programs.

    size: runs of a program, at most; 0: as `grouping` says, on so many accelerators. parts: no program has runs of two
    of them.
    """

    size: int = 0
    mesh: MeshShape | None = None
    accelerators: int = 0
    sharded: bool = False
    parts: Sequence[Sequence[str]] | None = None

    @classmethod
    def of(cls, size: int, mesh: MeshShape | None, where: Local | Resources, *, sharded: bool) -> "Cut":
        """How a study is cut that is trained there. Raises UserError if the size is negative."""
        if size < 0:
            raise UserError(f"runs_per_program={size}: must be at least 0")
        return cls(size, mesh, _accelerators(where, mesh), sharded)

    def together(self, config: Config) -> Together:
        """The most runs of this structure in a program, and why."""
        return grouping.together(config, self.accelerators, self.size, sharded=self.sharded, multiple=self._devices)

    def programs(self, group: Sequence[Config]) -> list[Sequence[Config]]:
        """Runs of equal structure, cut into programs of nearly equal size."""
        most = self.together(group[0]).runs
        # As many runs a program as devices share evenly. Where no mesh says how many those are, or the group has no
        # whole units of them, pairs: two cores share a program of two or four runs evenly, and one of three not at all.
        unit = self._devices if len(group) % self._devices == 0 else 1
        if unit == 1 and most % 2 == 0:
            unit = 2
        units = -(-len(group) // unit)
        count = -(-units // max(1, most // unit))
        bounds = [-(-k * units // count) * unit for k in range(count + 1)]
        return [group[start:end] for start, end in itertools.pairwise(bounds)]

    @property
    def _devices(self) -> int:
        """On how many a mesh spreads the runs of a program."""
        return self.mesh.run if self.mesh else 1


def _accelerators(where: Local | Resources, mesh: MeshShape | None) -> int:
    """The GPUs or TPUs that train different runs of a program."""
    if isinstance(where, Resources):
        found = math.ceil(where.gpus + where.tpus)
    elif where.jobs > 1:
        found = min(1, len(devices.visible_gpus()))
    else:
        found = 0 if jax.default_backend() == "cpu" else jax.device_count()
    return mesh.run if mesh and found else found


def part(runs: Mapping[str, Config], shard: Shard | None, cut: Cut) -> tuple[dict[str, Config], Cut]:
    """The runs of a part of the study, and how they are cut: a function of the study, not of what is done."""
    if shard is None:
        return dict(runs), cut
    programs = list(plan(runs, {}, set(), cut).values())
    parts = shard.of(programs)
    if processes.leads():
        text = f"shard {shard.index} of {shard.count}: {len(parts)} of {len(programs)} program(s)"
        text += f"; {len(programs) - len(parts)} are left to other shards"
        if len(programs) < shard.count:
            hint = _spread(runs, cut, programs, shard.count)
            text += f"; {shard.count - len(programs)} shard(s) have nothing to do: {hint}"
        print(text, file=sys.stderr, flush=True)
    mine = {member: runs[member] for part in parts for member in part}
    return mine, dataclasses.replace(cut, parts=parts)


def _spread(runs: Mapping[str, Config], cut: Cut, programs: Sequence[list[str]], count: int) -> str:
    """What to do for every one of so many shards to have a program, of which there are fewer."""
    for size in range(max(map(len, programs)) - 1, 0, -1):
        if len(plan(runs, {}, set(), dataclasses.replace(cut, size=size))) >= count:
            return f"--runs_per_program={size} gives every shard work"
    return f"there are no more than {len(runs)} runs, of which each shard needs one"


@dataclasses.dataclass(frozen=True)
class Work:
    """A program to do. left: programs to do, this one included."""

    members: list[str]
    left: int


def following(
    runs: Mapping[str, Config],
    trained: set[str],
    output: Output,
    cut: Cut,
    in_hand: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Work | None, int]:
    """The next program to train; and how many runs without a result other processes have in hand.

    To be called while alone. trained: runs that this call has trained, and does not train again for the sake of another
    program. in_hand: programs that processes of this call have been given, whether or not they have begun.
    """
    in_hand = in_hand or {}
    recorded = output.programs()
    ours = {run_id for members in in_hand.values() for run_id in members}
    free: list[str] = []
    taken: set[str] = set()
    for name, members in recorded.items():
        if name not in in_hand and not all(map(output.done, members)):
            claim = output.claim(name)
            if claim is None:
                taken |= set(members)
            else:
                claim.close()
                free.append(name)
    # Not before the claims: a program that is free now may have been finished a moment ago.
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: recorded[name] for name in free if runs.keys() - trained >= set(recorded[name])}
    planned = plan(missing, begun, taken | ours, cut)
    if cut.mesh is not None:
        # All of the plan, so that the first program does not train before the second one turns out to be impossible.
        for members in planned.values():
            devices.check_program(cut.mesh, len(members), runs[members[0]].train.batch_size)
    if not planned:
        return None, len(missing.keys() & taken - ours)
    return Work(next(iter(planned.values())), len(planned)), 0


def outlined(runs: Mapping[str, Config], output: Output, cut: Cut) -> dict[str, list[str]]:
    """The programs, by id, that a call would train one after another if no other process were at work."""
    missing = {run_id: config for run_id, config in runs.items() if not output.done(run_id)}
    begun = {name: members for name, members in output.programs().items() if runs.keys() >= set(members)}
    return plan(missing, begun, set(), cut)


def plan(
    missing: Mapping[str, Config], begun: Mapping[str, list[str]], taken: set[str], cut: Cut
) -> dict[str, list[str]]:
    """Programs to do, by id: those that were begun before, as they were written down, then the other runs by group.

    taken: runs that other processes have in hand. Of programs that share a run the one that lacks most results is
    taken up; what another lacks besides makes new programs.
    """
    planned: dict[str, list[str]] = {}
    lacking = {name: missing.keys() & set(members) for name, members in begun.items()}
    for name in sorted(begun, key=lambda name: -len(lacking[name])):
        if lacking[name] and taken.isdisjoint(lacking[name]):
            planned[name] = begun[name]
            taken = taken | lacking[name]
    for some in [list(missing)] if cut.parts is None else cut.parts:
        ids = {missing[run_id]: run_id for run_id in some if run_id in missing and run_id not in taken}
        for group in groups(list(ids)):
            for together in cut.programs(group):
                members = [ids[config] for config in together]
                planned[results.program_id(members)] = members
    return planned
