"""In which choices two variants differ: a difference between them can be put down to one choice alone."""

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.encoders import memory_size
from attn_jax.errors import UserError
from attn_jax.seq2seq import canonical, with_hidden_size


def factors(one: Config, other: Config) -> list[str]:
    """Paths at which two variants differ by choice, as declared; more than one: the variants are confounded.

    Left out is what follows from another choice: a field that cannot matter to one of the two (the normaliser of a
    model without attention), and `encoder.size` where both memories have one width. Sizes that `with_hidden_size` sets
    together are one factor, `hidden_size`. Raises UserError where a configuration names what is not registered.
    """
    one, other = canonical(one), canonical(other)
    paths = [
        path
        for path in configs.differences([one, other])
        if path != "seed" and _could_be(one, path, other) and _could_be(other, path, one)
    ]
    if one.model != other.model:
        return paths
    if one.model == "recurrent" and memory_size(one) == memory_size(other) and "encoder.name" in paths:
        paths = [path for path in paths if path != "encoder.size"]
    together = {"encoder.size", "decoder.size", "embedding.size", "transformer.size", "transformer.feedforward"}
    if len(together & set(paths)) > 1 and _of_one_size(one) and _of_one_size(other):
        paths = [*(path for path in paths if path not in together), "hidden_size"]
    return paths


def _could_be(config: Config, path: str, other: Config) -> bool:
    """Whether the configuration keeps the other's value at the path: it does not where the field cannot matter."""
    value = configs.get(other, path)
    return configs.get(canonical(configs.override(config, {path: value})), path) == value


def _of_one_size(config: Config) -> bool:
    size = config.transformer.size if config.model == "transformer" else config.decoder.size
    try:
        return canonical(with_hidden_size(config, size)) == config
    except UserError:
        return False
