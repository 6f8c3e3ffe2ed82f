"""In which choices two configurations differ."""

from typing import Any

import pytest

from attn_jax.config import Config, override
from attn_jax.factors import factors
from attn_jax.seq2seq import canonical, with_hidden_size, with_memory_size

SIZES = {"embedding.size": 32, "encoder.size": 32, "decoder.size": 64, "score": "dot"}


def config(**changes: Any) -> Config:
    return override(Config(), SIZES | {path.replace("__", "."): value for path, value in changes.items()})


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"seed": 1}, {"seed": 2}, []),
        ({}, {"score": "general"}, ["score.name"]),
        ({"cell": "gru"}, {"cell": "lstm", "optim__learning_rate": 0.5}, ["cell.name", "optim.learning_rate"]),
        ({}, {"score": "general", "normalizer": "sparsemax"}, ["score.name", "normalizer"]),
        # A model without attention has no weights to normalise or to window.
        ({"score": "none"}, {"normalizer": "sparsemax", "window": "local_m", "window__width": 3}, ["score.name"]),
        # The size is that of the other score; the forget bias that of the other cell.
        ({}, {"score": "additive", "score__size": 16}, ["score.name"]),
        ({"cell": "gru"}, {"cell__forget_bias": 1.0, "cell": "lstm"}, ["cell.name"]),
        (
            {"score": "additive", "score__size": 16},
            {"score": "normed_additive", "score__size": 8},
            ["score.name", "score.size"],
        ),
        ({"optim": "sgd"}, {"optim": "adam", "optim__beta1": 0.8}, ["optim.name"]),
        ({"encoder": "bi"}, {"encoder": "uni"}, ["encoder.name", "encoder.size"]),
    ],
)
def test_what_follows_does_not_count(one: dict[str, Any], other: dict[str, Any], expected: list[str]) -> None:
    a, b = config(**one), config(**other)
    if "encoder.size" in expected:
        # Half the memory is another memory.
        assert factors(a, with_memory_size(b, 64)) == ["encoder.name"]
        b = with_memory_size(b, 48)
    assert sorted(factors(canonical(a), canonical(b))) == sorted(expected)
    assert factors(b, a) == factors(a, b)


def test_sizes_that_go_together_are_one_choice() -> None:
    small, large = (with_hidden_size(config(encoder="bi"), size) for size in (32, 64))
    assert factors(small, large) == ["hidden_size"]
    assert factors(small, override(large, {"cell": "gru"})) == ["cell.name", "hidden_size"]
    assert factors(small, override(large, {"embedding.size": 8})) == ["embedding.size", "encoder.size", "decoder.size"]
    small, large = (with_hidden_size(config(model="transformer"), size) for size in (32, 64))
    assert factors(small, large) == ["hidden_size"]


def test_another_kind_of_model_is_one_choice() -> None:
    assert factors(
        config(cell="gru", decoder__size=128), config(model="transformer", transformer__encoder_layers=4)
    ) == ["model"]
