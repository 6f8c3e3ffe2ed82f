r"""Compare scoring functions (and any other choice) on a data set over several seeds.

    .venv/bin/python experiments/compare_scores.py --dataset=semantic_parsing/jobs --manual_dir=DATA \
        --scores=none,dot --cells=lstm --seeds=10 --out=out/jobs

Starts from the data set's recommended configuration, and compares all scores unless --scores or --set=score=... names
some; --models=recurrent,transformer puts a transformer beside them. --sweep=NAME compares what one of the functions
below says. Every variant is trained with every seed; runs of equal structure train together as one compiled program.
Writes OUT/results.csv and OUT/report.html, and prints the table. Repeating the command skips runs that have results; a
larger --seeds adds runs. --dry_run tells what would be trained and for how long; --tune chooses values on dev first.
"""

from attn_jax import cli, cli_flags, cli_study, config
from attn_jax.combinators import Sweep, chain, named, product, sample, values, without
from attn_jax.tables import names

cli_flags.define(
    {
        "model": lambda: config.choices("model"),
        "score": lambda: [*names("scores", "SCORES"), "none"],
        "cell": lambda: names("cells", "CELLS"),
        "encoder": lambda: names("encoders", "DIRECTIONS"),
        "bridge": lambda: names("bridges", "BRIDGES"),
        "normalizer": lambda: names("normalizers", "NORMALIZERS"),
        "window": lambda: names("windows", "WINDOWS"),
        "placement": lambda: config.choices("placement"),
        "combine": lambda: names("combines", "COMBINES"),
        "input_feeding": lambda: names("decoder", "FEEDINGS"),
        "readout": lambda: names("readouts", "READOUTS"),
        "embedding": lambda: names("layers", "EMBEDDINGS"),
    }
)


@named
def scores() -> Sweep:
    """Every score, and no attention."""
    return values("score", "none", *names("scores", "SCORES"))


@named
def cells_by_scores() -> Sweep:
    """LSTM, GRU and plain RNN, each without attention and with three scores."""
    return product(values("cell", "lstm", "gru", "rnn"), values("score", "none", "dot", "general", "additive"))


@named
def placements() -> Sweep:
    """Attention after the cells (Luong), before them (Bahdanau) or between them, with two scores."""
    return product(values("placement", *config.choices("placement")), values("score", "general", "additive"))


@named
def feedings() -> Sweep:
    """What else enters the next step, with two scores."""
    return product(values("input_feeding", *names("decoder", "FEEDINGS")), values("score", "general", "additive"))


@named
def luong_2015() -> Sweep:
    """Global, local_m and local_p attention with scores of Luong et al. (2015, table 4) and input feeding."""
    everywhere = product(values("window", "global"), values("score", "location", "dot", "general"))
    local = product(values("window", "local_m", "local_p"), values("score", "dot", "general"))
    return product([{"input_feeding": "attentional"}], chain(everywhere, local))


@named
def from_fixed_to_attention() -> Sweep:
    """A fixed context, then one thing more at a time: both directions, attention, input feeding."""
    return [
        {"encoder": "uni", "score": "none"},
        {"encoder": "bi", "score": "none"},
        {"encoder": "bi", "score": "general"},
        {"encoder": "bi", "score": "general", "input_feeding": "attentional"},
    ]


@named
def mechanisms() -> Sweep:
    """What matters at all: 24 combinations of score, cell, placement, normaliser and feeding at random."""
    everything = product(
        values("score", "dot", "scaled_dot", "general", "concat", "additive"),
        values("cell", "lstm", "gru"),
        values("placement", *config.choices("placement")),
        values("normalizer", *names("normalizers", "NORMALIZERS")),
        values("input_feeding", *names("decoder", "FEEDINGS")),
    )
    # Where the context enters the cells already, it is not fed again.
    legal = without(everything, lambda c: c["placement"] != "after" and c["input_feeding"] == "context")
    return sample(legal, 24)


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    cli_study.compare(lambda _: values("score", *names("scores", "SCORES")), title="Scoring functions")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
