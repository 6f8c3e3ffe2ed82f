r"""What a model costs as sequences grow: time and memory of training and greedy decoding, by score, window, model.

    .venv/bin/python experiments/cost.py --out=out/cost

Question: how do the seconds and bytes of a training step (batch of 16, loss, gradient and optimiser) and of greedy
decoding grow with the number of symbols, when source and target grow together, and when the source alone does? Every
program is called --repetitions times; points are medians, bands quartiles. The charts are measured one after the other:
for each, every round calls the programs of all variants and lengths once, so that a machine that is slow for a while is
slow for all. The exponent a of cost = c length^a is fitted to the upper half of the lengths, with its 95 % interval.
Memory is XLA's plan of temporary buffers and outputs: without noise, and without arguments (parameters, optimiser
states, tokens).

Expected, with S source and T target symbols (Vaswani et al. 2017, table 1; Luong et al. 2015, section 3.2):

- recurrence costs the same at every step: without attention all is linear in S + T;
- a global score looks at S positions in each of T steps: S T, so quadratic where both grow, and linear in the source
  alone. Additive scores do so in the width of the hidden layer with a tanh for each element, dot scores with one
  product for all steps, so the square shows at much shorter lengths in the former;
- memory: weights [T, S], so the same; tanh scores whose sums [T, S, H] are large are made step by step, and again in
  the backward pass, so that they do not stay;
- local windows should make it constant per step, but those of `attn_jax/windows.py` mask: scores of all S positions are
  computed first. They cost what global attention does, or a little more;
- self-attention of a transformer is quadratic in S and in T. With a window it is linear: blocks of the window's width
  are cut out, and a decoder keeps only as many keys. Cross-attention to all of the source stays at S T, so that a
  windowed transformer is linear where the source alone grows, and not where both do.

An exponent between two of these is a sum of both: at these lengths the linear part is not small.

Seen (two CPU cores, float32), as expected but where it is said. Both growing, a step of training at 512 symbols: 0.12 s
without attention, 0.25 s with dot, 0.47 s with additive scores, 2.3 s in the windowed transformer, 6.2 s in the full
one; exponents 0.8, 1.4, 1.6, 2.1 and 2.6: above two, the scores of all heads no longer fit in caches. Greedy decoding:
0.05, 0.09, 0.15, 0.39 and 1.1 s. Memory of training: 127, 222, 233, 1,110 and 2,320 MB; additive scores, made again
step by step, need no more than dot scores (between 64 and 128 symbols, where that begins, and from 256 to 384 with the
source alone, their curve has a step). The source alone growing: recurrent models are linear in decoding memory
(exponent 1.0) and below it in seconds, as 32 target steps cost the same; the full transformer has 2.5 in training, the
windowed one 0.9, and is ten times as fast at 512 symbols. Local windows cost what global attention does.

Run time: 9 minutes on two quiet cores with compiled programs from the cache, 10 more to compile them.

A length at which one call takes more than --most_seconds or --most_gigabytes is left out, and with it all longer ones
of that variant; page and console say so. Every call of this script measures anew and replaces what OUT has: speeds that
were measured at different times cannot be compared.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from attn_jax import cli, cli_flags, cli_study, config
from attn_jax.cli_parsers import Integers, Names, Place
from attn_jax.combinators import grid
from attn_jax.config import Config
from attn_jax.errors import UserError, unknown
from attn_jax.tables import names

if TYPE_CHECKING:
    from attn_jax.cost import Grown, Subject
    from attn_jax.curves import Curves, Table

AXES = {
    "score": ("none,dot,additive", lambda: [*names("scores", "SCORES"), "none"]),
    "window": ("global,local_m", lambda: names("windows", "WINDOWS")),
    "cell": ("lstm", lambda: names("cells", "CELLS")),
    "placement": ("after", lambda: config.choices("placement")),
    "input_feeding": ("none", lambda: names("decoder", "FEEDINGS")),
}
"""Fields of recurrent models that are compared: default values, and the allowed ones."""

_BYTES = (
    "Points are temporary buffers and outputs as the compiler plans them, without arguments (parameters, optimiser "
    "states, tokens)."
)

flags.DEFINE(Place("DIR"), "out", None, "output directory; its curves of cost are replaced", required=True)
flags.DEFINE(Names(lambda: config.choices("model")), "models", "recurrent,transformer", "kinds of model")
for _axis, (_values, _allowed) in AXES.items():
    flags.DEFINE(Names(_allowed), f"{_axis}s", _values, f"recurrent models: these values of {_axis}")
flags.DEFINE(
    Integers(0), "self_windows", "0,16", "transformers: self-attention reaches that far to each side; 0: everywhere"
)
flags.DEFINE(Integers(1), "lengths", "32,64,128,192,256,384,512", "symbols of a source, and of a target if it grows")
flags.DEFINE_integer("target_length", 32, "symbols of a target where the source alone grows", 1)
flags.DEFINE_integer("batch_size", 16, "sentences", 1)
flags.DEFINE_integer("hidden_size", 64, "width of embeddings, decoder, memory and transformer layers", 1)
flags.DEFINE_integer("vocabulary", 1000, "symbols of either language", 8)
flags.DEFINE_integer("repetitions", 7, "calls of every program", 1)
flags.DEFINE_float("most_seconds", 10.0, "longest call; longer lengths are left out", 0)
flags.DEFINE_float("most_gigabytes", 6.0, "most memory of a call; longer lengths are left out", 0)
cli_flags.define_load()


class Group(NamedTuple):
    """Programs that differ in length alone. alone: whether the source alone grows, and targets have one length."""

    series: str
    phase: str
    alone: bool

    @property
    def panel(self) -> str:
        """The chart that it stands in."""
        return f"{self.phase}, source {'alone' if self.alone else 'and target'}"


PHASES = ("training", "decoding")


class Measured(NamedTuple):
    """What a group's programs showed, by length: seconds of each call, and bytes. ended: as of `cost.Grown`."""

    seconds: dict[int, list[float]]
    bytes: dict[int, int]
    ended: str


def main() -> None:
    """Measures, and prints the fitted exponents and the path of the page."""
    # Help must not wait for these.
    from attn_jax import curves, report
    from attn_jax.results import Output

    variants = _variants()
    output = Output(cli.FLAGS.out)
    out, found = output.path, _measured(variants)
    with output.alone():
        for one in (_time(found), _memory(found)):
            curves.write(out, one, study="Cost by length", command=cli_study.command_line())
        report.build(out)
    print(report.measured_text(out))
    print(out / "report.html")


def _variants() -> dict[str, Config]:
    """What is compared, by name. Raises UserError on flags that do not go together and on what is no model."""
    from attn_jax.report_labels import labels
    from attn_jax.seq2seq import with_hidden_size
    from attn_jax.sweep import merged

    options = cli.FLAGS
    own = {"recurrent": [f"{axis}s" for axis in AXES], "transformer": ["self_windows"]}
    for model, mine in own.items():
        for name in mine:
            if model not in options.models and options[name].present:
                raise UserError(f"--{name}: goes with --models={model}")
    if len(options.lengths) < 2:
        raise UserError(f"--lengths={options.lengths[0]}: two lengths at least show how a cost grows")
    axes = {
        "recurrent": {axis: options[f"{axis}s"].value for axis in AXES},
        "transformer": {"transformer.window": options.self_windows},
    }
    variants = []
    for model in options.models:
        if model not in axes:
            raise unknown("model", model, axes)
        fields = {
            "model": model,
            "train.batch_size": options.batch_size,
            "score.max_source_length": options.lengths[-1],
        }
        base = with_hidden_size(config.override(Config(), fields), options.hidden_size)
        variants += [config.override(base, choice) for choice in grid(axes[model])]
    variants, dropped = merged(variants)
    if dropped:
        print(f"{dropped} combination(s) equal another one and are left out")
    labelled = labels([config.flatten(config.to_dict(variant)) for variant in variants])
    return dict(zip(labelled, variants, strict=True))


# -- measuring --------------------------------------------------------------------------------------------------------


def _measured(variants: Mapping[str, Config]) -> dict[Group, Measured]:
    """All programs below the limits. Raises UserError if there is none.

    A chart's programs are gone when the next one's are made: a process can hold some hundred of them (see
    `cost.check_mappings`).
    """
    from attn_jax.cost import Subject

    options, found = cli.FLAGS, dict[Group, Measured]()
    subjects = {series: Subject(variant, options.vocabulary) for series, variant in variants.items()}
    for phase in PHASES:
        for alone in (False, True):
            groups = {Group(series, phase, alone): subject for series, subject in subjects.items()}
            found |= _timed({group: _grown(group, subject) for group, subject in groups.items()})
    if not any(one.bytes for one in found.values()):
        raise UserError(
            f"--most_seconds={options.most_seconds:g} and --most_gigabytes={options.most_gigabytes:g}: not even "
            f"sequences of {options.lengths[0]} symbols are below these limits"
        )
    return found


def _grown(group: Group, subject: "Subject") -> "Grown":
    """The compiled programs of a group."""
    from attn_jax.cost import Limits, grown

    options, begun = cli.FLAGS, time.perf_counter()
    limits = Limits(options.most_seconds, options.most_gigabytes * 1e9)
    make = {"training": subject.training, "decoding": subject.greedy}[group.phase]
    sizes = ((n, options.target_length if group.alone else n) for n in options.lengths)
    one = grown(((source, make(source, target)) for source, target in sizes), limits)
    if one.ended:
        print(f"{group.series}: {group.panel}: {one.ended}: left out with all that is longer")
    print(f"{group.panel}: {group.series}: compiled in {time.perf_counter() - begun:.0f} s", flush=True)
    return one


def _timed(compiled: Mapping[Group, "Grown"]) -> dict[Group, Measured]:
    """Calls of every program in turn, and what they showed."""
    from attn_jax.cost import interleaved

    programs = {(group, n): program for group, one in compiled.items() for n, program in one.programs.items()}
    found = {
        group: Measured({n: [] for n in one.programs}, {n: p.bytes for n, p in one.programs.items()}, one.ended)
        for group, one in compiled.items()
    }
    begun, rounds = time.perf_counter(), cli.FLAGS.repetitions
    for number, spent in enumerate(interleaved(programs, rounds), 1):
        for (group, n), value in spent.items():
            found[group].seconds[n].append(value)
        print(f"round {number} of {rounds}: {time.perf_counter() - begun:.0f} s", flush=True)
    return found


# -- curves -----------------------------------------------------------------------------------------------------------


def _time(found: Mapping[Group, Measured]) -> "Curves":
    from attn_jax.curves import Axis, Curves, Row

    rows, medians = [], dict[Group, dict[int, float]]()
    for group, one in found.items():
        for n, values in one.seconds.items():
            low, middle, high = map(float, np.quantile(values, (0.25, 0.5, 0.75)))
            rows.append(Row(group.series, n, middle, low, high, group.panel))
            medians.setdefault(group, {})[n] = middle
    return Curves(
        "cost-time",
        "Seconds by length",
        Axis("length", "symbols", "log"),
        Axis("time of a call", "s", "log"),
        rows,
        _note(f"Points are medians of {cli.FLAGS.repetitions} calls, bands quartiles.", found),
        _exponents(medians),
    )


def _memory(found: Mapping[Group, Measured]) -> "Curves":
    from attn_jax.curves import Axis, Curves, Row

    sizes = {group: {n: size / 1e6 for n, size in one.bytes.items()} for group, one in found.items()}
    rows = [Row(g.series, n, size, panel=g.panel) for g, by_length in sizes.items() for n, size in by_length.items()]
    return Curves(
        "cost-memory",
        "Memory by length",
        Axis("length", "symbols", "log"),
        Axis("memory of a call", "MB", "log"),
        rows,
        _note(_BYTES, found),
        _exponents(sizes),
    )


def _exponents(values: Mapping[Group, Mapping[int, float]]) -> "Table":
    """The exponent over the upper half of the lengths, a line each series and a column each panel."""
    from attn_jax.curves import Table
    from attn_jax.power_law import fit, upper_half

    panels = dict.fromkeys(group.panel for group in values)
    usual = upper_half(dict.fromkeys(cli.FLAGS.lengths, 0.0))
    lines: dict[str, dict[str, str]] = {}
    for group, points in values.items():
        cells, upper = lines.setdefault(group.series, {}), upper_half(points)
        if len(upper) > 1:
            a = fit(upper)
            half = "" if a.high is None else f" ± {a.high - a.exponent:.2f}"
            which = "" if upper.keys() == usual.keys() else f", {min(upper)} to {max(upper)}"
            cells[group.panel] = f"{a.exponent:.2f}{half}{which}"
    rows = [[series, *(cells.get(panel) for panel in panels)] for series, cells in lines.items()]
    return Table(["exponents", *panels], rows)


def _note(measured: str, found: Mapping[Group, Measured]) -> str:
    """What must be known to read a chart and its table: what was measured, and what was left out."""
    from attn_jax.power_law import upper_half

    options = cli.FLAGS
    upper = upper_half(dict.fromkeys(options.lengths, 0.0))
    parts = [
        f"Training: one step on {options.batch_size} sentences. Decoding: greedy search for as many, every output of "
        f"the full length. Where the source grows alone, targets have {options.target_length} symbols.",
        measured,
        f"Exponents a of length^a are fitted to lengths from {min(upper)} to {max(upper)}, unless others stand beside "
        "them, with the 95 % interval of the slope.",
    ]
    ended = [f"{group.series}, {group.panel} ({one.ended})" for group, one in found.items() if one.ended]
    if ended:
        limits = f"{options.most_seconds:g} s or {options.most_gigabytes:g} GB"
        parts.append(f"Left out, with all that is longer, as above {limits}: {'; '.join(ended)}.")
    return " ".join(parts)


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
