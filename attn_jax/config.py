"""Configurations: frozen dataclasses with a canonical form, typed overrides, JSON, and a run id.

A *run* is one `Config`. Its fields are addressed by dotted paths (`optim.learning_rate`); a path that names a section
with a `name` field means that field (`score` is `score.name`). Fields marked `traced` are numbers that enter the
compiled program as arguments: runs that differ only in them have the same structure and train together as one *group*.
"""

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attn_jax.errors import UserError, unknown


def _field(
    default: Any, doc: str, *, traced: bool = False, positive: bool = False, upper: float = math.inf, off: float = 0.0
) -> Any:
    """A field with its help text. `positive` and `upper` bound a number: [0, upper] or, if positive, (0, upper].

    off: value of a traced number at which a program is built without what it sets.
    """
    return dataclasses.field(
        default=default, metadata={"doc": doc, "traced": traced, "positive": positive, "upper": upper, "off": off}
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read and how text becomes numbers."""

    dataset: str = _field("scan/simple", "name of the data set, e.g. scan/simple, semantic_parsing/jobs")
    source_unit: str = _field("words", "source symbols: words, characters, bpe, tagged_characters")
    target_unit: str = _field("words", "target symbols: words, characters, bpe")
    source_min_count: int = _field(1, "source symbols seen less often in train are unknown", positive=True)
    target_min_count: int = _field(1, "target symbols seen less often in train are unknown", positive=True)
    bpe_size: int = _field(8000, "pieces of the BPE vocabulary", positive=True)
    lowercase: bool = _field(False, "lower-case both sides")
    bleu_tokenizer: Literal["own", "none", "13a", "intl", "char", "zh"] = _field(
        "own", "how BLEU cuts text into words, a tokeniser of sacrebleu; own: as the data set says"
    )
    max_source_length: int = _field(0, "leave out training pairs with more source symbols; 0: no limit")
    max_target_length: int = _field(0, "leave out training pairs with more target symbols; 0: no limit")


@dataclasses.dataclass(frozen=True)
class Cell:
    """The recurrent cell of encoder and decoder."""

    name: str = _field("lstm", "recurrent cell")
    forget_bias: float = _field(0.0, "added to the LSTM's forget gate before the sigmoid")
    keep_every: int = _field(
        0, "keep the states of every so-manieth step for the backward pass and compute the rest again; 0: keep all"
    )
    unroll: int = _field(1, "steps in one turn of a compiled recurrence; more take longer to compile", positive=True)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Symbols to vectors."""

    name: str = _field("learned", "learned vectors, or onehot: the one-hot vector itself enters the cell")
    size: int = _field(128, "width of source and target embeddings", positive=True)
    tied: Literal["none", "decoder"] = _field(
        "none", "decoder: target embeddings are the columns of the output projection (equal widths)"
    )


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The source reader; `size` is per direction."""

    name: str = _field("bi", "direction: uni, bi, or reversed (the source read from its end)")
    size: int = _field(64, "units per direction", positive=True)
    layers: int = _field(1, "stacked layers", positive=True)
    residual: bool = _field(False, "add its input to the output of every layer but the first")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The target writer."""

    size: int = _field(128, "units", positive=True)
    layers: int = _field(1, "stacked layers", positive=True)
    residual: bool = _field(False, "add its input to the output of every layer but the first")


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a memory position matches the query."""

    name: str = _field("general", "scoring function")
    size: int = _field(0, "width of the additive score's hidden layer; 0: the decoder's size")
    memory_projection: bool = _field(False, "project the memory to the query's width for scores that need equal widths")
    heads: int = _field(2, "heads of the multihead score", positive=True)
    max_source_length: int = _field(100, "positions that the location score can tell apart", positive=True)


@dataclasses.dataclass(frozen=True)
class Window:
    """Which positions a step may attend to."""

    name: str = _field("global", "window of attention")
    width: int = _field(10, "half width D of local windows, in positions", positive=True)


@dataclasses.dataclass(frozen=True)
class Combine:
    """Context vector and decoder state to attentional vector."""

    name: str = _field("tanh", "tanh or linear (of W [context; state]), or add")
    bias: bool = _field(False, "whether W has a bias")


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The sizes of a transformer, which shares no other mechanism field with the recurrent model."""

    size: int = _field(128, "width d of embeddings and of every layer's input and output", positive=True)
    heads: int = _field(4, "heads of every attention, each of width size / heads", positive=True)
    encoder_layers: int = _field(2, "layers of the encoder", positive=True)
    decoder_layers: int = _field(2, "layers of the decoder", positive=True)
    feedforward: int = _field(512, "hidden width of the feed-forward sublayers", positive=True)
    window: int = _field(0, "self-attention reaches that many positions to each side (the decoder's: back); 0: all")
    norm: Literal["post", "pre"] = _field(
        "pre",
        "layer norm before each sublayer, which trains at a constant rate, or after it and its residual (post; Vaswani "
        "et al. 2017), which wants warmup",
    )


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout rates by site."""

    embedding: float = _field(0.0, "rate on source and target embeddings", traced=True, upper=0.99)
    layer: float = _field(
        0.0,
        "rate on the input of every recurrent layer but the first; of a transformer, on the output of every sublayer",
        traced=True,
        upper=0.99,
    )
    recurrent: float = _field(0.0, "rate on the recurrent state, one mask for all steps", traced=True, upper=0.99)
    attention: float = _field(0.0, "rate on a transformer's attention weights", traced=True, upper=0.99)
    readout: float = _field(0.0, "rate on the vector before the output projection", traced=True, upper=0.99)
    word: float = _field(0.0, "rate at which whole symbols are dropped from the input", traced=True, upper=0.99)


@dataclasses.dataclass(frozen=True)
class Init:
    """First values of the parameters."""

    name: Literal["glorot", "uniform", "normal", "fan_in"] = _field(
        "glorot",
        "glorot: Glorot uniform matrices, orthogonal recurrent blocks, normal(E^-1/2) embeddings, zero biases; "
        "uniform: everything U(-scale, scale); normal: everything N(0, scale^2); fan_in: U(-n^-1/2, n^-1/2), n the "
        "fan-in",
    )
    scale: float = _field(0.08, "half width or standard deviation for uniform and normal", positive=True)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The training loss."""

    per: Literal["token", "sentence"] = _field("token", "what the summed negative log-likelihood is divided by")
    label_smoothing: float = _field(0.0, "probability mass spread over the vocabulary", traced=True, upper=0.99)
    coverage: float = _field(
        0.0, "weight of the coverage loss, with coverage: attention where earlier steps have been", traced=True
    )


@dataclasses.dataclass(frozen=True)
class Optim:
    """Optimiser, learning rate schedule, clipping."""

    name: Literal["adam", "sgd", "rmsprop", "adadelta"] = _field("adam", "optimiser")
    learning_rate: float = _field(1e-3, "learning rate", traced=True, positive=True)
    beta1: float = _field(0.9, "Adam: decay of the mean", traced=True, upper=0.999999)
    beta2: float = _field(0.999, "Adam: decay of the square", traced=True, upper=0.999999)
    rho: float = _field(0.95, "RMSProp, Adadelta: decay of the square", traced=True, upper=0.999999)
    epsilon: float = _field(
        1e-8, "added to the root of the square, by Adadelta below the root", traced=True, positive=True
    )
    schedule: Literal["constant", "decay", "halving", "warmup", "cosine"] = _field(
        "constant",
        "decay: times decay_factor each epoch after decay_after; halving: the same with 1/2; warmup: linear growth, "
        "then inverse square root; cosine: to 0 at the last step, after linear growth",
    )
    decay_factor: float = _field(0.98, "schedule decay: factor an epoch", traced=True, positive=True)
    decay_after: float = _field(5.0, "schedules decay and halving: epochs at the full rate", traced=True)
    warmup_share: float = _field(
        0.0, "schedules warmup and cosine: share of all steps in which the rate grows linearly", traced=True, upper=0.99
    )
    clip_norm: float = _field(5.0, "clip the gradient's global norm; 0: off", traced=True)
    clip_value: float = _field(0.0, "clip every element of the gradient; 0: off", traced=True)
    weight_decay: float = _field(0.0, "decoupled weight decay", traced=True)


@dataclasses.dataclass(frozen=True)
class Train:
    """Length of training, evaluation, selection."""

    batch_size: int = _field(64, "sentence pairs a step", positive=True)
    epochs: float = _field(10.0, "passes over the training data, where steps is 0")
    steps: int = _field(0, "optimiser steps; 0: from epochs")
    eval_every: int = _field(0, "steps between evaluations on dev; 0: once an epoch")
    select: Literal["last", "best_dev"] = _field("best_dev", "parameters that are tested (without a dev set: last)")
    metric: str = _field("", "dev metric for selection and early stopping; empty: the data set's own")
    patience: int = _field(0, "stop after that many evaluations without a better one; 0: off")
    buckets: int = _field(0, "length buckets at most; 1: batches of all lengths; 0: more the longer the training")
    sampling: Literal["shuffle", "replacement"] = _field("shuffle", "epochs in random order, or draws with replacement")
    teacher_forcing: float = _field(
        1.0,
        "rate at which the true previous symbol enters, else the model's own",
        traced=True,
        upper=1.0,
        off=1.0,
    )
    forcing_unit: Literal["step", "sentence"] = _field(
        "step", "what teacher_forcing is drawn for: each step of each sentence, or whole sentences"
    )


@dataclasses.dataclass(frozen=True)
class Decode:
    """Search for the output of a trained model; evaluations during training search greedily, whatever this says."""

    name: Literal["greedy", "beam", "sample"] = _field(
        "greedy",
        "search on test splits, and on dev once training has ended: the most probable symbol at each step, a beam, or "
        "symbols drawn at random; during training dev is always decoded greedily",
    )
    beam_size: int = _field(5, "beam: live hypotheses", positive=True)
    length_penalty: Literal["none", "gnmt", "power", "average"] = _field(
        "none",
        "beam: what the log-probability of n symbols, end-of-sentence included, is divided by: "
        "gnmt ((5 + n) / 6)^alpha, power n^alpha, average n",
    )
    alpha: float = _field(0.6, "exponent of the length penalties gnmt and power")
    coverage_penalty: float = _field(
        0.0, "beam: beta of the coverage penalty beta sum_j log min(sum_t weight_tj, 1); 0: off"
    )
    temperature: float = _field(1.0, "sample: symbols have probabilities p^(1/temperature)", positive=True)
    min_length: int = _field(0, "shortest output in symbols, end-of-sentence included; 0: no limit")
    max_length: int = _field(0, "longest output in symbols; 0: twice the longest training target plus 10")


SEARCH_FIELDS: Mapping[str, tuple[str, ...]] = {
    "greedy": (),
    "beam": ("beam_size", "length_penalty", "alpha", "coverage_penalty"),
    "sample": ("temperature",),
}
"""Fields of `Decode` that matter to one search only."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    data: Data = Data()
    model: Literal["recurrent", "transformer"] = _field("recurrent", "kind of encoder-decoder")
    cell: Cell = Cell()
    embedding: Embedding = Embedding()
    encoder: Encoder = Encoder()
    bridge: str = _field("dense", "first decoder state")
    decoder: Decoder = Decoder()
    score: Score = Score()
    normalizer: str = _field("softmax", "scores to weights")
    window: Window = Window()
    coverage: bool = _field(False, "the sum of earlier weights enters the score (additive, normed_additive, concat)")
    combine: Combine = Combine()
    placement: Literal["after", "before", "between"] = _field(
        "after",
        "when attention acts: after the cells (Luong), before them on the last state (Bahdanau), or between the two "
        "cells of a conditional layer",
    )
    input_feeding: str = _field("none", "what else enters the next step")
    readout: str = _field("projection", "what the output projection sees")
    transformer: Transformer = Transformer()
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = _field(
        "float32", "operands of matrix products; accumulation and parameters stay float32"
    )
    dropout: Dropout = Dropout()
    init: Init = Init()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    decode: Decode = Decode()
    seed: int = _field(0, "random seed of the run", traced=True)


MODEL_FIELDS = {
    "recurrent": (
        *("cell", "embedding", "encoder", "bridge", "decoder", "score", "normalizer", "window", "combine"),
        *("placement", "input_feeding", "readout", "coverage", "dropout.recurrent", "loss.coverage"),
    ),
    "transformer": ("transformer", "dropout.attention"),
}
"""Sections and fields that matter to one kind of model alone; all others matter to every kind."""


# -- paths ----------------------------------------------------------------------------------------------------------


def fields() -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every leaf field as (path, field, annotation), in order of declaration."""
    for path, (field, annotation) in _table().items():
        yield path, field, annotation


@functools.cache
def _table() -> dict[str, tuple[dataclasses.Field, Any]]:
    """Field and annotation by path. To evaluate annotations takes longer than all else that is done with a path."""

    def leaves(section: type, prefix: str) -> Iterator[tuple[str, tuple[dataclasses.Field, Any]]]:
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            annotation = hints[field.name]
            if dataclasses.is_dataclass(annotation):
                yield from leaves(typing.cast(type, annotation), f"{prefix}{field.name}.")
            else:
                yield prefix + field.name, (field, annotation)

    return dict(leaves(Config, ""))


def resolve(path: str) -> str:
    """The full path of a field: a section stands for its `name`. Raises UserError on an unknown path."""
    table = _table()
    if path in table:
        return path
    if f"{path}.name" in table:
        return f"{path}.name"
    raise unknown("configuration field", path, list(table))


def matters(model: str, path: str) -> bool:
    """Whether a field, by its full path, can matter to that kind of model."""
    others = [part for kind, parts in MODEL_FIELDS.items() if kind != model for part in parts]
    return not any(path == part or path.startswith(f"{part}.") for part in others)


def choices(path: str) -> tuple[str, ...]:
    """The allowed values of a field that is declared as one of some names."""
    return typing.get_args(_table()[resolve(path)][1])


def get(config: Config, path: str) -> Any:
    """The value at a path."""
    value: Any = config
    for part in resolve(path).split("."):
        value = getattr(value, part)
    return value


def _set(section: Any, parts: list[str], value: Any) -> Any:
    head, *rest = parts
    return dataclasses.replace(section, **{head: _set(getattr(section, head), rest, value) if rest else value})


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with values at paths changed; each is parsed and checked by the field's annotation."""
    for path, value in changes.items():
        full = resolve(path)
        field, annotation = _table()[full]
        config = _set(config, full.split("."), parse(value, annotation, path, field))
    return config


def parse(value: Any, annotation: Any, path: str, field: dataclasses.Field) -> Any:
    """A value, or its text from a command line, as the type of the field's annotation. Raises UserError."""
    if typing.get_origin(annotation) is Literal:
        if value not in typing.get_args(annotation):
            raise unknown(path, value, typing.get_args(annotation))
        return value
    parsed = _convert(value, annotation)
    if parsed is None:
        expected = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[annotation]
        raise UserError(f"{path}={value!r}: expected {expected}")
    if annotation in (int, float) and path != "seed":
        positive, upper = field.metadata["positive"], field.metadata["upper"]
        if parsed < 0 or (positive and parsed == 0) or parsed > upper:
            bound = ("greater than 0" if positive else "at least 0") + (
                f" and at most {upper}" if upper < math.inf else ""
            )
            raise UserError(f"{path}={value}: must be {bound}")
    return parsed


def _convert(value: Any, annotation: Any) -> Any:
    text = value.strip() if isinstance(value, str) else value
    if annotation is bool:
        if isinstance(text, str):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
        return text if isinstance(text, bool) else None
    if annotation is str:
        return text if isinstance(text, str) else None
    if isinstance(text, bool):
        return None
    try:
        number = annotation(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if annotation is int and not isinstance(text, str) and number != text:
        return None
    return number if math.isfinite(number) else None


# -- JSON and identity ----------------------------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`; missing fields take their defaults. Raises UserError on unknown fields, wrong types."""
    return override(Config(), flatten(values))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {path: value}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(configs: list[Config]) -> list[str]:
    """The paths at which the configurations are not all equal."""
    flats = [flatten(to_dict(config)) for config in configs]
    return [path for path, _, _ in fields() if len({json.dumps(flat[path]) for flat in flats}) > 1]


TARGET_SYMBOLS = ("data.target_unit", "data.bpe_size", "data.target_min_count", "data.lowercase")
"""The fields that can change what target symbols there are."""


def target_symbols(flat: Mapping[str, Any]) -> str:
    """What makes the target symbols of a flat configuration, of which losses are means."""
    unit = flat["data.target_unit"]
    size = "data.bpe_size" if unit == "bpe" else "data.target_min_count"
    return f"{unit}, " + ", ".join(f"{path}={flat[path]}" for path in (size, "data.lowercase"))


def digest(value: Any, length: int = 12) -> str:
    """A hexadecimal hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def run_id(config: Config, fingerprint: str) -> str:
    """The name of a run: a hash of its canonical configuration and the fingerprint of its data."""
    return digest([to_dict(config), fingerprint])


def variant_id(config: Config, fingerprint: str) -> str:
    """The name of a variant: of the configuration without its seed."""
    return run_id(dataclasses.replace(config, seed=0), fingerprint)


def traced(config: Config) -> dict[str, float]:
    """The numbers that enter a compiled program as arguments, by path, without the seed."""
    return {
        path: float(get(config, path)) for path, field, _ in fields() if field.metadata["traced"] and path != "seed"
    }


def structure(config: Config) -> str:
    """Equal for runs of one group. Of a traced number only whether it is off counts: zero, where no other is named."""
    flat = flatten(to_dict(config))
    off = {path: field.metadata["off"] for path, field, _ in fields()}
    for path, value in traced(config).items():
        flat[path] = value != off[path]
    del flat["seed"]
    return json.dumps(flat, sort_keys=True)
