"""Variants of a configuration."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attn_jax import config as configs
from attn_jax.config import Config
from attn_jax.data.datasets import Dataset
from attn_jax.encoders import memory_size
from attn_jax.errors import UserError
from attn_jax.seq2seq import canonical, check, with_hidden_size, with_memory_size


def base(dataset: Dataset, changes: Mapping[str, Any]) -> Config:
    """What a data set recommends, with changes by path.

    `hidden_size`, which is no field, sets both sides, see `with_hidden_size`. Without it and without `encoder.size`
    another encoder has the recommended width of memory, so that directions are compared at one width. Raises UserError
    on what the data set does not allow for.
    """
    given = {configs.resolve(path): value for path, value in changes.items() if path != "hidden_size"}
    recommended = configs.override(Config(), {"data.dataset": dataset.info.name, **dataset.info.recommended})
    config = configs.override(recommended, given)
    if "hidden_size" in changes:
        # Sizes that were set one by one win over the common one.
        config = configs.override(with_hidden_size(config, int(changes["hidden_size"])), given)
    elif config.model == "recurrent" and "encoder.size" not in given:
        config = with_memory_size(config, memory_size(recommended))
    return _fitted(config, dataset, given)


def _fitted(config: Config, dataset: Dataset, given: Mapping[str, Any]) -> Config:
    """The configuration with what cannot matter on the data set at one value; refused where it was asked for."""
    info, changes = dataset.info, {}
    if "dev" not in dataset.splits:
        for path in ("train.eval_every", "train.metric", "train.patience"):
            changes[path] = unset = configs.get(Config(), path)
            if path in given and configs.get(config, path) != unset:
                raise UserError(f"{path}={given[path]}: {info.name} has no dev split to evaluate on")
        changes["train.select"] = "last"
    if config.data.bleu_tokenizer != "own":
        if not {"bleu", "chrf"} & {info.metric, config.train.metric}:
            raise UserError(
                f"data.bleu_tokenizer={config.data.bleu_tokenizer}: {info.name} is scored by {info.metric}, not by BLEU"
            )
        if config.data.bleu_tokenizer == info.tokenize:
            changes["data.bleu_tokenizer"] = "own"
    return configs.override(config, changes)


def variants(
    dataset: Dataset, changes: Mapping[str, Any], choices: Iterable[Mapping[str, Any]] = ({},)
) -> list[Config]:
    """`base` of the changes with every choice of a sweep, see `combinators`. Raises UserError."""
    return [base(dataset, {**changes, **choice}) for choice in choices]


def merged(variants: Iterable[Config]) -> tuple[list[Config], int]:
    """Variants in canonical form without repetitions, and how many were dropped. Raises UserError on an illegal one."""
    found: dict[Config, None] = {}
    count = 0
    for variant in variants:
        check(variant)
        found[canonical(variant)] = None
        count += 1
    if not found:
        raise UserError("the study has no variants")
    return list(found), count - len(found)


def groups(runs: Sequence[Config]) -> list[list[Config]]:
    """Runs by structure, in order of first appearance."""
    found: dict[str, list[Config]] = {}
    for run in runs:
        found.setdefault(configs.structure(run), []).append(run)
    return list(found.values())
