r"""Compare scoring functions (and any other choice) on a data set over several seeds.

    python experiments/compare_scores.py --dataset=semantic_parsing/jobs --manual_dir=../shared/data \
        --scores=none,dot --cells=lstm --seeds=10 --out=out/jobs

Starts from the data set's recommended configuration, and compares all scores unless --scores or --set=score=... names
some; --models=recurrent,transformer puts a transformer beside them. Every variant is trained with every seed; runs of
equal structure train together as one compiled program. Writes OUT/results.csv and OUT/report.html, and prints the
table. Repeating the command skips runs that have results; a larger --seeds adds runs.
"""

from attn_jax import cli, cli_study, config, sweep
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS
from attn_jax.combines import COMBINES
from attn_jax.decoder import FEEDINGS
from attn_jax.encoders import DIRECTIONS
from attn_jax.layers import EMBEDDINGS
from attn_jax.normalizers import NORMALIZERS
from attn_jax.readouts import READOUTS
from attn_jax.scores import NONE, SCORES
from attn_jax.windows import WINDOWS

cli_study.define(
    {
        "model": lambda: config.choices("model"),
        "score": lambda: [*SCORES, NONE],
        "cell": lambda: CELLS,
        "encoder": lambda: DIRECTIONS,
        "bridge": lambda: BRIDGES,
        "normalizer": lambda: NORMALIZERS,
        "window": lambda: WINDOWS,
        "placement": lambda: config.choices("placement"),
        "combine": lambda: COMBINES,
        "input_feeding": lambda: FEEDINGS,
        "readout": lambda: READOUTS,
        "embedding": lambda: EMBEDDINGS,
    }
)


def main() -> None:
    """Trains what is missing, and prints the table and the path of the page."""
    axes, changes = cli_study.sweeps(), cli_study.overrides()
    corpora = cli_study.corpora()
    if "score.name" not in changes:
        axes.setdefault("score.name", list(SCORES))
    variants = [
        variant for name in cli.FLAGS.dataset for variant in sweep.variants(corpora.dataset(name), changes, axes)
    ]
    cli_study.conduct(variants, corpora, title="Scoring functions")


if __name__ == "__main__":
    cli.run(main, doc=__doc__)
