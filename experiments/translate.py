r"""Decode text with a trained run, one sentence a line, or with several runs as an ensemble.

    .venv/bin/python experiments/translate.py --run=out/jobs/runs/0123456789ab --beam_size=5 < text.src > text.trg

Searches as the run was tested unless flags say otherwise: --beam_size, --n_best, --length_penalty, --alpha and
--coverage_penalty make it a beam search, --sample draws. Several --run (of equal vocabularies) average their
probabilities at each step. A line without symbols gives an empty line. Lines are read as they come, decoded in batches
of similar lengths, and written in their order.

With --n_best above 1 each output is a line "NUMBER ||| TEXT ||| SCORE ||| LOG-PROBABILITY", sentences counted from 0.
Each line of --weights is a JSON object of one output: line (from 1), rank, source, target, and weights, a row for each
target symbol.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from absl import flags

from attn_jax import cli, cli_flags, config
from attn_jax.cli_parsers import Place
from attn_jax.errors import UserError

if TYPE_CHECKING:
    from attn_jax.translator import Output, Translator

NOW = 1 << 16
"""Bytes that are read at a time, at most."""

flags.DEFINE_multi(
    Place("DIR"),
    flags.ArgumentSerializer(),
    "run",
    None,
    "OUT/runs/ID, or an exported file; may be repeated",
    required=True,
)
flags.DEFINE(Place("FILE"), "input", None, "source text; standard input without it")
flags.DEFINE(Place("FILE"), "output", None, "where outputs go; standard output without it")
flags.DEFINE(Place("FILE"), "weights", None, "write attention weights there, as JSON lines")
flags.DEFINE_integer("beam_size", None, "beam search with so many live hypotheses", 1)
flags.DEFINE_integer("n_best", None, "outputs a sentence, of a beam or samples", 1)
flags.DEFINE_enum("length_penalty", None, config.choices("decode.length_penalty"), "length penalty of a beam")
flags.DEFINE_float("alpha", None, "exponent of the length penalties gnmt and power", 0)
flags.DEFINE_float("coverage_penalty", None, "weight beta of the coverage penalty of a beam", 0)
flags.DEFINE_integer("min_length", None, "shortest output in symbols, end-of-sentence included", 0)
flags.DEFINE_integer("max_length", None, "longest output (default: the run's, twice its longest training target)", 1)
flags.DEFINE_bool("unk_replace", False, "put the source symbol with the highest weight in the place of <unk>")
flags.DEFINE_bool("sample", False, "draw outputs from the model's probabilities")
flags.DEFINE_float("temperature", None, "of samples: symbols have probabilities p^(1/temperature)", 0)
flags.DEFINE_integer("seed", None, "of samples (default: the run's)", 0)
flags.DEFINE_integer("batch_size", 64, "sentences that are decoded at a time", 1)
cli_flags.define_load()

CHANGES = ("beam_size", "length_penalty", "alpha", "coverage_penalty", "min_length", "max_length", "temperature")
"""Flags that change the field of that name in section `decode`."""


def main() -> None:
    """Decodes every line."""
    given = cli.FLAGS
    translator = loaded()
    n_best = given.n_best or 1
    translator.check(n_best=n_best, unk_replace=given.unk_replace)
    if given.weights and not translator.attends:
        raise UserError("--weights with score=none: there are no weights to write")
    with contextlib.ExitStack() as files:
        if given.input:
            # Before anything is written a mistake anywhere in the file is found.
            blocks = iter(list(lines(files.enter_context(opened(given.input, "rb")), given.input)))
        else:
            blocks = lines(sys.stdin.buffer, "standard input")
        output = files.enter_context(opened(given.output, "wb")) if given.output else sys.stdout.buffer
        weights = files.enter_context(opened(given.weights, "wb")) if given.weights else None
        for first, texts in blocks:
            real = [i for i, text in enumerate(texts) if translator.source.encode(text)]
            found = translator(
                [texts[i] for i in real],
                n_best=n_best,
                unk_replace=given.unk_replace,
                batch_size=given.batch_size,
                numbers=[first + i for i in real],
            )
            by_line = dict(zip(real, found, strict=True))
            for i in range(len(texts)):
                output.write(shown(first + i, by_line.get(i, []), n_best).encode())
                if weights is not None:
                    weights.write(maps(first + i, by_line.get(i, [])).encode())
            output.flush()


def loaded() -> "Translator":
    """The runs with the search that the flags ask for."""
    from attn_jax import reuse  # Help needs neither models nor JAX.

    given = cli.FLAGS
    runs = [reuse.load_run(path) for path in given.run]
    changes = {name: given[name].value for name in CHANGES if given[name].value is not None}
    if given.sample:
        changes["name"] = "sample"
    return reuse.ensemble(runs).translator(n_best=given.n_best or 1, seed=given.seed, **changes)


def lines(file: IO[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    r"""What there is to read, in blocks: the number of the first line, from 0, and the lines.

    A block is what can be read without waiting, so that a reader at the other end of two pipes is answered. Lines end
    with "\n" only; spaces and a carriage return are stripped from their ends, a byte order mark from the first.
    """
    first, rest = 0, b""
    while True:
        read = file.read1(NOW)  # type: ignore[attr-defined]  # of buffered readers
        *whole, rest = (rest + read).split(b"\n")
        if not read and rest:
            whole.append(rest)
        if whole:
            yield first, [_text(line, name, first + i) for i, line in enumerate(whole)]
        first += len(whole)
        if not read:
            return


def _text(line: bytes, name: str, number: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(f"{name}:{number + 1}: not valid UTF-8 (byte 0x{byte:02x}); convert it to UTF-8") from None
    return (text.removeprefix("\ufeff") if number == 0 else text).rstrip(" \r")


def opened(path: str, mode: str) -> IO[bytes]:
    """An open file. Raises UserError if that is not possible."""
    try:
        return Path(path).open(mode)  # type: ignore[return-value]  # the mode is binary
    except OSError as error:
        raise UserError(f"{path}: cannot be {'read' if 'r' in mode else 'written'} ({error.strerror})") from None


def shown(number: int, outputs: "list[Output]", n_best: int) -> str:
    """The lines of a sentence."""
    if n_best == 1:
        return (outputs[0].text if outputs else "") + "\n"
    if not outputs:
        return f"{number} |||  ||| 0 ||| 0\n"
    return "".join(f"{number} ||| {o.text} ||| {o.score:.6g} ||| {o.log_probability:.6g}\n" for o in outputs)


def maps(number: int, outputs: "list[Output]") -> str:
    """The weights of a sentence's outputs as JSON lines."""
    written = ""
    for rank, output in enumerate(outputs, 1):
        assert output.weights is not None
        rows = output.weights.round(6).tolist()
        one = {"line": number + 1, "rank": rank, "source": output.source, "target": output.tokens, "weights": rows}
        written += json.dumps(one, ensure_ascii=False) + "\n"
    return written


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
