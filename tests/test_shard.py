"""Parts of a study that are trained by calls of their own, and make one study."""

import re
import shutil

import pytest
import tiny

from attn_jax import cli_flags, jobs, planning, report_data, study
from attn_jax.errors import UserError
from attn_jax.planning import Cut, Shard
from attn_jax.pool import Local
from attn_jax.ray_tasks import Resources

BASE = tiny.config(**{"score": "none", "cell": "rnn", "train.steps": 4, "dropout.embedding": 0.2})


def run(out, shard=None):
    corpora = jobs.Corpora(lambda name: tiny.dataset())
    return study.run([BASE], seeds=range(4), out=str(out), corpora=corpora, runs_per_program=2, shard=shard)


def contents(out):
    return {
        path.relative_to(out): path.read_bytes()
        for path in [
            out / "results.csv",
            *out.glob("data/*.json"),
            *out.glob("runs/*/metrics.jsonl"),
            *out.glob("runs/*/predictions.*"),
        ]
    }


def test_shards_on_file_systems_of_their_own_make_the_whole(tmp_path, monkeypatch, capsys):
    run(tmp_path / "whole")
    for index in range(2):
        run(tmp_path / f"part{index}", Shard(index, 2))
        told = capsys.readouterr().err
        assert f"shard {index} of 2: 1 of 2 program(s); 1 are left to other shards" in told
        assert "2 of 4 runs have no result yet: the table and the page are of the others" in told
        page = (tmp_path / f"part{index}" / "report.html").read_text()
        assert re.search(r"2 runs\s+of the study not started", page)
        table = (tmp_path / f"part{index}" / "results.csv").read_text()
        assert len({line.split(",")[0] for line in table.splitlines()[1:]}) == 2
        for name in ("runs", "programs"):
            shutil.copytree(tmp_path / f"part{index}" / name, tmp_path / "merged" / name, dirs_exist_ok=True)
    monkeypatch.setattr(jobs.program, "train", lambda *args: pytest.fail("trained"))
    run(tmp_path / "merged")
    assert "have no result" not in capsys.readouterr().err
    whole = contents(tmp_path / "whole")
    assert len(whole) == 2 + 4 * 3
    assert contents(tmp_path / "merged") == whole
    # What the chart of quality by word frequency is made of.
    found, expected = (report_data.load(tmp_path / name).target_words for name in ("merged", "whole"))
    assert found == expected
    assert list(found) == [tiny.dataset().fingerprint]


def test_parts_are_disjoint_complete_and_a_function_of_the_study_alone(tmp_path):
    """No program of a part differs from one of the whole, whatever is done of it."""
    corpus = jobs.Corpora(lambda name: tiny.dataset()).corpus(BASE)
    for seeds, size in ((1, 16), (5, 2), (7, 3)):
        runs = {}
        for variant in tiny.combined(BASE, {"cell": ["rnn", "gru"]}):
            for seed in range(seeds):
                member = tiny.changed(variant, {"seed": seed})
                runs[jobs.configs.run_id(member, corpus.fingerprint)] = member
        whole = planning.plan(runs, {}, set(), Cut(size))
        for count in (2, 3, len(whole) + 1):
            found = {}
            for index in range(count):
                mine, cut = planning.part(runs, Shard(index, count), Cut(size))
                part = planning.plan(mine, {}, set(), cut)
                assert not found.keys() & part.keys()
                assert {run_id for members in part.values() for run_id in members} == set(mine)
                found |= part
                if part:
                    # Another call has trained a run of the first program: the others stay what they were.
                    first, *others = part.items()
                    rest = {run_id: config for run_id, config in mine.items() if run_id != first[1][0]}
                    left = planning.plan(rest, {}, set(), cut)
                    assert left.items() >= dict(others).items()
                    assert {run_id for members in left.values() for run_id in members} == set(rest)
            assert found == whole


@pytest.mark.parametrize(
    ("cells", "seeds", "count", "hint"),
    [
        (["rnn"], 10, 8, "5 shard(s) have nothing to do: --runs_per_program=1 gives every shard work"),
        (["rnn", "gru"], 6, 5, "1 shard(s) have nothing to do: --runs_per_program=2 gives every shard work"),
        (["rnn"], 3, 4, "3 shard(s) have nothing to do: there are no more than 3 runs, of which each shard needs one"),
        (["rnn", "gru"], 6, 2, ""),
    ],
)
def test_shards_without_work_are_told_what_gives_them_some(capsys, cells, seeds, count, hint):
    runs = {
        f"{variant.cell.name}-{seed}": tiny.changed(variant, {"seed": seed})
        for variant in tiny.combined(BASE, {"cell": cells})
        for seed in range(seeds)
    }
    planning.part(runs, Shard(0, count), Cut())
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith(f"are left to other shards{'; ' if hint else ''}{hint}\n")
    found = re.search(r"--runs_per_program=(\d+)", hint)
    for index in range(count if found else 0):
        mine, _ = planning.part(runs, Shard(index, count), Cut(int(found[1])))
        assert mine
        assert "nothing to do" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "0/0", "a/b", "0/2/3", "/2", "1/"])
def test_what_is_no_part(text):
    with pytest.raises(UserError, match=re.escape(f"--shard={text}: expected i/n, with i from 0 to n - 1")):
        Shard.parse(text)


def test_a_part_without_a_program(tmp_path, capsys):
    page = run(tmp_path / "out", Shard(7, 8))
    assert "shard 7 of 8: 0 of 2 program(s)" in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], Local()),
        (["--jobs=3"], Local(3)),
        (["--launcher=ray"], Resources()),
        (
            ["--launcher=ray", "--ray_address=a:1", "--cpus_per_program=2", "--gpus_per_program=0.5"],
            Resources("a:1", 2, 0.5),
        ),
        (["--launcher=ray", "--tpus_per_program=4"], Resources(tpus=4)),
        (["--jobs=2", "--launcher=ray"], "--jobs: goes with --launcher=local"),
        (["--gpus_per_program=0.5"], "--gpus_per_program: goes with --launcher=ray"),
        (["--ray_address=auto"], "--ray_address: goes with --launcher=ray"),
        (
            ["--launcher=ray", "--gpus_per_program=1.5"],
            "--gpus_per_program=1.5: expected a fraction below 1 or a whole number",
        ),
    ],
)
def test_flags(words, found):
    values = cli_flags.flags.FlagValues()
    cli_flags.define_launching(values)
    values(["study", *words])
    if isinstance(found, str):
        with pytest.raises(UserError, match=re.escape(found)):
            cli_flags.launching(values)
    else:
        assert cli_flags.launching(values) == found
