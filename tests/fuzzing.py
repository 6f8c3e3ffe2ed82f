"""The command in this process, a tiny study to damage, and ways of damaging a file."""

import contextlib
import functools
import importlib.util
import io
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from attn_jax import cli

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "experiments" / "compare_scores.py"


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a mistake. Fails if the command did not end with one."""
        *told, last = self.err.splitlines()
        assert self.code == 2, self
        assert last.startswith("compare_scores: "), self.err
        assert not any(line.startswith(("compare_scores: ", "Traceback")) for line in told), self.err
        assert self.out == "", self.out
        return last.removeprefix("compare_scores: ")


@functools.cache
def _main() -> Callable[[], int | None]:
    # Once: it defines flags.
    spec = importlib.util.spec_from_file_location("compare_scores", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def command(*flags: str) -> Said:
    """experiments/compare_scores.py in this process."""
    main, out, err = _main(), io.StringIO(), io.StringIO()
    with _same_environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for flag in cli.FLAGS:
            cli.FLAGS[flag].unparse()
        cli.FLAGS.unparse_flags()
        try:
            cli.run(main, doc=None, argv=[str(SCRIPT), *flags])
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Said(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def study(folder: Path) -> list[str]:
    """The flags of a study of seconds, two programs of two runs, on text files that are written to a folder."""
    draw, flags = random.Random(0), ["--dataset=parallel_text", f"--data_dir={folder / 'data'}"]
    for split, count in {"train": 40, "dev": 6, "test": 6}.items():
        rows = [" ".join(draw.choice("abcd") for _ in range(draw.randint(2, 6))) for _ in range(count)]
        (folder / f"{split}.src").write_text("".join(f"{row}\n" for row in rows))
        (folder / f"{split}.trg").write_text("".join(f"{row[::-1]}\n" for row in rows))
        flags.append(f"--files={split}={folder / split}.src,{folder / split}.trg")
    sizes = ["--hidden_size=4", "--batch_size=4", "--steps=2", "--set=data.bpe_size=12"]
    return [*flags, *sizes, "--scores=dot,none", "--seeds=2"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- damage ---------------------------------------------------------------------------------------------------------


def noise(content: bytes, draw: random.Random) -> bytes:
    """Random bytes in place of the content."""
    return draw.randbytes(max(8, min(len(content), 4096)))


def truncated(content: bytes, draw: random.Random) -> bytes:
    """The beginning, cut at random."""
    return content[: draw.randrange(len(content))] if content else b""


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit changed."""
    changed = bytearray(content or b"\0")
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def spliced(content: bytes, draw: random.Random) -> bytes:
    """A few random bytes over, or between, those of a random place."""
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.randbytes(draw.randint(1, 8)) + content[start + draw.randint(0, 8) :]


VALUE = re.compile(r'(?<=[:\[,\s])("(?:[^"\\]|\\.)*"(?!\s*:)|-?[\d.]+(?:e-?\d+)?|true|false|null)(?=[\],}\s])')
OTHERS = ("null", "[]", "{}", '"x"', "-1", "1e999", "true", '""', "[[1]]", "9" * 30, '"\\ud800"', "9" * 5000)


def retyped(content: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text, or of JSON lines, replaced by another."""
    text = content.decode()
    places = [match.span() for match in VALUE.finditer(text)]
    start, end = draw.choice(places)
    return (text[:start] + draw.choice(OTHERS) + text[end:]).encode()


BYTES = (noise, truncated, flipped, spliced)
Damage = Callable[[bytes, random.Random], bytes]
