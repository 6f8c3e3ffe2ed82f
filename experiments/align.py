r"""Word alignments of trained runs, from their attention weights, and their alignment error rate (AER).

    .venv/bin/python experiments/align.py --run=out/m30k/runs/2f75f0a7ab62 --gold=bicici --manual_dir=DATA
    .venv/bin/python experiments/align.py --run=RUN --source=a.de --target=a.en --gold_links=a.links
    .venv/bin/python experiments/align.py --run=RUN --source=a.de --target=a.en > a.links

Every run reads the given targets (forced decoding), and the weights of its steps link target words to source words.
Links are written as `i-j`: source word i and target word j, from 0; in gold links `ipj` is a possible one. With gold
links the table shows AER, precision and recall in percent over the whole corpus, beside two baselines: `diagonal` links
target word j of T to source word floor((j + 1/2) S / T) of S, and `uniform` is the expected error of drawing each
target word's source word at random, as from attention to all alike. `unknown` is the percentage of source and of target
symbols that a run's vocabularies lack: on another domain than that of training alignment suffers.

Words are what stands between spaces. Texts are taken as they stand, and lower-cased where data.lowercase was set; a run
that was trained on files in lower case needs --lowercase for text that is not.
"""

import collections
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from attn_jax import cli, cli_flags, config, stats, storage
from attn_jax.cli_parsers import Place, Text
from attn_jax.data import UNK, TextCodec, alignments, builder, reading
from attn_jax.data.alignments import Aligned, Gold, Link
from attn_jax.data.sources import Files, read_file
from attn_jax.errors import UserError, unknown
from attn_jax.tables import names

if TYPE_CHECKING:
    from attn_jax.alignment import Counts
    from attn_jax.reuse import Run

_TEXTS: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
flags.DEFINE_multi(
    Place("DIR"), _TEXTS, "run", None, "OUT/runs/ID, or an exported file; may be repeated", required=True
)
flags.DEFINE_enum("gold", None, [*alignments.SETS], "a published set: alibi (fr and en) or bicici (de and en)")
flags.DEFINE(Place("DIR"), "manual_dir", None, "directory that holds the folders of the data sets")
flags.DEFINE(Place("DIR"), "data_dir", None, "where downloads are kept (default: as for a study)")
flags.DEFINE(Text("LANG"), "source_language", None, "what the runs read, where their data set's name does not tell")
flags.DEFINE(Place("FILE"), "source", None, "own text, one sentence a line")
flags.DEFINE(Place("FILE"), "target", None, "its translation, line by line")
flags.DEFINE(Place("FILE"), "gold_links", None, "its gold links, line by line")
flags.DEFINE_boolean("lowercase", False, "lower-case the text first")
flags.DEFINE_enum(
    "method",
    "argmax",
    names("alignment", "METHODS"),
    "argmax: each target word with its best source word; one_to_one: the links of largest total weight that share no "
    "word; union: argmax of both sides",
)
flags.DEFINE_enum(
    "offset",
    "predicted",
    names("alignment", "OFFSETS"),
    "the row of weights that belongs to a target word: of the step that predicts it, or of the one that reads it",
)
flags.DEFINE_float("threshold", 0.0, "leave out links of less weight", 0.0, 1.0)
flags.DEFINE(Place("FILE"), "output", None, "write the links there, one line a pair")
cli_flags.define_load()

CODES = {"deu": "de", "eng": "en", "fra": "fr"}
"""Names of languages in data sets, where they differ from those of the gold sets."""


def main() -> None:
    """Aligns with every run; prints the table, or the links where there is nothing to compare them with."""
    from attn_jax import reuse  # Help must not wait for JAX.

    options = cli.FLAGS
    _check()
    runs = {folder: reuse.load_run(folder) for folder in options.run}
    for folder, run in runs.items():
        if run.config.score.name == "none":
            raise UserError(f"--run={folder}: score=none: a run without attention has no weights to align by")
    given = _given()
    texts = {folder: _oriented(given, folder, run) for folder, run in runs.items()}
    found = {folder: _links(run, texts[folder]) for folder, run in runs.items()}
    lines = "".join(" ".join(f"{i}-{j}" for i, j in sorted(links)) + "\n" for links in found[options.run[0]])
    if options.output:
        storage.write_text(Path(options.output), lines)
    if given.links:
        print(_report(runs, texts, found))
    elif not options.output:
        print(lines, end="")


def _check() -> None:
    """Raises UserError on flags that do not go together, and on an output that cannot be written."""
    options = cli.FLAGS
    own = [name for name in ("source", "target", "gold_links") if options[name].value]
    if options.gold and own:
        raise UserError(f"--gold and --{own[0]}: align a published set or own text, not both")
    if not options.gold and not (options.source and options.target):
        raise UserError("nothing to align: give --gold=alibi or bicici, or --source=FILE and --target=FILE")
    for name in ("manual_dir", "data_dir", "source_language"):
        if options[name].value and not options.gold:
            raise UserError(f"--{name} is for published sets: give --gold, or leave it out")
    folder, count = collections.Counter(str(Path(folder).resolve()) for folder in options.run).most_common(1)[0]
    if count > 1:
        raise UserError(f"--run={folder}: given {count} times")
    if len(options.run) > 1 and (options.output or not (options.gold or options.gold_links)):
        raise UserError(f"links are written of one run, but there are {len(options.run)}: give one --run")
    if options.output:
        path = Path(options.output)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(21, "it is a directory")
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UserError(f"--output={path}: cannot be written ({error.strerror or error})") from None


def _given() -> Aligned:
    """The texts to align, with gold links if there are any."""
    options = cli.FLAGS
    if options.gold:
        place = Path(options.data_dir) if options.data_dir else builder.default_data_dir()
        found = alignments.load(options.gold, Files(options.manual_dir, place / "downloads"))
    else:
        sources, targets = (reading.lines(read_file(Path(p)), p) for p in (options.source, options.target))
        if len(sources) != len(targets):
            raise UserError(
                f"{options.source} has {len(sources)} lines but {options.target} has {len(targets)}: "
                "line n of one must translate line n of the other"
            )
        links: list[Gold] = []
        if options.gold_links:
            data = read_file(Path(options.gold_links))
            links = alignments.parallel(data, options.gold_links, sources, targets)
        found = Aligned(("source", "target"), tuple(sources), tuple(targets), tuple(links))
    return found.lowered() if options.lowercase else found


def _oriented(given: Aligned, folder: str, run: "Run") -> Aligned:
    """The texts in the run's direction."""
    options = cli.FLAGS
    if not options.gold:
        return given
    source, name = options.source_language, run.config.data.dataset
    if source is None:
        match = re.fullmatch(r"\w+/([a-z]{2,3})_(?:to_)?([a-z]{2,3})", name)
        if match is None:
            raise UserError(
                f"--run={folder}: {name} does not tell its languages: give --source_language={given.languages[0]} or "
                f"{given.languages[1]}"
            )
        read, written = (CODES.get(code, code) for code in match.groups())
        if {read, written} != {*given.languages}:
            raise UserError(
                f"--run={folder}: {name} goes from {read} to {written}, but {options.gold} is "
                f"{' and '.join(given.languages)}"
            )
        source = read
    if source not in given.languages:
        raise unknown("source language", source, given.languages)
    return given if source == given.languages[0] else given.swapped()


def _links(run: "Run", texts: Aligned) -> list[frozenset[Link]]:
    options = cli.FLAGS
    pairs = list(zip(texts.sources, texts.targets, strict=True))
    return run.align(pairs, method=options.method, offset=options.offset, threshold=options.threshold)


# -- table -----------------------------------------------------------------------------------------------------------


def _report(runs: "dict[str, Run]", texts: dict[str, Aligned], found: dict[str, list[frozenset[Link]]]) -> str:
    """What was aligned and how, then a row each run, each variant of several seeds, and each baseline."""
    from attn_jax import alignment  # As above.

    options = cli.FLAGS
    first = next(iter(texts.values()))
    sure, possible = (sum(map(len, kind)) for kind in zip(*first.links, strict=True))
    lines = [
        f"{options.gold or options.source}: {len(first.links)} pairs, {sure} sure, {possible - sure} possible links; "
        f"method {options.method}, offset {options.offset}, threshold {options.threshold:g}",
        *(f"note: {note}" for note in first.notes),
        "",
    ]
    header = ["run", "AER", "precision", "recall", "links", "unknown"]
    rows = [header]
    varied = [path for path in config.differences([run.config for run in runs.values()]) if path != "seed"]
    variants: dict[str, list[float]] = {}
    for folder, run in runs.items():
        choices = [f"{path}={config.get(run.config, path)}" for path in varied]
        counts = alignment.count(found[folder], texts[folder].links)
        variant = " ".join(choices)
        variants.setdefault(variant, []).append(alignment.error(counts)["aer"])
        label = " ".join([Path(folder).resolve().name, *choices, f"seed={run.config.seed}"])
        rows.append([*_row(label, counts), _unknown(run, texts[folder])])
    for variant, values in variants.items():
        if len(values) > 1:
            summary = stats.summary(values)
            label = " ".join(filter(None, [f"mean of {len(values)} seeds, 95 % interval", variant]))
            rows.append([label, f"{summary.mean:.2f}", f"{summary.low:.2f} to {summary.high:.2f}", "", "", ""])
    for direction in {text.languages: text for text in texts.values()}.values():
        sizes = [
            (len(reading.words(source)), len(reading.words(target)))
            for source, target in zip(direction.sources, direction.targets, strict=True)
        ]
        suffix = f" {'-'.join(direction.languages)}" if options.gold else ""
        diagonal = alignment.count([alignment.diagonal(s, t) for s, t in sizes], direction.links)
        rows.append([*_row(f"diagonal{suffix}", diagonal), ""])
        rows.append([*_row(f"uniform{suffix}", alignment.uniform(sizes, direction.links)), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _row(label: str, counts: "Counts") -> list[str]:
    from attn_jax import alignment  # As above.

    return [label, *(f"{value:.2f}" for value in alignment.error(counts).values()), f"{counts.found:g}"]


def _unknown(run: "Run", texts: Aligned) -> str:
    return " / ".join(f"{_share(*side):.1f}" for side in ((run.source, texts.sources), (run.target, texts.targets)))


def _share(codec: TextCodec, texts: Sequence[str]) -> float:
    """Percentage of symbols that a vocabulary lacks."""
    ids = [number for text in texts for number in codec.encode(text)]
    return 100 * ids.count(UNK) / max(len(ids), 1)


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
