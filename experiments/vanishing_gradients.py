"""Vanishing gradients: what arrives at a source symbol of the error at an output symbol, by their distance.

    .venv/bin/python experiments/vanishing_gradients.py --jobs=2 --out=out/vanishing_gradients

Plain RNN, GRU and LSTM, without attention and with additive attention, learn to reverse sequences of up to 30 symbols.
The encoder reads one way and its last state is the decoder's first, so that without attention there is one path from
the source symbol s to the output symbol t, of (S - 1 - s) + 1 + t recurrent steps: the distance. Of the initial
parameters and of the trained ones the page then shows, by distance, the norm of the gradient of log p(y_t) with respect
to the embedded source symbol over its norm with respect to the vector before the output projection, which is where the
error begins (a model that is sure of its output has small gradients everywhere; the quotient does not see that). The
longest sentences of test are taken, teacher-forced, and every curve is divided by its value at distance 1. A last panel
has only those pairs where the source symbol is the answer: there the gradient must be large for the task to be learnt.

Expected: without attention an error of t steps has crossed a product of Jacobians, which shrinks or grows
exponentially with distance (Hochreiter 1991; Bengio et al. 1994; Pascanu et al. 2013, arXiv 1211.5063), in gated cells
at a rate that training can bring near 1. At initialisation gates are half open and a gated cell forgets faster than the
plain RNN, whose first matrix is orthogonal (--set=cell.forget_bias=1 and --set=init=uniform change both). Attention
connects every pair by a path of one weight whatever their distance (Bahdanau et al. 2015, section 1), spread over the
source at first: it sets a floor under the curves, which training raises where the answer is.

Seen (three seeds). At initialisation, without attention: gated cells lose 27 % of the gradient a step (1 % is left at
distance 14, 1e-7 at 50), the plain RNN 8 % (2 % at 50). Attention puts a floor of 0.11 to 0.15 under all three. After
training gated cells without attention carry what they learnt to keep, 0.3 to 0.5 at 50 (1 % a step), the RNN 0.07;
exact match is 25.9 (GRU), 31.3 (LSTM) and 36.9 (RNN) all the same: short sequences are right, long ones are not. With
attention it is 97.8, 99.3 and 99.9; its curves fall to 0.07 in the middle and rise to 0.2 at the far end.

Ten minutes of processor time. --dataset takes synthetic/reverse and synthetic/copy with options of their own (of copy,
every answer is S steps away), --cells and --scores other mechanisms, --sentences the number of sentences that gradients
are averaged over.
"""

from collections.abc import Callable, Set
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from attn_jax import cli, cli_choices, cli_flags, cli_study, processes
from attn_jax.combinators import grid, product
from attn_jax.config import Config, override
from attn_jax.errors import UserError, unknown
from attn_jax.tables import names

if TYPE_CHECKING:
    from attn_jax.curves import Curves, Row
    from attn_jax.data.corpus import Corpus
    from attn_jax.report_data import Section, Variant
    from attn_jax.study import Corpora

CONFIGURATION = {
    "encoder.name": "uni",
    "bridge": "last",
    "hidden_size": 64,
    "optim.learning_rate": 3e-3,
    "train.batch_size": 64,
    "train.steps": 2000,
    "train.eval_every": 250,
}
AXES = {"cell": ["rnn", "gru", "lstm"], "score": ["none", "additive"]}
ANSWERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "synthetic/reverse": lambda t, length: length - 1 - t,
    "synthetic/copy": lambda t, length: t,
}
"""Of each task, the source position of the symbol that is the output at step t."""

START, END, ANSWER = PANELS = ("at initialisation", "after training", "after training, of the answer alone")
LEVEL = 0.01

cli_flags.define(
    {"cell": lambda: names("cells", "CELLS"), "score": lambda: [*names("scores", "SCORES"), "none"]},
    dataset="synthetic/reverse?vocabulary=10&min_length=3&max_length=30&test_min_length=31&test_max_length=40"
    "&examples=20000&test_examples=500",
)
flags.DEFINE_integer("sentences", 64, "sentences of test that gradients are averaged over, the longest", 1)


def main() -> None:
    """Trains what is missing, measures, and prints the tables and the path of the page."""
    # Help must not wait for JAX.
    from attn_jax import curves, gradients, report, report_data
    from attn_jax.results import Output

    _check(cli_choices.chosen())
    own = product([CONFIGURATION], grid(AXES))
    out = cli_study.compare(lambda _: own, title="Vanishing gradients", check=gradients.check)
    if out is None or not processes.leads():
        return
    sections = [s for s in report_data.load(out).sections if s.dataset in cli.FLAGS.dataset and not s.earlier]
    found = []
    for number, section in enumerate(sections, 1):
        name = "gradients" if len(cli.FLAGS.dataset) == 1 else f"gradients-{number}"
        found.append(measured(name, section, cli_study.corpora()))
    with Output(out).alone():
        for one in found:
            if one is not None:
                curves.write(out, one, command=cli_study.command_line())
        report.build(out)
    print(report.measured_text(out), end="")


def _check(chosen: Set[str]) -> None:
    """Raises UserError on other tasks and models than those whose distances are known."""
    for name in cli.FLAGS.dataset:
        if (task := name.partition("?")[0]) not in ANSWERS:
            raise unknown("data set of this experiment", task, ANSWERS)
    for path in ("encoder.name", "model", "data.source_unit", "data.target_unit"):
        if path in chosen:
            raise UserError(f"{path}: distances are known of recurrent encoders that read words one way; leave it out")


def measured(name: str, section: "Section", corpora: "Corpora") -> "Curves | None":
    """The curves of every variant of a data set that has results; None without one."""
    from attn_jax import gradients
    from attn_jax.curves import Axis, Curves, Table

    rows: list[Row] = []
    table: list[list[str | float | None]] = []
    for variant in section.variants:
        # Another study in the same directory may have other models.
        if not variant.done or variant.config.get("encoder.name") != "uni":
            continue
        corpus = corpora.corpus(override(Config(), variant.done[0].config))
        profiles = by_panel(variant, corpus, ANSWERS[section.dataset.partition("?")[0]])
        rows += [row for panel in PANELS for row in _rows(variant.label, panel, profiles[panel])]
        means = [_mean(profiles[panel]) for panel in PANELS]
        falls = [gradients.falls_to(mean, LEVEL) or f"> {len(mean) - 1}" for mean in means]
        table.append([variant.label, *falls, *map(gradients.decay, means)])
    if not rows:
        return None
    columns = [
        f"{kind}: {what}" for what in (f"{100 * LEVEL:g} % at", "factor") for kind in ("initial", "trained", "answer")
    ]
    return Curves(
        name=name,
        title="Error that arrives at source symbols" + f": {section.title}" * (len(cli.FLAGS.dataset) > 1),
        x=Axis("distance", "recurrent steps"),
        y=Axis("gradient norm, relative to distance 1", scale="log"),
        rows=rows,
        note="|d log p(y_t) / d e(x_s)| over |d log p(y_t) / d a_t|, where a_t is the vector before the output "
        "projection: means over the pairs (s, t) of equal distance (S - 1 - s) + 1 + t, divided by that at distance 1. "
        f"Sentences: the longest of test (--sentences={cli.FLAGS.sentences}); distances: those that all of them have. "
        "The answer is the source symbol that is to be output at t. Lines: geometric mean over seeds; bands: lowest to "
        f"highest seed. Table: where a line first is at {100 * LEVEL:g} %, and the factor a step of the exponential "
        "that fits it best.",
        table=Table(["variant", *columns], table),
    )


def by_panel(
    variant: "Variant", corpus: "Corpus", answer: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Curves [R, D] by distance from 0 of the runs of a variant, for each panel; NaN where there is no pair."""
    import jax
    import jax.numpy as jnp

    from attn_jax import gradients
    from attn_jax.data.buckets import pad
    from attn_jax.data.text import PAD
    from attn_jax.reuse import load_run
    from attn_jax.training import Trainer

    runs = [load_run(run.folder) for run in variant.done]
    pairs = sorted(corpus.encoded["test"], key=lambda pair: len(pair[0]))[-cli.FLAGS.sentences :]
    sources, targets = zip(*pairs, strict=True)
    lengths = np.array([len(one) for one in sources])
    source, target = (jnp.asarray(pad(side, max(map(len, side)))) for side in (sources, targets))
    t, s = np.arange(target.shape[1])[None, :, None], np.arange(source.shape[1])[None, None, :]
    away = gradients.distances(lengths, target.shape[1], source.shape[1])
    real = np.asarray((target != PAD)[:, :, None] & (source != PAD)[:, None, :])
    counted = {START: real, END: real, ANSWER: real & (s == answer(t, lengths[:, None, None]))}

    # What training began with: made as training makes it.
    first = Trainer([run.config for run in runs], corpus).start().params
    model = runs[0].model
    of = jax.jit(lambda params: gradients.gradients(model, params, source, target))
    found: dict[str, list[np.ndarray]] = {panel: [] for panel in PANELS}
    for number, run in enumerate(runs):
        begun = {name: value[number] for name, value in first.items()}
        for params, panels in ((begun, (START,)), (run.params, (END, ANSWER))):
            norms, errors = (np.asarray(part, np.float64) for part in of(params))
            with np.errstate(divide="ignore", invalid="ignore"):  # of an error that is exactly zero nothing is known
                arriving = norms / errors[:, :, None]
                arriving /= gradients.by_distance(arriving, away, real, 1)[1]
            for panel in panels:
                curve = gradients.by_distance(arriving, away, counted[panel], 2 * int(lengths.min()))
                found[panel].append(curve)
    return {panel: np.stack(curves) for panel, curves in found.items()}


def _mean(curves: np.ndarray) -> np.ndarray:
    """The geometric mean over runs at each distance; NaN where a run has no value, or zero."""
    with np.errstate(divide="ignore"):
        logs = np.log(curves).mean(axis=0)
    return np.where(np.isfinite(logs), np.exp(logs), np.nan)


def _rows(series: str, panel: str, curves: np.ndarray) -> list["Row"]:
    """Points of a series with the range of its runs, where there are several."""
    from attn_jax.curves import Row

    mean, low, high = _mean(curves), curves.min(axis=0), curves.max(axis=0)
    rows = []
    for d in np.flatnonzero(np.isfinite(mean)).tolist():
        y = float(np.clip(mean[d], low[d], high[d]))  # else a mean of equal numbers may lie beside them, by rounding
        band = {"low": float(low[d]), "high": float(high[d])} if len(curves) > 1 else {}
        rows.append(Row(series, d, y, panel=panel, **band))
    return rows


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
