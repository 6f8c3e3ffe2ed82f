"""SCAN: commands to actions (Lake and Baroni 2018), generated from its grammar.

With U a verb and D a direction, the 20,910 commands are

    C = S | S and S | S after S        S = V | V twice | V thrice
    V = U | U D | U opposite D | U around D | turn D | turn opposite D | turn around D

for U in walk, look, run, jump and D in left, right. `interpret` gives the meaning: "x after y" does y first,
"opposite" turns twice, "around" turns and acts four times.
"""

import collections
import functools
import hashlib
import itertools
import re
from collections.abc import Sequence

from attn_jax.data import reading
from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

VERBS = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
TIMES = {"twice": 2, "thrice": 3}

# What is tested, and, for the templates, the form of "turn" that the published files have in neither part.
HELD_OUT = {
    "add_jump": (r"\bjump\b", None),
    "turn_left": (r"\bturn left\b", None),
    "template_jump_around_right": (r"\bjump around right\b", "turn around right"),
    "template_right": (r"\b(walk|look|run|jump|turn) right\b", "turn right"),
    "template_around_right": (r"\baround right\b", "turn around right"),
    "template_opposite_right": (r"\bopposite right\b", "turn opposite right"),
}
PRIMITIVES = {"add_jump": "jump", "turn_left": "turn left"}
LONGEST_TRAIN = 22
PUBLISHED = ("simple_split/tasks_train_simple.txt", "simple_split/tasks_test_simple.txt")
NACS = {"simple": "simple", "length": "length", "add_jump": "add_jump", "turn_left": "add_turn_left"}
SPLITS = ("simple", "length", *HELD_OUT)
PATTERNS: tuple[str, ...] = tuple(f"scan/{split}" for split in SPLITS)

CITATION = (
    "Lake, B. M. and Baroni, M. (2018). Generalization without systematicity: On the compositional skills "
    "of sequence-to-sequence recurrent networks. ICML. Template splits: Loula, J., Baroni, M. and Lake, B. "
    "M. (2018). Rearranging the familiar: Testing compositional generalization in recurrent networks. "
    "BlackboxNLP. Dev sets: Bastings, J., Baroni, M., Weston, J., Cho, K. and Kiela, D. (2018). Jump to "
    "better conclusions: SCAN both left and right. BlackboxNLP."
)
RECOMMENDED = {
    "data.source_unit": "words",
    "data.target_unit": "words",
    "cell": "lstm",
    "embedding.size": 64,
    "encoder.name": "uni",
    "encoder.size": 128,
    "bridge": "last",
    "decoder.size": 128,
    "optim.learning_rate": 4e-3,
    "optim.schedule": "cosine",
    "optim.warmup_share": 0.042,
    "optim.clip_norm": 5.0,
    "train.batch_size": 64,
    "train.epochs": 10.0,
}


def names() -> list[str]:
    """Every data set of this family."""
    return list(PATTERNS)


def interpret(command: str) -> list[str]:
    """The actions of a command."""
    if " and " in command:
        first, second = command.split(" and ")
        return interpret(first) + interpret(second)
    if " after " in command:
        second, first = command.split(" after ")
        return interpret(first) + interpret(second)
    parts = command.split(" ")
    if parts[-1] in TIMES:
        return interpret(" ".join(parts[:-1])) * TIMES[parts[-1]]
    act = [] if parts[0] == "turn" else [f"I_{parts[0].upper()}"]
    if len(parts) == 1:
        return act
    turn = [f"I_TURN_{parts[-1].upper()}"]
    return {"opposite": turn * 2 + act, "around": (turn + act) * 4}.get(parts[1], turn + act)


@functools.cache
def commands() -> tuple[Example, ...]:
    """All 20,910 commands with their actions."""
    manners = ["", "opposite ", "around "]
    phrases = list(VERBS)
    phrases += [f"{v} {m}{d}" for v, m, d in itertools.product((*VERBS, "turn"), manners, DIRECTIONS)]
    sentences = [phrase + times for phrase in phrases for times in ("", " twice", " thrice")]
    whole = list(sentences)
    for link in (" and ", " after "):
        whole += [first + link + second for first in sentences for second in sentences]
    return tuple(pair(command, " ".join(interpret(command))) for command in whole)


def by_rule(split: str) -> tuple[list[Example], list[Example]]:
    """Train and test of a split that is defined by a rule.

    length: at most 22 actions in train. add_jump and turn_left: the primitive alone stays in train, repeated
    until it is a tenth of it. Templates: commands with the template are the test set, those that apply it to
    "turn", which has no action of its own, are left out.
    """
    if split == "length":
        return _partition([len(reading.words(example.target)) <= LONGEST_TRAIN for example in commands()])
    tested, dropped = HELD_OUT[split]
    train, test = _partition([not re.search(tested, example.source) for example in commands()])
    if dropped:
        train, test = ([e for e in half if dropped not in e.source] for half in (train, test))
    if split in PRIMITIVES:
        (primitive,) = (example for example in test if example.source == PRIMITIVES[split])
        test.remove(primitive)
        train += [primitive] * (len(train) // 9)
    return train, test


def seeded(examples: Sequence[Example], parts: int) -> list[bool]:
    """Marks one in `parts` distinct commands, chosen by hash: the same on every machine, in any order."""
    distinct = {example.source for example in examples}
    ranked = sorted(distinct, key=lambda command: hashlib.sha256(f"attn_jax:{command}".encode()).digest())
    chosen = set(ranked[: len(ranked) // parts])
    return [example.source in chosen for example in examples]


def seeded_partition_of_all() -> tuple[list[Example], list[Example]]:
    """Four fifths of all commands for train and one for test, of the published sizes."""
    return _partition([not mark for mark in seeded(commands(), 5)])


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of scan/<split>. Raises UserError on an unknown split."""
    split = name.partition("/")[2]
    if split not in SPLITS:
        raise unknown("SCAN split", split, SPLITS)
    published = _local(files, "scan", PUBLISHED) if split == "simple" else []
    seeded_partition = split == "simple" and not published
    # A dev set of Bastings et al. is part of the published train set; another partition cannot use it.
    folder = NACS.get(split)
    dev_files = [f"{folder}/valid.random.src", f"{folder}/valid.random.trg"]
    bastings = _local(files, "scan_nacs_valid", dev_files) if folder and not seeded_partition else []

    def read() -> dict[str, Sequence[Example]]:
        if published:
            train, test = (_read_published(data, path) for data, path in published)
        else:
            train, test = seeded_partition_of_all() if seeded_partition else by_rule(split)
        if bastings:
            (source, source_path), (target, target_path) = bastings
            dev = reading.parallel(source, source_path, target, target_path)
            return {"train": _without(train, dev, source_path), "dev": dev, "test": test}
        train, dev = _tenth(train, PRIMITIVES.get(split))
        return {"train": train, "dev": dev, "test": test}

    notes = []
    if split == "simple":
        which = "published partition from manual_dir" if published else "seeded partition, not the published one"
        notes.append(f"simple: {which}")
    which = "valid.random of Bastings et al. (2018)" if bastings else "seeded tenth of train"
    notes.append(f"dev: {which}, left out of train")
    info = Info(
        name=name,
        citation=CITATION,
        licence="BSD (SCAN); the dev sets of Bastings et al. are CC BY-NC 4.0",
        metric="exact_match",
        url="https://github.com/brendenlake/SCAN",
        recommended=RECOMMENDED,
        notes=tuple(notes),
    )
    return Recipe(info, read)


def _local(files: Files, folder: str, names: Sequence[str]) -> list[tuple[bytes, str]]:
    """Content and path of files that are all under manual_dir; nothing otherwise."""
    if not all(files.local(folder, name) for name in names):
        return []
    return [(files.read(folder, name), files.label(folder, name)) for name in names]


def _partition(marks: Sequence[bool]) -> tuple[list[Example], list[Example]]:
    marked = [example for example, mark in zip(commands(), marks, strict=True) if mark]
    return marked, [example for example, mark in zip(commands(), marks, strict=True) if not mark]


def _tenth(train: list[Example], primitive: str | None) -> tuple[list[Example], list[Example]]:
    """Train and its seeded tenth. A repeated primitive stays in train whole."""
    marks = [mark and example.source != primitive for example, mark in zip(train, seeded(train, 10), strict=True)]
    kept = [example for example, mark in zip(train, marks, strict=True) if not mark]
    return kept, [example for example, mark in zip(train, marks, strict=True) if mark]


def _read_published(data: bytes, path: str) -> list[Example]:
    examples = []
    for number, line in enumerate(reading.lines(data, path), 1):
        command, separator, actions = line.removeprefix("IN: ").partition(" OUT: ")
        if not line.startswith("IN: ") or not separator:
            raise UserError(f"{path}:{number}: expected 'IN: command OUT: actions'")
        examples.append(pair(command, actions))
    return examples


def _without(train: Sequence[Example], dev: Sequence[Example], path: str) -> list[Example]:
    """Train without one occurrence of each dev example. Raises UserError when dev is not a part of train."""
    left = collections.Counter(dev)
    kept = []
    for example in train:
        if left[example]:
            left[example] -= 1
        else:
            kept.append(example)
    if left.total():
        missing = next(example for example, count in left.items() if count)
        raise UserError(f"{path}: the dev command '{missing.source}' is not in the train set of this split")
    return kept
