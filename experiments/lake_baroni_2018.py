r"""Lake and Baroni (2018), "Generalization without systematicity": recurrent networks on SCAN.

    .venv/bin/python experiments/lake_baroni_2018.py --dataset=length --seeds=5 --out=out/lb18

The configuration with the best mean over all of their experiments, an LSTM of two layers of 200 without attention and
dropout 0.5, on one split; on `simple` also the plain tanh RNN of the same size without and with attention, the sharpest
effect of attention that they report. Additive attention on the previous decoder state enters the decoder's input;
embeddings are as wide as the hidden layers; Adam 0.001, gradients clipped at norm 5, 100,000 commands drawn one by one
with replacement; for half of them the decoder is fed its own symbols; greedy search, the last parameters.

Not said in the publication, and chosen here: first values U(-n^-1/2, n^-1/2); dropout lies on embeddings and between
layers; with attention, logits are a linear map of [context; state]; the loss is summed over a command's actions; where
the decoder is fed its own symbols it goes on to the true length.

--cells compares other cells, each with the scores above. --set and --sweep change the configuration of all variants.
"""

from attn_jax import cli, cli_choices, cli_flags, cli_study
from attn_jax.combinators import Sweep
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
ATTENTION = {"placement": "before", "combine.name": "linear"}
"""What goes with a score."""

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

cli_flags.define({"cell": lambda: ("lstm", "gru", "rnn")}, dataset="simple", datasets=tuple(PUBLISHED), seeds=5)


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    if "score.name" in cli_choices.chosen():
        raise UserError("score: this experiment has its own; compare others with compare_scores.py")
    reference = [
        {
            "dataset": f"scan/{split}",
            "variant": {"cell.name": cell, "score.name": score},
            "metric": "exact_match",
            "value": value,
            "source": f"Lake and Baroni (2018), {remark}",
        }
        for split in cli.FLAGS.dataset
        for (cell, score), (value, remark) in PUBLISHED[split].items()
    ]
    cli_study.compare(
        compared, title="Lake and Baroni (2018)", dataset=lambda split: f"scan/{split}", reference=reference
    )


def compared(split: str) -> Sweep:
    """The cells and scores of which figures are published."""
    return [
        {**CONFIGURATION, "cell": cell, "score": score, **({} if score == "none" else ATTENTION)}
        for cell, score in PUBLISHED[split]
    ]


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
