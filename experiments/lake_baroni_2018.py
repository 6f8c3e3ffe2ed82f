r"""Lake and Baroni (2018), "Generalization without systematicity": recurrent networks on SCAN.

    python experiments/lake_baroni_2018.py --dataset=length --seeds=5 --out=out/lb18

The configuration with the best mean over all of their experiments, an LSTM of two layers of 200 without attention and
dropout 0.5, on one split; on `simple` also the plain tanh RNN of the same size without and with attention, the sharpest
effect of attention that they report. Additive attention on the previous decoder state enters the decoder's input;
embeddings are as wide as the hidden layers; Adam 0.001, gradients clipped at norm 5, 100,000 commands drawn one by one
with replacement; for half of them the decoder is fed its own symbols; greedy search, the last parameters.

Not said in the publication, and chosen here: first values U(-n^-1/2, n^-1/2); dropout lies on embeddings and between
layers; with attention, logits are a linear map of [context; state]; the loss is summed over a command's actions; where
the decoder is fed its own symbols it goes on to the true length.

--cells names the cells to train. --set and --sweep change the configuration of all variants.
"""

from collections.abc import Mapping, Set
from typing import Any

from attn_jax import cli, cli_study, combinators
from attn_jax.config import Config
from attn_jax.errors import UserError

CONFIGURATION = {
    "encoder.name": "uni",
    "bridge": "last",
    "hidden_size": 200,
    "encoder.layers": 2,
    "decoder.layers": 2,
    "dropout.embedding": 0.5,
    "dropout.layer": 0.5,
    "init.name": "fan_in",
    "loss.per": "sentence",
    "optim.name": "adam",
    "optim.learning_rate": 1e-3,
    "optim.schedule": "constant",
    "optim.clip_norm": 5.0,
    "train.steps": 100_000,
    "train.batch_size": 1,
    "train.sampling": "replacement",
    "train.select": "last",
    "train.teacher_forcing": 0.5,
    "train.forcing_unit": "sentence",
    "train.eval_every": 10_000,
}
SCORES: dict[str, dict[str, dict[str, Any]]] = {
    "lstm": {"none": {}},
    "rnn": {"none": {}, "additive": {"placement": "before", "combine.name": "linear"}},
}
"""What is compared of each cell, and what else goes with a score."""

PUBLISHED = {
    "simple": {
        ("lstm", "none"): (99.7, "mean of 5 seeds"),
        ("rnn", "none"): (1.5, "the best of all sizes is below this"),
        ("rnn", "additive"): (59.7, "mean; from 18.4 to 94.0"),
    },
    "length": {("lstm", "none"): (13.8, "mean of 5 seeds")},
    "add_jump": {("lstm", "none"): (0.08, "mean of 5 seeds")},
    "turn_left": {("lstm", "none"): (90.0, "mean of 5 seeds")},
}

cli_study.define({"cell": lambda: SCORES}, dataset="simple", datasets=tuple(PUBLISHED), seeds=5)


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    from attn_jax import sweep  # Help must not wait for JAX.

    axes, changes = cli_study.sweeps(), cli_study.overrides()
    asked = axes.pop("cell.name", None)
    choices = cli_study.choices(axes)
    _refuse_own({*combinators.paths([*choices, cli_study.tuned()]), *changes})
    corpora = cli_study.corpora()
    cells = {split: asked or sorted({cell for cell, _ in PUBLISHED[split]}) for split in cli.FLAGS.dataset}

    def variants(tuned: Mapping[str, Any]) -> list[Config]:
        return [
            variant
            for split, own in cells.items()
            for cell in own
            for score, what in SCORES[cell].items()
            for variant in sweep.variants(
                corpora.dataset(f"scan/{split}"),
                {**CONFIGURATION, "cell.name": cell, "score.name": score, **what, **changes, **tuned},
                choices,
            )
        ]

    reference = [
        {
            "dataset": f"scan/{split}",
            "variant": {"cell.name": cell, "score.name": score},
            "metric": "exact_match",
            "value": value,
            "source": f"Lake and Baroni (2018), {remark}",
        }
        for split, own in cells.items()
        for (cell, score), (value, remark) in PUBLISHED[split].items()
        if cell in own
    ]
    cli_study.conduct(variants, corpora, title="Lake and Baroni (2018)", reference=reference)


def _refuse_own(chosen: Set[str]) -> None:
    """Raises UserError on another choice of what makes the variants."""
    if "score.name" in chosen:
        raise UserError("score: this experiment has its own; compare others with compare_scores.py")
    if "cell.name" in chosen:
        raise UserError("cell: name the cells by --cells")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
