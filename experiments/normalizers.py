r"""Does attention have to reach everywhere? Softmax, sparsemax, 1.5-entmax and raw scores on inflection.

    .venv/bin/python experiments/normalizers.py --manual_dir=DATA --jobs=2 --out=out/normalizers

Softmax gives every source symbol some weight; sparsemax (Martins and Astudillo 2016) and 1.5-entmax (Peters et al.
2019) give most of them none; `linear` divides the positive ones by their sum, without an exponential. Each with a
score of products (general) and one of tanh (additive), on Turkish of CoNLL-SIGMORPHON 2017 with 1,000 examples
(Cotterell et al. 2017).

Expected: sparse attention is as good as softmax or slightly better, as Peters et al. found on inflection; raw scores
are worse with products, whose size nothing bounds.

Seen (exact match on test, five seeds, means over both scores): softmax 72.98 [71.24, 74.72], 1.5-entmax 72.35 [71.48,
73.22], sparsemax 71.48 [70.54, 72.42]: as good, not better. Raw scores have 60.67 [58.36, 62.98], and lose more with
the bounded additive scores (56.9 against 71.6) than with products (64.4 against 74.3), against what was expected.

16 minutes of processor time.

--normalizers and --scores choose parts of the grid; --dataset, --set and --sweep change all variants.
"""

from attn_jax import cli, cli_flags, cli_study
from attn_jax.combinators import Sweep, product, values
from attn_jax.tables import names

SIZES = {
    "train.epochs": 30,
    "train.buckets": 2,
    "train.eval_every": 235,
    "optim.learning_rate": 0.004,
    "optim.schedule": "cosine",
}

cli_flags.define(
    {"normalizer": lambda: names("normalizers", "NORMALIZERS"), "score": lambda: names("scores", "SCORES")},
    dataset="inflection/2017_turkish_medium",
    seeds=5,
)


def compared(_: str) -> Sweep:
    """Every normaliser with two scores."""
    return product(
        [SIZES], values("normalizer", *names("normalizers", "NORMALIZERS")), values("score", "general", "additive")
    )


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    cli_study.compare(compared, title="Scores to weights")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
