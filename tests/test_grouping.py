import json

import jax
import pytest
import tiny

from attn_jax import grouping, planning, study
from attn_jax.devices import MeshShape
from attn_jax.errors import UserError
from attn_jax.grouping import together
from attn_jax.planning import Cut
from attn_jax.pool import Local


def corpora():
    return study.Corpora(lambda name: tiny.dataset())


def width(size: int, **changes):
    return tiny.config(embedding__size=size, encoder__size=size, decoder__size=size, **changes)


@pytest.mark.parametrize(("most", "runs"), grouping.CPU)
def test_a_cpu_has_fewer_runs_the_wider_they_are(most, runs):
    assert together(width(most), 0).runs == runs
    assert together(width(most + 1), 0).runs < runs


def test_the_widest_layer_counts():
    narrow = width(8)
    for path in ("embedding.size", "encoder.size", "decoder.size"):
        assert together(tiny.changed(narrow, {path: 4096}), 0).runs == 1
    assert together(width(4096, model="transformer", transformer__size=8, transformer__feedforward=8), 0).runs > 1
    assert together(width(8, model="transformer", transformer__size=8, transformer__feedforward=4096), 0).runs == 1


def test_what_is_asked_for_counts_and_devices_have_their_parts():
    assert together(width(4096), 0, asked=7).runs == 7
    assert together(width(4096), 3).runs == 3 * grouping.ACCELERATOR
    assert together(width(4096), 0, multiple=4).runs == 4
    assert together(width(8), 0, multiple=3).runs == 3
    assert together(width(8), 0, multiple=5).runs == 5


@pytest.mark.parametrize(("asked", "programs"), [(0, [2, 2, 1]), (3, [3, 2])])
def test_programs_are_cut_so_and_say_why(tmp_path, monkeypatch, asked, programs):
    monkeypatch.setattr(grouping, "CPU", ((8, 2),))
    config = width(8, train__steps=2)
    study.run(
        [config],
        seeds=range(5),
        out=str(tmp_path),
        corpora=corpora(),
        runs_per_program=asked,
    )
    found = [json.loads(path.read_text()) for path in tmp_path.glob("programs/*/program.json")]
    assert sorted((len(one["members"]) for one in found), reverse=True) == programs
    why = {"runs": 3, "why": "as asked for"} if asked else {"runs": 2, "why": "width 8 on a CPU"}
    assert all(one["together"] == why for one in found)


@pytest.mark.parametrize(
    ("runs", "asked", "programs"),
    [
        *((3, 4, [3]), (5, 4, [4, 1]), (6, 4, [4, 2]), (7, 4, [4, 3]), (8, 4, [4, 4]), (9, 4, [4, 4, 1])),
        *((10, 4, [4, 4, 2]), (15, 4, [4, 4, 4, 3]), (3, 2, [2, 1]), (6, 3, [3, 3]), (3, 1, [1, 1, 1])),
        *((40, 32, [20, 20]), (7, 5, [4, 3])),
    ],
)
def test_programs_have_pairs_of_runs_for_pairs_of_cores(runs, asked, programs):
    members = {str(seed): width(8, seed=seed) for seed in range(runs)}
    plan = list(planning.plan(members, {}, set(), Cut(asked)).values())
    assert [len(part) for part in plan] == programs
    assert [run_id for part in plan for run_id in part] == list(members)


def test_a_negative_number_of_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="runs_per_program=-1"):
        study.run([width(8)], seeds=[0], out=str(tmp_path / "out"), corpora=corpora(), runs_per_program=-1)
    assert not (tmp_path / "out").exists()


def test_programs_are_cut_for_a_mesh():
    runs = {str(seed): width(8, seed=seed) for seed in range(20)}
    plan = planning.plan(runs, {}, set(), Cut(16, MeshShape(run=4)))
    assert sorted(map(len, plan.values())) == [8, 12]
    assert sorted(member for members in plan.values() for member in members) == sorted(runs)


def test_shards_agree_whatever_their_machines(monkeypatch):
    here = Cut.of(0, None, Local(), sharded=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = Cut.of(0, None, Local(), sharded=True)
    for size in (8, 200, 4096):
        assert here.together(width(size)) == there.together(width(size))
    assert here.together(width(4096)).why == "width 4096 in a study in shards"
    assert Cut.of(0, None, Local(), sharded=False).together(width(4096)).runs > 1


@pytest.mark.parametrize("size", [8, 200, 4096])
def test_on_a_cpu_shards_have_the_programs_of_the_whole(size):
    runs = {str(seed): width(size, seed=seed) for seed in range(20)}
    whole = planning.plan(runs, {}, set(), Cut.of(0, None, Local(), sharded=False))
    cut = Cut.of(0, None, Local(), sharded=True)
    found = {}
    for index in range(3):
        mine, part = planning.part(runs, planning.Shard(index, 3), cut)
        found |= planning.plan(mine, {}, set(), part)
    assert found == whole
