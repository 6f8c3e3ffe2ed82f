import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags

from attn_jax import cli_choices, cli_flags, combinators
from attn_jax.errors import UserError

SCRIPT = '''"""Compare toys.

    python toy_study.py --scores=none,dot
"""
import atexit
import os
import time

from absl import flags

from attn_jax import cli, cli_choices, cli_flags, cli_study
from attn_jax.errors import UserError

_MODE = flags.DEFINE_enum("mode", "print", ["print", "user", "bug", "sleep", "many", "code", "end"], "what to do")
_FAST = flags.DEFINE_boolean("fast", False, "hurry")
AXES = {"score": lambda: ["none", "dot", "general"], "input_feeding": lambda: ["none", "attentional"]}
cli_flags.define(AXES, dataset="geo", datasets=["geo", "jobs"])


def main() -> int | None:
    print("ready", flush=True)
    match _MODE.value:
        case "print":
            print(cli_choices.overrides(), cli_choices.sweeps(), sep="\\n")
            print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
            print(cli_study.command_line())
        case "user":
            raise UserError("the files differ:\\n  3 lines and 4 lines")
        case "bug":
            raise ValueError("a bug")
        case "sleep":
            time.sleep(60)
        case "many":
            for _ in range(100_000):
                print("x" * 80)
        case "code":
            return 75
        case "end":
            atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
    return None


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
'''

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "toy_study.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def run(script: Path) -> Run:
    def call(*words: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, script.name, *words],
            cwd=script.parent,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


# -- help ----------------------------------------------------------------------------------------------------


def test_help_shows_the_script_s_flags_only(run: Run) -> None:
    result = run("--help", COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Compare toys.\n\n    python toy_study.py --scores=none,dot\n\nFlags:\n")
    lines = result.stdout.splitlines()
    for name, (first, second) in {
        "mode": ("what to do (default: print)", "one of: print, user, bug, sleep, many, code, end"),
        "dataset": ("data set, or several (default: geo)", "any of: geo, jobs"),
        "scores": ("compare these values of score", "any of: none, dot, general"),
        "input_feedings": ("compare these values of input_feeding", "any of: none, attentional"),
    }.items():
        (position,) = (i for i, line in enumerate(lines) if line.startswith(f"  --{name}="))
        assert lines[position].endswith(first)
        assert lines[position + 1].strip() == second
    assert "  --[no]fast" in result.stdout
    assert "--verbosity" not in result.stdout  # a library's
    assert max(map(len, lines)) <= 80


def test_help_wins_over_mistakes_and_wraps(run: Run) -> None:
    result = run("--seeds=x", "stray", "--help", COLUMNS="60")
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_helpconfig_names_fields_defaults_and_allowed_values(run: Run) -> None:
    result = run("--helpconfig", COLUMNS="200")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert "score.name=general scoring function one of: none, dot, general" in text
    assert "optim.name=adam optimiser one of: adam, sgd, rmsprop, adadelta" in text


def test_helpfull_shows_the_flags_of_libraries(run: Run) -> None:
    result = run("--helpfull")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--verbosity" in result.stdout


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--out is missing: output directory; finished runs in it are kept"),
        ("--out=", "--out=: must not be empty"),
        ("--out=x --scors=dot", "unknown flag --scors: did you mean --scores? (--help lists the flags)"),
        ("--out=x --qqq", "unknown flag --qqq (--help lists the flags)"),
        ("--out=x dot", "stray word 'dot': flags look like --name=value (--help lists the flags)"),
        ("--out=x seeds=3", "stray word 'seeds=3': did you mean --seeds=3? (--help lists the flags)"),
        ("--out=x --seeds=0", "--seeds=0: expected a positive integer"),
        ("--out=x --seeds=two", "--seeds=two: expected a positive integer"),
        ("--out=x --steps=1.5", "--steps=1.5: expected a positive integer"),
        ("--out=x --learning_rate=fast", "--learning_rate=fast: expected a non-negative number"),
        ("--out=x --learning_rate=nan", "--learning_rate: optim.learning_rate='nan': expected a number"),
        ("--out=x --fast=maybe", "--fast=maybe: expected true or false"),
        (
            "--out=x --dataset=gei",
            "--dataset=gei: unknown data set 'gei': did you mean 'geo'? (allowed: geo, jobs)",
        ),
        ("--out=x --dataset=geo,geo", "--dataset=geo,geo: the data set geo is given twice"),
        (
            "--out=x --dataset=geo,gei",
            "--dataset=geo,gei: unknown data set 'gei': did you mean 'geo'? (allowed: geo, jobs)",
        ),
        (
            "--out=x --mode=bag",
            "unknown value of --mode 'bag': did you mean 'bug'? (allowed: bug, code, end, many, print, sleep, user)",
        ),
        (
            "--out=x --scores=dott",
            "--scores: unknown score 'dott': did you mean 'dot'? (allowed: dot, general, none)",
        ),
        (
            "--out=x --scores=dot,,none",
            "--scores=dot,,none: expected values separated by commas, and none of them empty",
        ),
        ("--out=x --set=score", "--set=score: expected PATH=VALUE"),
        ("--out=x --mode=user", "the files differ: 3 lines and 4 lines"),
        (
            "--out=x --flagfile=nowhere",
            "Unable to open flagfile: [Errno 2] No such file or directory: 'nowhere'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, words: str, message: str) -> None:
    result = run(*words.split())
    assert (result.returncode, result.stderr) == (2, f"toy_study: {message}\n")


def test_an_unexpected_exception_keeps_its_traceback(run: Run) -> None:
    result = run("--out=x", "--mode=bug")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ValueError: a bug\n")


def test_the_exit_code_of_main_is_kept(run: Run) -> None:
    assert run("--out=x", "--mode=code").returncode == 75


@pytest.mark.parametrize(
    ("event", "code", "message"),
    [("ctrl-c", 130, "toy_study: stopped; the same command goes on\n"), ("close", 141, "")],
)
def test_the_end_from_outside_is_quiet(script: Path, event: str, code: int, message: str) -> None:
    mode = "sleep" if event == "ctrl-c" else "many"
    command = [sys.executable, str(script), "--out=x", f"--mode={mode}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        if event == "ctrl-c":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
        assert (process.wait(timeout=30), process.stderr.read()) == (code, message)


def test_a_signal_at_the_very_end_does_not_undo_success(script: Path) -> None:
    command = [sys.executable, str(script), "--out=x", "--mode=end"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n", "ending\n"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


# -- settings ------------------------------------------------------------------------------------------------


def test_programs_are_cached_where_the_environment_says(run: Run, tmp_path: Path) -> None:
    cache = tmp_path / "programs"
    result = run("--out=x", "--scores=none", ATTN_JAX_CACHE=str(cache))
    assert result.stdout.splitlines()[1:] == [
        "{}",
        "{'score.name': ['none']}",
        str(cache),
        "python toy_study.py --out=x --scores=none",
    ]
    assert cache.is_dir()


def test_a_cache_that_cannot_be_made_is_left_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--out=x", ATTN_JAX_CACHE=str(tmp_path / "file" / "programs"))
    assert (result.returncode, result.stderr, result.stdout.splitlines()[3]) == (0, "", "None")


def test_settings_reach_a_jax_that_is_already_imported(tmp_path: Path) -> None:
    program = (
        "import jax, sys; from attn_jax import cli; sys.argv = ['x'];"
        "cli.run(lambda: print(jax.config.jax_compilation_cache_dir,"
        " jax.config.jax_persistent_cache_min_compile_time_secs), doc='')"
    )
    environment = os.environ | {"ATTN_JAX_CACHE": str(tmp_path / "programs")}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [str(tmp_path / "programs"), "0"], result.stderr


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


def test_a_loaded_file_that_takes_hold_of_the_devices_is_told_of(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    line = "--load: mine.py had JAX look for its devices, so all cores are one device\n"
    for content, told in (("import jax", ""), ("import jax; jax.devices()", line)):
        file.write_text(content)
        done = run(f"--load={file}", f"--out={tmp_path}/out")
        assert (done.returncode, done.stderr) == (0, told)
