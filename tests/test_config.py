import dataclasses
import hashlib
import json
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_jax import config, metrics
from attn_jax.config import Config
from attn_jax.errors import UserError

FIELDS = {path: (field, annotation) for path, field, annotation in config.fields()}


def other_value(path: str) -> typing.Any:
    """A valid value of a field that is not its default."""
    field, annotation = FIELDS[path]
    if typing.get_origin(annotation) is typing.Literal:
        return next(name for name in typing.get_args(annotation) if name != field.default)
    if annotation is bool:
        return not field.default
    if annotation is str:
        return f"{field.default}-other"
    return annotation(0.25 if annotation is float else field.default + 1)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_has_help_and_a_usable_default(path: str) -> None:
    field, annotation = FIELDS[path]
    assert field.metadata["doc"].strip()
    assert config.parse(field.default, annotation, path, field) == field.default
    if field.metadata["traced"]:
        assert annotation in (int, float)  # an argument of a compiled program


def test_bleu_tokenizers_are_those_of_the_metrics() -> None:
    assert typing.get_args(FIELDS["data.bleu_tokenizer"][1]) == ("own", *metrics.TOKENIZERS)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_part_of_the_identity(path: str) -> None:
    changed = config.override(Config(), {path: other_value(path)})
    assert config.get(changed, path) == other_value(path) != config.get(Config(), path)
    assert config.differences([Config(), changed]) == [path]
    assert config.run_id(changed, "data") != config.run_id(Config(), "data")
    same_variant = config.variant_id(changed, "data") == config.variant_id(Config(), "data")
    assert same_variant == (path == "seed")


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.batch_size", "32", 32),
        ("train.batch_size", 32.0, 32),
        ("optim.learning_rate", "1e-2", 0.01),
        ("optim.learning_rate", 1, 1.0),
        ("combine.bias", "true", True),
        ("combine.bias", "No", False),
        ("combine.bias", "0", False),
        ("score", "dot", "dot"),
        ("score.name", " dot ", "dot"),
        ("bridge", "last", "last"),
        ("train.metric", "a,b=c", "a,b=c"),
        ("precision", "bfloat16", "bfloat16"),
        ("seed", "7", 7),
    ],
)
def test_override_reads_text_by_annotation(path: str, text: typing.Any, value: typing.Any) -> None:
    result = config.get(config.override(Config(), {path: text}), path)
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("train.batch_size", "32.5", "train.batch_size='32.5': expected an integer"),
        ("train.batch_size", 32.5, "train.batch_size=32.5: expected an integer"),
        ("train.batch_size", True, "train.batch_size=True: expected an integer"),
        ("train.batch_size", "", "train.batch_size='': expected an integer"),
        ("train.batch_size", "0", "train.batch_size=0: must be greater than 0"),
        ("train.patience", "-1", "train.patience=-1: must be at least 0"),
        ("optim.learning_rate", "nan", "optim.learning_rate='nan': expected a number"),
        ("optim.learning_rate", "inf", "optim.learning_rate='inf': expected a number"),
        ("optim.learning_rate", "0", "optim.learning_rate=0: must be greater than 0"),
        ("dropout.readout", "1", "dropout.readout=1: must be at least 0 and at most 0.99"),
        ("combine.bias", "maybe", "combine.bias='maybe': expected true or false"),
        ("score", 3, "score=3: expected text"),
        ("optim.name", "adm", "unknown optim.name 'adm': did you mean 'adam'?"),
        ("optim.learning_rat", "1", "did you mean 'optim.learning_rate'?"),
        ("optim.learning_rate.x", "1", "unknown configuration field 'optim.learning_rate.x'"),
    ],
)
def test_override_refuses_in_one_line(path: str, text: typing.Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        config.override(Config(), {path: text})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_override_leaves_the_original_alone() -> None:
    base = Config()
    changed = config.override(base, {"score": "dot", "train.steps": "5", "score.size": 3})
    assert (changed.score.name, changed.score.size, changed.train.steps) == ("dot", 3, 5)
    assert base == Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        base.seed = 1  # type: ignore[misc]


def _values(path: str) -> st.SearchStrategy:
    field, annotation = FIELDS[path]
    if typing.get_origin(annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(annotation))
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return st.text().map(str.strip)
    upper = min(field.metadata["upper"], 1e9)
    if annotation is int:
        return st.integers(int(field.metadata["positive"]), int(upper))
    return st.floats(1e-9 if field.metadata["positive"] else 0.0, upper)


ANY_CONFIG = st.fixed_dictionaries({}, optional={path: _values(path) for path in FIELDS}).map(
    lambda changes: config.override(Config(), changes)
)


@settings(deadline=None)  # machines are noisy
@given(ANY_CONFIG)
def test_json_round_trip(value: Config) -> None:
    assert config.from_dict(json.loads(json.dumps(config.to_dict(value)))) == value


@settings(deadline=None)
@given(st.data())
def test_values_survive_as_text(data: st.DataObject) -> None:
    """What a result file or a shell shows is what --set accepts."""
    path = data.draw(st.sampled_from(sorted(FIELDS)))
    value = data.draw(_values(path))
    assert config.get(config.override(Config(), {path: str(value)}), path) == value


def test_a_missing_field_takes_its_default_and_an_unknown_one_is_refused() -> None:
    assert config.from_dict({"score": {"name": "dot"}}) == config.override(Config(), {"score": "dot"})
    with pytest.raises(UserError, match=r"unknown configuration field 'score\.nam'"):
        config.from_dict({"score": {"nam": "dot"}})


def test_digest_is_the_hash_of_canonical_json() -> None:
    expected = hashlib.sha256('{"a":[1.5,"é",null],"b":true}'.encode()).hexdigest()
    assert config.digest({"b": True, "a": [1.5, "é", None]}) == expected[:12]
    assert config.digest({"a": [1.5, "é", None], "b": True}, length=64) == expected


def test_run_id_is_that_of_configuration_and_data() -> None:
    nested = json.dumps(config.to_dict(Config()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(f'[{nested},"fingerprint"]'.encode()).hexdigest()[:12]
    assert config.run_id(Config(), "fingerprint") == expected
    assert config.run_id(Config(), "edited") != expected
    assert config.variant_id(config.override(Config(), {"seed": 3}), "fingerprint") == expected


def test_differences_are_in_order_of_declaration() -> None:
    changes = [{}, {"seed": 1}, {"optim.learning_rate": 1.0}, {"cell": "gru", "seed": 2}]
    configs = [config.override(Config(), change) for change in changes]
    assert config.differences(configs) == ["cell.name", "optim.learning_rate", "seed"]
    assert config.differences([Config(), Config()]) == []


def test_traced_holds_the_numbers_that_may_vary_inside_a_group() -> None:
    numbers = config.traced(config.override(Config(), {"dropout.word": 0.125, "seed": 9}))
    assert numbers["dropout.word"] == 0.125
    assert {"optim.learning_rate", "loss.label_smoothing", "optim.clip_norm"} <= numbers.keys()
    assert not {"seed", "train.batch_size", "decoder.size", "score.name"} & numbers.keys()
    assert all(math.isfinite(number) and isinstance(number, float) for number in numbers.values())
