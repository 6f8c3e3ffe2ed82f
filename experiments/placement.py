r"""When should attention act? Placement x input feeding x combination on inflection.

    .venv/bin/python experiments/placement.py --manual_dir=DATA --jobs=2 --out=out/placement

Attention acts after the recurrent cells (Luong et al. 2015), before them on the last state (Bahdanau et al. 2015), or
between the two cells of a conditional layer (Nematus, Sennrich et al. 2017). After the cells the context reaches the
next step only if it is fed: as the attentional vector (Luong's input feeding) or by itself. Context and state are
combined by tanh or a linear map, or added. The page has main effects and interactions of the three choices.

Expected: feeding helps `after`, and little where the context enters the cells anyway; the combination hardly matters.

Seen (exact match on test, three seeds; means over the other axes): between the cells 79.96 [79.16, 80.75] is best,
then before 75.55 [75.41, 75.70] and after 73.16 [72.52, 73.79]. After the cells feeding helps if it is the context
that is fed (with tanh 77.6 against 75.1), not the attentional vector (73.3), which costs 2 points everywhere. A sum of
context and state is 5 points worse than tanh and linear, which are equal; it is worst after the cells without feeding,
63.9. Best of 21 is between, tanh, nothing fed: 81.10 [80.20, 82.00].

28 minutes of processor time, 15 on the clock of two cores.

The data is CoNLL-SIGMORPHON 2017's of 1,000 examples (Cotterell et al. 2017); --dataset takes others. --placements,
--input_feedings and --combines choose parts of the grid; --set and --sweep change all variants.
"""

from attn_jax import cli, cli_flags, cli_study, config
from attn_jax.combinators import Sweep, grid, product
from attn_jax.config import Config
from attn_jax.tables import names

SIZES = {
    "score": "general",
    "train.epochs": 30,
    "train.buckets": 2,
    "train.eval_every": 235,
    "optim.learning_rate": 0.004,
    "optim.schedule": "cosine",
}

AXES = {
    "placement": lambda: config.choices("placement"),
    "input_feeding": lambda: names("decoder", "FEEDINGS"),
    "combine": lambda: names("combines", "COMBINES"),
}

cli_flags.define(AXES, dataset="inflection/2017_turkish_medium")


def compared(_: str) -> Sweep:
    """Every combination."""
    return product([SIZES], grid({axis: allowed() for axis, allowed in AXES.items()}))


def left_out(one: Config) -> bool:
    """Where the context enters the cells it is not fed again."""
    return one.placement != "after" and one.input_feeding == "context"


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    cli_study.compare(compared, title="When attention acts", left_out=left_out)


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
