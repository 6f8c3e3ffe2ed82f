import collections
import gzip
from pathlib import Path

import pytest

from attn_jax.data import scan
from attn_jax.data.datasets import Example
from attn_jax.data.sources import Files
from attn_jax.errors import UserError


def multiset(examples: list[Example]) -> collections.Counter[tuple[str, str]]:
    return collections.Counter((example.source, example.target) for example in examples)


def published(path: Path) -> collections.Counter[tuple[str, str]]:
    rows = gzip.decompress(path.read_bytes()).decode().split("\n")[:-1]
    return collections.Counter(tuple(row.removeprefix("IN: ").strip().split(" OUT: ")) for row in rows)


def splits(name: str, manual_dir: Path | None, tmp_path: Path) -> dict[str, list[Example]]:
    return scan.recipe(name, Files(str(manual_dir) if manual_dir else None, tmp_path)).read()


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "JUMP"),
        ("jump left", "LTURN JUMP"),
        ("jump around right", "RTURN JUMP RTURN JUMP RTURN JUMP RTURN JUMP"),
        ("turn left twice", "LTURN LTURN"),
        ("jump thrice", "JUMP JUMP JUMP"),
        ("jump opposite left and walk thrice", "LTURN LTURN JUMP WALK WALK WALK"),
        (
            "jump opposite left after walk around left",
            "LTURN WALK LTURN WALK LTURN WALK LTURN WALK LTURN LTURN JUMP",
        ),
        ("turn opposite right", "RTURN RTURN"),
        ("turn around left", "LTURN LTURN LTURN LTURN"),
    ],
)
def test_meanings_given_in_the_paper(command: str, actions: str) -> None:
    long = {"LTURN": "I_TURN_LEFT", "RTURN": "I_TURN_RIGHT"}
    assert scan.interpret(command) == [long.get(a, f"I_{a}") for a in actions.split()]


def test_grammar_is_the_published_file(manual_dir: Path) -> None:
    ours = multiset(list(scan.commands()))
    assert ours == published(manual_dir / "scan/tasks.txt.gz")
    assert ours.total() == len(ours) == 20910
    assert len({word for command, _ in ours for word in command.split(" ")}) == 13
    assert len({action for _, actions in ours for action in actions.split(" ")}) == 6


FILES = {
    "length": "length_split/tasks_{}_length",
    "add_jump": "add_prim_split/tasks_{}_addprim_jump",
    "turn_left": "add_prim_split/tasks_{}_addprim_turn_left",
    "template_jump_around_right": "template_split/tasks_{}_template_jump_around_right",
    "template_right": "template_split/tasks_{}_template_right",
    "template_around_right": "template_split/tasks_{}_template_around_right",
}
SIZES = {
    "length": (16990, 3920),
    "add_jump": (14670, 7706),
    "turn_left": (21890, 1208),
    "template_jump_around_right": (18528, 1173),
    "template_right": (15225, 4476),
    "template_around_right": (15225, 4476),
    "template_opposite_right": (15225, 4476),
}


@pytest.mark.parametrize("split", SIZES)
def test_sizes_of_rules(split: str) -> None:
    assert tuple(map(len, scan.by_rule(split))) == SIZES[split]


@pytest.mark.parametrize("split", FILES)
def test_rules_give_the_published_splits(manual_dir: Path, split: str) -> None:
    for part, ours in zip(("train", "test"), scan.by_rule(split), strict=True):
        theirs = published(manual_dir / "scan" / (FILES[split].format(part) + ".txt.gz"))
        assert multiset(ours) == theirs


def test_opposite_right_follows_around_right() -> None:
    # Exchanging the two words maps one split onto the other, sides apart.
    swap = str.maketrans({"A": "opposite", "B": "around"})
    for around, opposite in zip(
        scan.by_rule("template_around_right"), scan.by_rule("template_opposite_right"), strict=True
    ):
        mapped = {e.source.replace("around", "A").replace("opposite", "B").translate(swap) for e in around}
        assert mapped == {e.source for e in opposite}


def test_repeated_primitives() -> None:
    assert multiset(scan.by_rule("add_jump")[0])["jump", "I_JUMP"] == 1467
    assert multiset(scan.by_rule("turn_left")[0])["turn left", "I_TURN_LEFT"] == 2189


def test_simple_takes_the_published_partition(manual_dir: Path, tmp_path: Path) -> None:
    made = splits("scan/simple", manual_dir, tmp_path)
    theirs = {p: published(manual_dir / f"scan/simple_split/tasks_{p}_simple.txt.gz") for p in ("train", "test")}
    assert multiset(made["test"]) == theirs["test"]
    assert multiset([*made["train"], *made["dev"]]) == theirs["train"]
    assert (len(made["train"]), len(made["dev"]), len(made["test"])) == (15083, 1645, 4182)


@pytest.mark.parametrize(("split", "folder"), scan.NACS.items())
def test_dev_sets_of_bastings(manual_dir: Path, tmp_path: Path, split: str, folder: str) -> None:
    made = splits(f"scan/{split}", manual_dir, tmp_path)
    sides = [
        gzip.decompress((manual_dir / f"scan_nacs_valid/{folder}/{part}.{side}.gz").read_bytes()).decode()
        for part in ("valid.random", "train_wo_valid_random")
        for side in ("src", "trg")
    ]
    dev_source, dev_target, train_source, train_target = ([*map(str.strip, s.split("\n"))][:-1] for s in sides)
    assert multiset(made["dev"]) == collections.Counter(zip(dev_source, dev_target, strict=True))
    # Their add_jump train set has 156 repetitions of "jump" less than SCAN's own.
    difference = multiset(made["train"]) - collections.Counter(zip(train_source, train_target, strict=True))
    assert difference == ({("jump", "I_JUMP"): 156} if split == "add_jump" else {})
    assert not collections.Counter(zip(train_source, train_target, strict=True)) - multiset(made["train"])


@pytest.mark.parametrize("split", scan.SPLITS)
def test_without_files(tmp_path: Path, split: str) -> None:
    made = splits(f"scan/{split}", None, tmp_path)
    train, dev, test = (multiset(made[part]) for part in ("train", "dev", "test"))
    assert not train & dev
    assert not (train | dev) & test
    assert max(dev.values()) == 1
    whole = 16728 if split == "simple" else SIZES[split][0]
    assert train.total() + dev.total() == whole
    assert len(dev) == (len(train) + len(dev)) // 10
    if split == "simple":
        assert test.total() == 4182


def test_notes_say_which_partition(manual_dir: Path, tmp_path: Path) -> None:
    def notes(name: str, directory: Path | None) -> tuple[str, ...]:
        return scan.recipe(name, Files(str(directory) if directory else None, tmp_path)).info.notes

    assert notes("scan/simple", manual_dir) == (
        "simple: published partition from manual_dir",
        "dev: valid.random of Bastings et al. (2018), left out of train",
    )
    assert notes("scan/simple", None) == (
        "simple: seeded partition, not the published one",
        "dev: seeded tenth of train, left out of train",
    )
    assert notes("scan/template_right", manual_dir) == ("dev: seeded tenth of train, left out of train",)


def test_the_seeded_partition_never_changes(tmp_path: Path) -> None:
    # Taken from a first run: a change here changes every figure on the seeded partition.
    made = splits("scan/simple", None, tmp_path)
    assert [example.source for example in made["dev"][:2]] == SEEDED_DEV
    assert [example.source for example in made["test"][:2]] == SEEDED_TEST


SEEDED_DEV = ["look", "jump twice"]
SEEDED_TEST = ["look thrice", "walk opposite left thrice"]


def test_a_published_file_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "scan" / "simple_split"
    folder.mkdir(parents=True)
    (folder / "tasks_train_simple.txt").write_text("IN: jump OUT: I_JUMP\njump I_JUMP\n")
    (folder / "tasks_test_simple.txt").write_text("IN: run OUT: I_RUN\n")
    with pytest.raises(UserError, match=r"tasks_train_simple\.txt:2: expected 'IN: command OUT: actions'"):
        splits("scan/simple", tmp_path, tmp_path / "downloads")
