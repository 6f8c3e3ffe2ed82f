import functools

import pytest
from absl import flags

from attn_jax import cli_choices, cli_flags, combinators
from attn_jax.errors import UserError

# -- overrides and sweeps ------------------------------------------------------------------------------------


def parse(*words: str, scores: tuple[str, ...] = ("none", "dot")) -> flags.FlagValues:
    values = flags.FlagValues()
    axes = {"score": lambda: scores, "cell": lambda: ("lstm", "gru"), "input_feeding": lambda: ("none",)}
    cli_flags.define(axes, flag_values=values)
    values(["study", "--dataset=geo", "--out=x", *words])
    return values


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (
            ["--steps=5", "--batch_size=3", "--hidden_size=7"],
            {"train.steps": "5", "train.batch_size": "3", "hidden_size": "7"},
        ),
        (["--epochs=2"], {"train.epochs": "2.0", "train.steps": "0"}),
        (["--set=train.epochs=2"], {"train.epochs": "2", "train.steps": "0"}),
        (["--epochs=2", "--set=train.steps=0"], {"train.epochs": "2.0", "train.steps": "0"}),
        (["--set=score=dot"], {"score.name": "dot"}),
        (["--set=train.metric=a,b=c"], {"train.metric": "a,b=c"}),
        (["--set", "cell=gru"], {"cell.name": "gru"}),
    ],
)
def test_overrides(words: list[str], expected: dict[str, str]) -> None:
    assert cli_choices.overrides(parse(*words)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (
            ["--sweep=optim.learning_rate=1e-3, 0.1", "--cells=gru,lstm", "--scores=dot"],
            {"score.name": ["dot"], "cell.name": ["gru", "lstm"], "optim.learning_rate": ["1e-3", "0.1"]},
        ),
        (["--sweep=score=dot,none"], {"score.name": ["dot", "none"]}),
        (["--epochs=2", "--sweep=train.steps=0,4"], {"train.steps": ["0", "4"]}),
        (["--sweep=train.epochs=1,2"], {"train.epochs": ["1", "2"], "train.steps": ["0"]}),
    ],
)
def test_sweeps(words: list[str], expected: dict[str, list[str]]) -> None:
    swept = cli_choices.sweeps(parse(*words))
    assert swept == expected
    assert sorted(swept, key=list(expected).index) == list(swept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--scores=dot,dot", "--scores: score has the value dot twice"),
        ("--sweep=train.steps=10,010", "--sweep: train.steps has the value 010 twice"),
        ("--sweep=train.epochs=1,1.0", "--sweep: train.epochs has the value 1.0 twice"),
        (
            "--sweep=score=dot --scores=dot",
            "--sweep: the values of score are given twice; give them in one flag",
        ),
        (
            "--sweep=score=dot --set=score=none",
            "--sweep: score is also set to none; set it or compare values of it",
        ),
        ("--sweep=train.steps=a", "--sweep: train.steps='a': expected an integer"),
        (
            "--sweep=train.steps=",
            "--sweep=train.steps=: expected values separated by commas, and none of them empty",
        ),
        ("--sweep=score=dto", "--sweep: unknown score 'dto': did you mean 'dot'? (allowed: dot, none)"),
        ("--set=score=dto", "--set: unknown score 'dto': did you mean 'dot'? (allowed: dot, none)"),
        (
            "--set=learning_rate=1",
            "--set: unknown configuration field 'learning_rate': "
            "did you mean optim.learning_rate? (--helpconfig lists the fields)",
        ),
        (
            "--set=optim.learnin_rate=1",
            "--set: unknown configuration field 'optim.learnin_rate': "
            "did you mean optim.learning_rate? (--helpconfig lists the fields)",
        ),
        ("--set=qqq=1", "--set: unknown configuration field 'qqq' (--helpconfig lists the fields)"),
        ("--set=train.batch_size=0", "--set: train.batch_size=0: must be greater than 0"),
        ("--set=seed=1", "--set: seed has a flag of its own: use --seeds"),
        ("--sweep=data.dataset=a,b", "--sweep: data.dataset has a flag of its own: use --dataset"),
        (
            "--steps=1 --epochs=1",
            "--steps and --epochs: only one of them can give the length of training",
        ),
        (
            "--steps=3 --set=train.epochs=5",
            "--steps and --set=train.epochs: only one of them can give the length of training",
        ),
        (
            "--epochs=5 --set=train.steps=50",
            "--set=train.steps and --epochs: only one of them can give the length of training",
        ),
        (
            "--steps=5 --sweep=train.epochs=1,2",
            "--steps and --sweep=train.epochs: only one of them can give the length of training",
        ),
        (
            "--epochs=2 --sweep=train.steps=3,4",
            "--sweep=train.steps and --epochs: only one of them can give the length of training",
        ),
        ("--steps=3 --set=train.steps=4", "--steps and --set=train.steps: train.steps is set twice"),
        ("--set=score=dot --set=score.name=none", "--set=score and --set=score.name: score.name is set twice"),
        ("--learning_rate=0", "--learning_rate: optim.learning_rate=0.0: must be greater than 0"),
    ],
)
def test_wrong_overrides_and_sweeps(words: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        cli_choices.sweeps(parse(*words.split()))
    assert str(error.value) == message


def test_files_of_parallel_text() -> None:
    assert cli_flags.files(parse()) is None
    assert cli_flags.files(parse("--files=train=a.de,a.en", "--files=test=dir=1/t.tsv")) == {
        "train": ["a.de", "a.en"],
        "test": ["dir=1/t.tsv"],
    }
    with pytest.raises(UserError, match="--files: the split train is given twice"):
        cli_flags.files(parse("--files=train=a.tsv", "--files=train=b.tsv"))
    with pytest.raises(UserError, match="--files=train=a,: expected values separated by commas"):
        cli_flags.files(parse("--files=train=a,"))


def test_a_name_that_enters_its_table_after_parsing_is_allowed() -> None:
    table = ["none"]
    values = flags.FlagValues()
    cli_flags.define({"score": lambda: table}, flag_values=values)
    values(["study", "--dataset=geo", "--out=x", "--scores=mine"])
    with pytest.raises(UserError, match="unknown score 'mine'"):
        cli_choices.sweeps(values)
    table.append("mine")
    assert cli_choices.sweeps(values) == {"score.name": ["mine"]}


def test_files_are_asked_for_only_where_they_can_be_used() -> None:
    for datasets, has in ((), True), (("geo", "jobs"), False), (("geo", "parallel_text"), True):
        values = flags.FlagValues()
        cli_flags.define({}, datasets=datasets, flag_values=values)
        assert ("files" in values) == has


# -- named sweeps and tuning -----------------------------------------------------------------------------------------


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps with names, good and bad."""
    made = {
        "two": combinators.values("score", "none", "dot"),
        "sizes": combinators.values("hidden_size", 4, 8),
        "epochs": combinators.values("train.epochs", 1, 2),
        "steps": combinators.values("train.steps", 1, 2),
        "typo": [{"score": "dto"}],
        "field": [{"scoer": "dot"}],
        "seeds": [{"seed": 1}],
        "nothing": [],
    }
    table = {}
    for name, sweep in made.items():
        table[name] = functools.partial(list, sweep)
        table[name].__doc__ = "Of a test."
    monkeypatch.setattr(combinators, "SWEEPS", table)


def chosen(*words: str) -> combinators.Sweep:
    values = parse(*words)
    return cli_choices.choices(cli_choices.sweeps(values), values)


def test_named_sweeps_multiply_with_each_other_and_with_axes(sweeps: None) -> None:
    assert chosen() == [{}]
    assert chosen("--sweep=two", "--cells=gru,lstm", "--sweep=sizes") == [
        {"score.name": score, "hidden_size": size, "cell.name": cell}
        for score in ("none", "dot")
        for size in (4, 8)
        for cell in ("gru", "lstm")
    ]
    assert chosen("--sweep=epochs") == [{"train.epochs": n, "train.steps": 0} for n in (1, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sweep=tow", "unknown sweep 'tow': did you mean 'two'? (allowed: "),
        (
            "--sweep=two --scores=dot",
            "--sweep=two: this sweep chooses score.name, and another flag compares values of it",
        ),
        ("--sweep=two --set=score=dot", "--sweep=two: this sweep chooses score.name, and --set=score sets it"),
        ("--sweep=sizes --hidden_size=4", "--sweep=sizes: this sweep chooses hidden_size, and --hidden_size sets it"),
        ("--sweep=two --sweep=two", "--sweep=two: this sweep chooses score.name, and --sweep=two chooses it"),
        ("--sweep=typo", "--sweep=typo: unknown score 'dto': did you mean 'dot'? (allowed: dot, none)"),
        ("--sweep=field", "--sweep=field: unknown configuration field 'scoer'"),
        ("--sweep=seeds", "--sweep=seeds: seed has a flag of its own: use --seeds"),
        ("--sweep=nothing", "--sweep=nothing: this sweep has no variants"),
        ("--sweep=steps --epochs=3", "--sweep=steps: this sweep chooses train.steps, and another flag train.epochs"),
        ("--sweep=epochs --steps=3", "--sweep=epochs: this sweep chooses train.epochs, and another flag train.steps"),
    ],
)
def test_wrong_named_sweeps(words: str, message: str, sweeps: None) -> None:
    with pytest.raises(UserError) as error:
        chosen(*words.split())
    assert str(error.value).startswith(message)


def test_a_script_without_named_sweeps_wants_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combinators, "SWEEPS", {})
    with pytest.raises(flags.IllegalFlagValueError, match="expected PATH=V1,V2"):
        parse("--sweep=two")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        (
            "--tune=optim.learning_rate=1e-3,0.1 --tune=cell=gru,lstm --tune_seeds=4",
            {"optim.learning_rate": ["1e-3", "0.1"], "cell.name": ["gru", "lstm"]},
        ),
        ("--tune=train.epochs=1,2", {"train.epochs": ["1", "2"], "train.steps": ["0"]}),
    ],
)
def test_tuned(words: str, expected: dict[str, list[str]]) -> None:
    assert cli_choices.tuned(parse(*words.split())) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tune=score=dto", "--tune: unknown score 'dto': did you mean 'dot'? (allowed: dot, none)"),
        ("--tune=cell=gru,gru", "--tune: cell has the value gru twice"),
        ("--tune=cell=", "--tune=cell=: expected values separated by commas, and none of them empty"),
        (
            "--tune=cell=gru --tune=cell.name=lstm",
            "--tune: the values of cell.name are given twice; give them in one flag",
        ),
        ("--tune=cell=gru --set=cell=lstm", "--tune: cell is set by --set=cell already; set it or tune it"),
        ("--tune=cell=gru --cells=lstm", "--tune: cell is compared already; compare its values or tune it"),
        ("--tune=score=dot,none --sweep=two", "--tune: score is compared already; compare its values or tune it"),
        ("--tune=seed=1,2", "--tune: seed has a flag of its own: use --seeds"),
        ("--tune_seeds=3", "--tune_seeds: nothing is tuned; name a field and its values by --tune"),
        (
            "--steps=3 --tune=train.epochs=1,2",
            "--steps and --tune=train.epochs: only one of them can give the length of training",
        ),
    ],
)
def test_wrong_tuning(words: str, message: str, sweeps: None) -> None:
    with pytest.raises(UserError) as error:
        cli_choices.tuned(parse(*words.split()))
    assert str(error.value) == message


def test_the_home_directory_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    given = parse("--manual_dir=~/data", "--data_dir=~/kept", "--files=train=~/a,b", "--load=~/mine.py", "--out=~/out")
    assert (given.manual_dir, given.data_dir, given.out) == ("/home/of/data", "/home/of/kept", "/home/of/out")
    assert cli_flags.files(given) == {"train": ["/home/of/a", "b"]}
    assert given.load == ["/home/of/mine.py"]
