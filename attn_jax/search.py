"""The search that a configuration names, `decode.name`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attn_jax import config as configs
from attn_jax.beam_search import Ranking, beam
from attn_jax.config import SEARCH_FIELDS, Config, Decode
from attn_jax.decoding import Decoded, Models, greedy, sample
from attn_jax.errors import UserError
from attn_jax.shapes import Array, Bool, Int, Key


def search(
    models: Models,
    source: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    max_length: int,
    settings: Decode,
    *,
    n_best: int = 1,
    keys: Key[Array, " B"] | None = None,
    in_parts: bool = False,
) -> Decoded:
    """`n_best` hypotheses a sentence, [B, n_best, ...].

    Of a beam the best first; samples as they are drawn. settings: the section `decode` of a configuration, but for
    `max_length`, which is known. keys: for samples, one a sentence. in_parts: of a beam, see there.
    """
    least = settings.min_length
    if settings.name == "beam":
        return beam(
            models,
            source,
            mask,
            max_length,
            beam_size=settings.beam_size,
            n_best=n_best,
            ranking=Ranking(settings.length_penalty, settings.alpha, settings.coverage_penalty),
            min_length=least,
            in_parts=in_parts,
        )
    if settings.name == "greedy":
        found = greedy(models, source, mask, max_length, min_length=least)
    else:
        assert keys is not None
        each = jax.vmap(lambda key: jax.random.split(key, n_best))(keys).reshape(-1)
        source, mask = (jnp.repeat(part, n_best, axis=0) for part in (source, mask))
        heat = settings.temperature
        found = sample(models, source, mask, max_length, each, temperature=heat, min_length=least)
    return Decoded(*(part.reshape(part.shape[0] // n_best, n_best, *part.shape[1:]) for part in found))


def keys_of(seed: Any, numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """A key for each sentence, by its number: a sample does not depend on how sentences make batches.

    seed: an unsigned integer of 32 bits.
    """
    # A stream of the seed of its own; initialisation, dropout and scheduled sampling have 0, 1 and 2.
    key = jax.random.fold_in(jax.random.key(seed), 3)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def with_changes(settings: Decode, changes: Mapping[str, Any]) -> Decode:
    """The settings with fields changed. A field that only one search has names that search, too.

    Raises UserError on an unknown field or value, and on fields of different searches.
    """
    owners = {field: name for name, fields in SEARCH_FIELDS.items() for field in fields}
    wanted = changes.get("name") or next((owners[field] for field in changes if field in owners), settings.name)
    for field in changes:
        if owners.get(field, wanted) != wanted:
            raise UserError(f"decode.{field} belongs to decode={owners[field]}, and the search is {wanted}")
    paths = {f"decode.{field}": value for field, value in {**changes, "name": wanted}.items()}
    changed = configs.override(Config(decode=settings), paths).decode
    if "alpha" in changes and changed.length_penalty not in ("gnmt", "power"):
        raise UserError(
            f"decode.alpha={changed.alpha} with decode.length_penalty={changed.length_penalty}: only gnmt and power "
            "have an exponent"
        )
    return changed
