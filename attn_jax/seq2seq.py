"""The whole model: `build(config, ...)`, and `check(config)`, which refuses every illegal combination by name."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attn_jax import config as configs
from attn_jax.bridges import BRIDGES
from attn_jax.cells import CELLS
from attn_jax.combines import COMBINES
from attn_jax.config import SEARCH_FIELDS, Config, matters
from attn_jax.decoder import FEEDINGS, Decoder
from attn_jax.encoder_decoder import Seq2Seq
from attn_jax.encoders import DIRECTIONS, Encoder, memory_size
from attn_jax.errors import UserError, unknown
from attn_jax.layers import EMBEDDINGS, Initializer, Noise, input_mask, masked
from attn_jax.normalizers import NORMALIZERS
from attn_jax.products import PRECISIONS
from attn_jax.readouts import READOUTS
from attn_jax.scores import NONE, SCORES, Memory
from attn_jax.shapes import Array, Bool, Int, Key, Params
from attn_jax.transformer import Transformer
from attn_jax.windows import WINDOWS


class Recurrent(Seq2Seq):
    """A recurrent encoder-decoder."""

    def __init__(self, config: Config, source_size: int, target_size: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        init = Initializer(config.init, rngs, dtype)
        product_dtype = PRECISIONS[config.precision]
        kind = EMBEDDINGS[config.embedding.name]
        self.source_embedding = kind(source_size, config.embedding.size, init=init)
        self.encoder = Encoder(self.source_embedding.size, config, init=init, dtype=product_dtype)
        self.dtype = dtype
        self.decoder = Decoder(target_size, config, init=init, dtype=product_dtype)

    def encode(self, source: Int[Array, "B S"], mask: Bool[Array, "B S"], noise: Noise | None = None) -> Memory:
        """Source ids to memory."""
        keep = input_mask(self.source_embedding, noise, "source", source.T.shape, self.dtype)
        return self.encoder(masked(self.source_embedding(source.T), keep), mask, noise)


class Model:
    """A configuration's computation, apart from its parameters, which are a flat dict {path: array}."""

    def __init__(self, config: Config, source_size: int, target_size: int, dtype: Any = jnp.float32):
        self.config, self.source_size, self.target_size, self.dtype = config, source_size, target_size, dtype
        abstract = nnx.eval_shape(lambda: self._make(jax.random.key(0)))
        self._graph, state = nnx.split(abstract, nnx.Param)
        self._paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def _make(self, key: Key[Array, ""]) -> Seq2Seq:
        kind = Transformer if self.config.model == "transformer" else Recurrent
        return kind(self.config, self.source_size, self.target_size, rngs=nnx.Rngs(params=key), dtype=self.dtype)

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        """First parameters. Jit this: eager initialisation takes seconds."""
        state = nnx.to_flat_state(nnx.state(self._make(key), nnx.Param))
        return {".".join(map(str, path)): variable[...] for path, variable in state}

    def bind(self, params: Params) -> Seq2Seq:
        """The module with these parameters."""
        flat = [(self._paths[name], nnx.Param(value)) for name, value in params.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(flat))


def build(config: Config, source_size: int, target_size: int, dtype: Any = jnp.float32) -> Model:
    """The model of a configuration for vocabularies of the given sizes. Raises UserError on an illegal combination."""
    check(config)
    return Model(canonical(config), source_size, target_size, dtype)


def check(config: Config) -> None:
    """Raises UserError, naming fields and values, if the configuration describes no model."""
    CELLS.check(config.cell.name)
    EMBEDDINGS.check(config.embedding.name)
    BRIDGES.check(config.bridge)
    COMBINES.check(config.combine.name)
    NORMALIZERS.check(config.normalizer)
    WINDOWS.check(config.window.name)
    if config.score.name not in SCORES and config.score.name != NONE:
        raise unknown("score", config.score.name, [*SCORES, NONE])
    if config.encoder.name not in DIRECTIONS:
        raise unknown("encoder", config.encoder.name, DIRECTIONS)
    if config.input_feeding not in FEEDINGS:
        raise unknown("input_feeding", config.input_feeding, FEEDINGS)
    READOUTS.check(config.readout)
    if config.model == "recurrent":
        _check_attention(config)
    elif config.train.teacher_forcing != 1:
        raise UserError(
            f"model={config.model} with train.teacher_forcing={config.train.teacher_forcing}: only recurrent models "
            "train on their own output"
        )
    if config.optim.schedule == "warmup" and not config.optim.warmup_share:
        raise UserError(
            "optim.schedule=warmup with optim.warmup_share=0: the rate would only fall; set the share of all steps in "
            "which it grows, e.g. optim.warmup_share=0.05"
        )
    check_search(config)
    Model(config, 8, 8)  # Sizes are checked where they meet; making the module abstractly costs no computation.


def _check_attention(config: Config) -> None:
    if config.score.name == NONE:
        if config.placement != "after":
            raise UserError(f"score=none with placement={config.placement}: there is no attention to place")
        if config.bridge == "zero" and config.input_feeding != "context":
            raise UserError("score=none with bridge=zero: nothing of the source would reach the decoder")
    elif config.placement != "after" and config.input_feeding == "context":
        raise UserError(
            f"placement={config.placement} with input_feeding=context: the context enters the cells already"
        )


def check_search(config: Config) -> None:
    """Raises UserError, naming fields and values, if the model cannot be searched as section `decode` says."""
    decode = config.decode
    attends = config.model != "recurrent" or config.score.name != NONE
    if not attends and decode.name == "beam" and decode.coverage_penalty:
        raise UserError(
            f"score=none with decode.coverage_penalty={decode.coverage_penalty}: there are no weights to cover "
            "the source with"
        )
    if decode.max_length and decode.min_length > decode.max_length:
        raise UserError(f"decode.min_length={decode.min_length} is above decode.max_length={decode.max_length}")


def idle(config: Config, path: str) -> bool:
    """Whether a field differs from its default, and could as well not, beside the other fields."""
    default = configs.override(config, {path: configs.get(Config(), path)})
    if config == default or canonical(config) != canonical(default):
        return False
    # Of what is left some say what the default says, in other words.
    if path == "score.size":
        return config.score.size != config.decoder.size
    if path in ("decode.name", "decode.length_penalty"):
        return config.decode.name != "beam"  # of one hypothesis, or with an exponent of 0
    return True


def canonical(config: Config) -> Config:
    """The configuration with every field that cannot matter at its default, so that equal runs have one id."""
    default = Config()
    other = {path: configs.get(default, path) for path, _, _ in configs.fields() if not matters(config.model, path)}
    config = configs.override(config, other)
    changes: dict[str, Any] = {}
    score = config.score.name
    if score == NONE:
        changes |= {"score.size": 0, "score.memory_projection": False, "combine.name": default.combine.name}
        changes |= {"combine.bias": default.combine.bias, "normalizer": default.normalizer}
        changes |= {"window.name": default.window.name, "window.width": default.window.width, "coverage": False}
        changes |= {"score.heads": default.score.heads, "score.max_source_length": default.score.max_source_length}
    else:
        kind = SCORES[score]
        if not kind.uses_size or config.score.size == config.decoder.size:
            changes["score.size"] = 0
        if not kind.equal_sizes:
            changes["score.memory_projection"] = False
        if not kind.uses_heads:
            changes["score.heads"] = default.score.heads
        if not kind.uses_positions:
            changes["score.max_source_length"] = default.score.max_source_length
    if score == NONE or not config.coverage:
        changes["loss.coverage"] = default.loss.coverage
    if config.embedding.name == "onehot":
        changes["embedding.size"] = default.embedding.size
    for side, layers in (("encoder", config.encoder.layers), ("decoder", config.decoder.layers)):
        if layers == 1:
            changes[f"{side}.residual"] = False
    if config.train.teacher_forcing == 1:
        changes["train.forcing_unit"] = default.train.forcing_unit
    if not READOUTS[config.readout].uses_attentional and config.input_feeding != "attentional":
        changes |= {"combine.name": default.combine.name, "combine.bias": default.combine.bias}
    if not WINDOWS[config.window.name].uses_width:
        changes["window.width"] = default.window.width
    if config.combine.name == "add":
        changes["combine.bias"] = False
    if config.cell.name not in ("lstm", "lnlstm"):
        changes["cell.forget_bias"] = default.cell.forget_bias
    if config.init.name not in ("uniform", "normal"):
        changes["init.scale"] = default.init.scale
    if config.model == "recurrent" and config.encoder.layers == 1 and config.decoder.layers == 1:
        changes["dropout.layer"] = 0.0
    for side in ("source", "target"):
        if getattr(config.data, f"{side}_unit") == "bpe":
            changes[f"data.{side}_min_count"] = getattr(default.data, f"{side}_min_count")
    if "bpe" not in (config.data.source_unit, config.data.target_unit):
        changes["data.bpe_size"] = default.data.bpe_size
    optim = config.optim
    used = {
        "adam": ("beta1", "beta2", "epsilon"),
        "rmsprop": ("rho", "epsilon"),
        "adadelta": ("rho", "epsilon"),
        "sgd": (),
    }
    for name in ("beta1", "beta2", "rho", "epsilon"):
        if name not in used.get(optim.name, ()):
            changes[f"optim.{name}"] = getattr(default.optim, name)
    if optim.schedule != "decay":
        changes["optim.decay_factor"] = default.optim.decay_factor
    if optim.schedule not in ("decay", "halving"):
        changes["optim.decay_after"] = default.optim.decay_after
    if optim.schedule not in ("warmup", "cosine"):
        changes["optim.warmup_share"] = default.optim.warmup_share
    changes |= _canonical_search(config.decode)
    if config.train.steps:
        changes["train.epochs"] = default.train.epochs
    return configs.override(config, changes)


def _canonical_search(decode: configs.Decode) -> dict[str, Any]:
    changes: dict[str, Any] = {"decode.min_length": 0} if decode.min_length == 1 else {}
    penalty, name = decode.length_penalty, decode.name
    if penalty in ("gnmt", "power") and not decode.alpha:
        penalty = "none"
    if penalty == "power" and decode.alpha == 1:
        penalty = "average"
    if name == "beam" and decode.beam_size == 1 and penalty == "none" and not decode.coverage_penalty:
        name = "greedy"  # the same, see `beam`
    default = configs.Decode()
    if penalty not in ("gnmt", "power"):
        changes["decode.alpha"] = default.alpha
    changes |= {"decode.name": name, "decode.length_penalty": penalty}
    for other, names in SEARCH_FIELDS.items():
        if other != name:
            changes |= {f"decode.{field}": getattr(default, field) for field in names}
    return changes


def with_hidden_size(config: Config, size: int) -> Config:
    """Embeddings, decoder and memory of one width; each direction of `encoder=bi` gets half of it.

    A transformer's feed-forward sublayers get four times the width, as in the publication.
    """
    if config.model == "transformer":
        sizes = dataclasses.replace(config.transformer, size=size, feedforward=4 * size)
        return dataclasses.replace(config, transformer=sizes)
    if size % _directions(config):
        raise UserError(f"hidden_size={size}: must be even, each direction of encoder=bi gets half")
    return dataclasses.replace(
        with_memory_size(config, size),
        decoder=dataclasses.replace(config.decoder, size=size),
        embedding=dataclasses.replace(config.embedding, size=size),
    )


def with_memory_size(config: Config, size: int) -> Config:
    """A memory of that width; each direction of `encoder=bi` gets half of it. Raises UserError on an odd one."""
    each, rest = divmod(size, _directions(config))
    if rest:
        raise UserError(f"encoder=bi cannot give a memory of width {size}, half of it from each side: set encoder.size")
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, size=each))


def _directions(config: Config) -> int:
    return memory_size(config) // config.encoder.size
