import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_a_loaded_file_that_takes_hold_of_the_devices_is_told_of(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    line = "--load: mine.py had JAX look for its devices, so all cores are one device\n"
    for content, told in (("import jax", ""), ("import jax; jax.devices()", line)):
        file.write_text(content)
        done = run(f"--load={file}", f"--out={tmp_path}/out")
        assert (done.returncode, done.stderr) == (0, told)
