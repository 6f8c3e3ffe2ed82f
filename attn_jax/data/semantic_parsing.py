"""GEO and JOBS: stemmed, anonymised questions to logical forms, as in Dong and Lapata (2016)."""

from collections.abc import Sequence

from attn_jax.data import reading
from attn_jax.data.datasets import Example, Info, Recipe, pair
from attn_jax.data.sources import Files
from attn_jax.errors import unknown

FILES = {"geo": "geo/geo_anonymous_lambda_{}.txt", "jobs": "job/jobs_anonymous_prolog_{}.txt"}
PATTERNS: tuple[str, ...] = ("semantic_parsing/geo", "semantic_parsing/jobs")

CITATION = (
    "Dong, L. and Lapata, M. (2016). Language to logical form with neural attention. ACL. {} This form of "
    "the data as distributed by Guo, J. et al. (2020). Benchmarking meaning representations in neural "
    "semantic parsing. EMNLP."
)
ORIGINS = {
    "geo": "GEO: Zelle, J. M. and Mooney, R. J. (1996). Learning to parse database queries using inductive "
    "logic programming. AAAI.",
    "jobs": "JOBS: Tang, L. R. and Mooney, R. J. (2001). Using multiple clause constructors in inductive "
    "logic programming for semantic parsing. ECML.",
}
# The configuration of Dong and Lapata's released code; what differs between the two sets is below.
RECOMMENDED = {
    "data.source_unit": "words",
    "data.target_unit": "words",
    "data.source_min_count": 2,
    "cell": "lstm",
    "embedding.size": 150,
    "encoder.name": "reversed",
    "encoder.size": 150,
    "bridge": "last",
    "decoder.size": 150,
    "score": "dot",
    "combine.name": "tanh",
    "input_feeding": "none",
    "init.name": "uniform",
    "init.scale": 0.08,
    "loss.per": "sentence",
    "optim.name": "rmsprop",
    "optim.learning_rate": 0.01,
    "optim.rho": 0.95,
    "optim.schedule": "decay",
    "optim.decay_after": 5.0,
    "optim.clip_norm": 0.0,
    "optim.clip_value": 5.0,
    "train.batch_size": 20,
    "train.select": "last",
}
DIFFERENT = {
    "geo": {
        "dropout.embedding": 0.5,
        "dropout.readout": 0.5,
        "optim.decay_factor": 0.98,
        # Batches of nearly all lengths, as in the released code, but for the few very long forms.
        "train.buckets": 2,
        "train.epochs": 90.0,
    },
    "jobs": {
        "dropout.embedding": 0.4,
        "dropout.readout": 0.4,
        "optim.decay_factor": 0.985,
        "train.buckets": 1,
        "train.epochs": 95.0,
    },
}


def names() -> list[str]:
    """Every data set of this family."""
    return list(PATTERNS)


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of semantic_parsing/{geo,jobs}. Raises UserError on another name."""
    task = name.partition("/")[2]
    if task not in FILES:
        raise unknown("semantic parsing data set", task, FILES)
    contents = {split: ("semantic_parsing", FILES[task].format(split)) for split in ("train", "test")}
    found = {split: (files.read(*file), files.label(*file)) for split, file in contents.items()}

    def read() -> dict[str, Sequence[Example]]:
        form = "question<TAB>logical form"
        return {
            split: [pair(*row) for row in reading.columns(data, path, 2, form)] for split, (data, path) in found.items()
        }

    info = Info(
        name=name,
        citation=CITATION.format(ORIGINS[task]),
        licence="MIT (as distributed)",
        metric="exact_match",
        url="https://github.com/donglixp/lang2logic",
        recommended=RECOMMENDED | DIFFERENT[task],
        normalization="logic",
    )
    return Recipe(info, read)
