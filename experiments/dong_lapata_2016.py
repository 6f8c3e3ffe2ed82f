"""Dong and Lapata (2016), "Language to logical form with neural attention": GEO and JOBS with and without attention.

    .venv/bin/python experiments/dong_lapata_2016.py --dataset=jobs --manual_dir=DATA --seeds=10 --out=out/dl16

The configuration of the released code: one-layer unidirectional LSTM of 150 over the reversed source, embeddings of
150, unscaled dot score, tanh(W [c; h]), no input feeding, RMSProp 0.01 with decay per epoch after epoch 5, batches of
20, U(-0.08, 0.08), gradients clamped at 5, dropout on embeddings and before the softmax, the last epoch's parameters,
greedy search. Three things differ: attention is masked to the true source (the released code lets it reach padding),
the mean of several seeds is reported (the publication has one), and a batch of GEO is drawn from one of two length
buckets, since a few very long forms would pad all others (train.buckets=1 mixes all lengths, as the released code
does). The page shows the published figures for GEO, and what the authors' released checkpoints give when decoded again
for both.

--set and --sweep change the configuration of both variants.
"""

from attn_jax import cli, cli_choices, cli_flags, cli_study
from attn_jax.errors import UserError

EPOCHS = {"geo": {"dot": 90, "none": 160}, "jobs": {"dot": 95, "none": 95}}
"""As in the released scripts; not matched between the variants of GEO."""

PUBLISHED = {"geo": {"dot": 84.6, "none": 72.9}}
"""As another source quotes them; for JOBS no source was found to check the figures against."""

CHECKPOINT = {"geo": {"dot": 84.64, "none": 73.2}, "jobs": {"dot": 88.6, "none": 78.6}}

cli_flags.define({}, dataset="jobs", datasets=("geo", "jobs"), seeds=10)


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    if "score.name" in cli_choices.chosen():
        raise UserError("score: this experiment compares dot with none; compare others with compare_scores.py")
    if "train.epochs" in cli_choices.chosen() - {*cli_choices.overrides()}:
        raise UserError("train.epochs: the publication's epochs differ by variant; set one number by --epochs")
    reference = [
        {
            "dataset": f"semantic_parsing/{name}",
            "variant": {"score.name": score},
            "metric": "exact_match",
            "value": value,
            "source": source,
        }
        for name in cli.FLAGS.dataset
        for table, source in (
            (PUBLISHED, "Dong and Lapata (2016), as quoted by another source, one seed"),
            (CHECKPOINT, "the authors' released checkpoint, decoded again"),
        )
        for score, value in table.get(name, {}).items()
    ]
    cli_study.compare(
        lambda name: [{"score": score, "train.epochs": epochs} for score, epochs in EPOCHS[name].items()],
        title="Dong and Lapata (2016)",
        dataset=lambda name: f"semantic_parsing/{name}",
        reference=reference,
    )


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
