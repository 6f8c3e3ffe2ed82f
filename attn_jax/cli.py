"""The command line: absl flags, help, and errors in one line.

An experiment defines its flags at import and ends with::

    if __name__ == "__main__":
        cli.run(main, doc=__doc__)

Exit codes: 0 success (or what `main` returns), 1 an unexpected exception (with its traceback), 2 a mistake of
the user's (one line on stderr, no traceback), 75 SIGTERM, or another process of the program has ended, 130 Ctrl-C, 141
the reader of the output has gone.
"""

import contextlib
import difflib
import errno
import itertools
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from attn_jax import cli_flags, cli_help, config, extensions, processes
from attn_jax.errors import UserError, unknown
from attn_jax.interruption import Interrupted, handled, ignore_termination

FLAGS = flags.FLAGS

# What a disk that is full or read-only answers; raised by what has no message of its own, standard output above all.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# Of a path that the user gave: below a directory that may not be entered, or too long to be one.
_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)

_HELP_FLAGS = ("--help", "-help", "-h", "--h", "-?", "--helpshort", "-helpshort")


def run(main: Callable[[], int | None], *, doc: str | None, argv: Sequence[str] | None = None) -> NoReturn:
    """Parse the flags, call `main`, and exit.

    Args:
      main: the experiment; returns an exit code or None for 0.
      doc: the script's docstring, printed above the flags by `--help`.
      argv: the command line with the script's name first; `sys.argv` if None.
    """
    words = list(sys.argv if argv is None else argv)
    name = Path(words[0]).stem
    try:
        try:
            with handled(), _refused_paths():
                code = _answer(words, main, doc or "")
        except UserError as error:
            if not isinstance(error, processes.ToldError):
                print(f"{name}: {error}", file=sys.stderr)
            code = 2
        except Interrupted as stop:
            where = f" {stop.where}" if stop.where else ""
            print(f"{name}: stopped{where}; the same command goes on", file=sys.stderr)
            code = stop.code
        except processes.LostError as error:
            print(f"{name}: {error}; the same command, given to all processes, goes on", file=sys.stderr)
            _leave(processes.EXIT_LOST)
        except Exception:
            if processes.count() == 1:
                raise
            traceback.print_exc()
            _leave(1)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_broken():
            raise
        # Python flushes stdout once more when it exits: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = error.filename or "the output"
        print(f"{name}: {place}: cannot be written ({error.strerror}); once it can, go on", file=sys.stderr)
        if error.filename is None:  # As above.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 2
    if argv is None:
        ignore_termination()
    sys.exit(code)


@contextlib.contextmanager
def _refused_paths() -> Iterator[None]:
    """Inside, a path that the system refuses is a mistake of the user's. Raises UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _PATH or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from None


def _answer(words: list[str], main: Callable[[], int | None], doc: str) -> int | None:
    """What the command line asks for: help, or the experiment. Its exit code."""
    _load(words)
    text = _help(words, doc)
    if text is not None:
        print(text)
        return None
    _parse(words)
    _quiet_libraries()
    cache_programs()
    group = cli_flags.group()
    if group is None:
        _use_every_core()
    with processes.joined(group), _first_process_prints():
        return main()


def _use_every_core() -> None:
    from attn_jax import devices  # with JAX, which help does without

    spread = devices.spread_over_cores()
    if not spread and extensions.LOADED:
        told = ", ".join(extensions.LOADED)
        print(f"--load: {told} had JAX look for its devices, so all cores are one device", file=sys.stderr)


@contextlib.contextmanager
def _first_process_prints() -> Iterator[None]:
    if processes.leads():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _leave(code: int) -> NoReturn:
    """Ends this process of several without waiting for the others, as exiting in order would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _help(words: list[str], doc: str) -> str | None:
    """The text that a help flag asks for, whatever else is on the command line; None without such a flag."""
    if any(word in _HELP_FLAGS for word in words[1:]):
        return cli_help.flags_text(doc, FLAGS, words[0])
    if any(word in ("--helpfull", "-helpfull") for word in words[1:]):
        return f"{doc.strip()}\n{FLAGS.get_help()}"
    if any(word in ("--helpconfig", "-helpconfig") for word in words[1:]):
        return cli_help.config_text(
            {config.resolve(axis): cli_flags.allowed_values(flag) for axis, flag in cli_flags.axis_flags(FLAGS).items()}
        )
    return None


def _load(words: list[str]) -> None:
    """Loads the files that --load names, wherever it stands. Raises UserError."""
    if "load" not in FLAGS:
        return
    for word, following in itertools.pairwise([*words[1:], ""]):
        flag, equals, path = word.partition("=")
        if flag in ("--load", "-load"):
            extensions.load(os.path.expanduser(path if equals else following))


def _parse(words: list[str]) -> None:
    """Set FLAGS from the command line. Raises UserError."""
    for word in words[1:]:
        # Bytes that are no UTF-8 arrive as halves of surrogate pairs, which cannot be written into any result.
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise UserError(f"{word!a}: not UTF-8; give flags and names of files in UTF-8")
    try:
        rest = FLAGS(words)[1:]
    except flags.UnrecognizedFlagError as error:
        names = [flag.name for flag in cli_help.own_flags(FLAGS, words[0])]
        near = difflib.get_close_matches(error.flagname, names, n=1)
        hint = f": did you mean --{near[0]}?" if near else ""
        raise UserError(f"unknown flag --{error.flagname}{hint} (--help lists the flags)") from None
    except flags.Error as error:
        raise UserError(_explain(str(error).removeprefix("ERROR:: "))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--flagfile: cannot be read ({error})") from None
    if rest:
        near_flag = rest[0].partition("=")[0] in FLAGS
        hint = f"did you mean --{rest[0]}?" if near_flag else "flags look like --name=value"
        raise UserError(f"stray word '{rest[0]}': {hint} (--help lists the flags)")


def _explain(message: str) -> str:
    """The library's text about a flag's value, in the words that a user needs."""
    match = re.match(r"flag --([\w-]+)=(.*?): (.*)", message, re.DOTALL)
    if not match or match[1] not in FLAGS:
        return message
    name, value, reason = match.groups()
    flag = FLAGS[name]
    if "must have a value other than None" in reason:
        return f"--{name} is missing: {cli_help.meaning(flag)}"
    if isinstance(flag.parser, flags.EnumParser):
        return str(unknown(f"value of --{name}", value, flag.parser.enum_values))
    if isinstance(flag.parser, flags.BooleanParser):
        reason = "expected true or false"
    elif isinstance(flag.parser, flags.IntegerParser | flags.FloatParser):
        reason = f"expected {flag.parser.syntactic_help}"
    return f"--{name}={value}: {reason}"


def _quiet_libraries() -> None:
    """Nothing from libraries that log through absl, unless --verbosity asks for it: what matters is raised."""
    if not FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.FATAL)


def cache_programs() -> None:
    """Let JAX keep every compiled program on disk, in $ATTN_JAX_CACHE or ~/.cache/attn_jax/xla."""
    settings: dict[str, Any] = {"jax_persistent_cache_min_compile_time_secs": 0}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        chosen = os.environ.get("ATTN_JAX_CACHE") or "~/.cache/attn_jax/xla"
        directory = Path(os.path.expanduser(chosen)).absolute()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # Nothing but time is lost without it.
        if not os.access(directory, os.W_OK):
            return
        settings["jax_compilation_cache_dir"] = str(directory)
    for key, value in settings.items():
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(key, value)
        os.environ.setdefault(key.upper(), str(value))  # also for processes that this one starts


def _stdout_is_broken() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
