"""Multi30k: image captions in English, German, French and Czech, line by line (Elliott et al. 2016)."""

from collections.abc import Sequence

from attn_jax.data import reading, sources
from attn_jax.data.datasets import Example, Info, Recipe
from attn_jax.data.sources import Files
from attn_jax.errors import UserError, unknown

LANGUAGES = ("cs", "de", "en", "fr")
PATTERNS: tuple[str, ...] = ("multi30k/<src>_<tgt>", "multi30k_raw/<src>_<tgt>")
FORMS = {"multi30k": "tok/{}.lc.norm.tok.{}", "multi30k_raw": "raw/{}.{}"}
SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr", "test_2017": "test_2017_flickr"}

CITATION = (
    "Elliott, D., Frank, S., Sima'an, K. and Specia, L. (2016). Multi30K: Multilingual English-German image "
    "descriptions. Vision and Language. Elliott, D. et al. (2017) and Barrault, L. et al. (2018), shared "
    "tasks on multimodal machine translation, WMT."
)
RECOMMENDED = {
    "cell": "gru",
    # Unscaled products saturate the softmax early with some seeds: general gave 32.4, 33.1 and 21.9 BLEU.
    "score": "additive",
    "input_feeding": "attentional",
    "embedding.size": 256,
    "encoder.name": "bi",
    "encoder.size": 128,
    "decoder.size": 256,
    "bridge": "dense",
    "precision": "bfloat16",
    "dropout.embedding": 0.3,
    "dropout.readout": 0.3,
    "optim.learning_rate": 2e-3,
    "optim.schedule": "cosine",
    "optim.warmup_share": 0.044,
    "optim.clip_norm": 1.0,
    "train.batch_size": 64,
    "train.epochs": 10.0,
}
UNITS = {
    "multi30k": {
        "data.source_unit": "words",
        "data.target_unit": "words",
        "data.source_min_count": 2,
        "data.target_min_count": 2,
    },
    "multi30k_raw": {"data.source_unit": "bpe", "data.target_unit": "bpe", "data.bpe_size": 8000},
}


def names() -> list[str]:
    """Every data set of this family."""
    return [f"{form}/{s}_{t}" for form in FORMS for s in LANGUAGES for t in LANGUAGES if s != t]


def recipe(name: str, files: Files) -> Recipe:
    """The recipe of multi30k/<src>_<tgt> (lower-cased, tokenised) or multi30k_raw/... Raises UserError."""
    form, _, languages = name.partition("/")
    source, _, target = languages.partition("_")
    for language in (source, target):
        if language not in LANGUAGES:
            raise unknown(f"language of {form}/<src>_<tgt>", language, LANGUAGES)
    if source == target:
        raise UserError(f"{name}: source and target are one language; give two of {', '.join(LANGUAGES)}")
    have = sources.pinned("multi30k")
    paths = {
        split: [FORMS[form].format(stem, language) for language in (source, target)] for split, stem in SPLITS.items()
    }
    found = {
        split: [(files.read("multi30k", path), files.label("multi30k", path)) for path in both]
        for split, both in paths.items()
        if all(path in have for path in both)
    }

    def read() -> dict[str, Sequence[Example]]:
        return {split: reading.parallel(*source, *target) for split, (source, target) in found.items()}

    info = Info(
        name=name,
        citation=CITATION,
        licence="no licence file; for non-commercial research and educational purposes",
        metric="bleu",
        tokenize="none" if form == "multi30k" else "13a",
        url="https://github.com/multi30k/dataset",
        recommended=RECOMMENDED | UNITS[form],
        notes=("test: test_2016_flickr" + (", lower-cased, tokenised" if form == "multi30k" else ", untokenised"),),
    )
    return Recipe(info, read)
