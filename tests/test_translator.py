"""Texts through models: batches, n-best lists, samples, ensembles, and the replacement of unknown symbols."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from attn_jax import beam_search, decoding, evaluation, reuse
from attn_jax.data.corpus import encode
from attn_jax.data.text import EOS, PAD, UNK
from attn_jax.errors import UserError
from attn_jax.search import keys_of
from attn_jax.seq2seq import Model

LIMIT = 7
DATA = tiny.dataset(test=9)
TEXTS = [example.source for example in DATA.splits["test"]]


def untrained(seed=0, data=DATA, **changes):
    """A run with random parameters, of seeds with which outputs depend on the source and differ in length."""
    config = tiny.config(decode__max_length=LIMIT, seed=seed, **changes)
    corpus = encode(data, config)
    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(jnp.float32, reference.random_like(shapes, seed=seed, scale=2.0))
    params["decoder.output.bias"] = jnp.zeros_like(params["decoder.output.bias"])
    return reuse.Run(config, model, params, corpus.source, corpus.target, LIMIT, corpus)


@pytest.fixture(scope="module")
def run():
    return untrained(score="general")


def assert_same(found, expected):
    assert (found.text, found.tokens, found.source) == (expected.text, expected.tokens, expected.source)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-4)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-3, atol=1e-5)


def test_n_best_lists_in_any_batches_are_those_of_the_search(run):
    texts = ["a b c d a b c d a", *TEXTS, "d"]
    options = {"beam_size": 4, "length_penalty": "gnmt", "alpha": 1.0, "coverage_penalty": 0.2, "n_best": 3}
    found = run.decode(texts, **options)
    for outputs, expected in zip(run.decode(texts, batch_size=2, **options), found, strict=True):
        for output, other in zip(outputs, expected, strict=True):
            assert_same(output, other)

    ranking = beam_search.Ranking("gnmt", 1.0, 0.2)
    search = reference.jit(
        lambda p, s: beam_search.beam(run.model.bind(p), s, s != PAD, LIMIT, beam_size=4, n_best=3, ranking=ranking)
    )
    for text, outputs in zip(texts[:2], found, strict=False):
        source = np.array([run.source.encode(text)])
        wanted = search(run.params, source)
        for rank, output in enumerate(outputs):
            n = int(wanted.lengths[0, rank])
            assert output.tokens == [run.target.vocabulary.symbol(i) for i in np.asarray(wanted.tokens)[0, rank, :n]]
            np.testing.assert_allclose(output.score, wanted.score[0, rank], rtol=1e-4)
            np.testing.assert_allclose(output.log_probability, wanted.log_probability[0, rank], rtol=1e-4)
            np.testing.assert_allclose(output.weights, wanted.weights[0, rank, :n], rtol=1e-3, atol=1e-5)
            ended = output.tokens[-1] == "</s>"
            assert output.text == " ".join(output.tokens[: n - ended])
    assert {outputs[0].tokens[-1] == "</s>" for outputs in found} == {True, False}


def test_there_are_no_more_outputs_than_the_search_finds(run):
    (outputs,) = run.decode(["a"], beam_size=20, n_best=20, max_length=1)
    symbols = len(run.target.vocabulary) - 2  # neither padding nor start
    assert sorted(output.tokens[0] for output in outputs) == sorted({output.tokens[0] for output in outputs})
    assert len(outputs) == symbols < 20


def test_a_sample_depends_on_the_seed_and_its_number_alone(run):
    found = run.decode(TEXTS, name="sample", n_best=3, seed=5)
    assert len({tuple(output.tokens) for outputs in found for output in outputs}) > len(TEXTS)
    again = run.decode(TEXTS, temperature=1.0, n_best=3, seed=5, batch_size=4)
    assert [[o.tokens for o in outputs] for outputs in again] == [[o.tokens for o in outputs] for outputs in found]
    other = run.decode(TEXTS, name="sample", n_best=3, seed=6)
    assert [[o.tokens for o in outputs] for outputs in other] != [[o.tokens for o in outputs] for outputs in found]
    translator = reuse.ensemble([run]).translator(name="sample", seed=5)
    moved = translator(TEXTS[:2], n_best=3, numbers=[0, 1])
    assert [[o.tokens for o in outputs] for outputs in moved] == [[o.tokens for o in outputs] for outputs in found[:2]]


def test_an_ensemble_of_runs(run):
    other = untrained(seed=5, score="general")
    options = {"beam_size": 3, "n_best": 2, "length_penalty": "average"}
    for outputs, expected in zip(
        reuse.ensemble([run, run]).decode(TEXTS, **options), run.decode(TEXTS, **options), strict=True
    ):
        for output, wanted in zip(outputs, expected, strict=True):
            assert_same(output, wanted)
    mixed = reuse.ensemble([run, other]).decode(TEXTS)
    source = np.array([run.source.encode(TEXTS[0])])
    models, params = (run.model, other.model), (run.params, other.params)
    wanted = reference.jit(
        lambda ps: decoding.greedy([m.bind(p) for m, p in zip(models, ps, strict=True)], source, source != PAD, LIMIT)
    )(params)
    assert mixed[0].tokens == [run.target.vocabulary.symbol(i) for i in np.asarray(wanted.tokens)[0] if i != PAD]
    assert mixed[0].score == pytest.approx(float(wanted.score[0]), rel=1e-4)
    assert [o.tokens for o in mixed] != [o.tokens for o in run.decode(TEXTS)]

    letters = tiny.with_splits(DATA, train=[("a b c d e", "a b c d")])
    with pytest.raises(UserError, match="run 2 has another source vocabulary than run 1"):
        reuse.ensemble([run, untrained(data=letters, score="general")])
    with pytest.raises(UserError, match="at least one run"):
        reuse.ensemble([])


def test_an_unknown_symbol_becomes_the_source_symbol_with_the_highest_weight():
    run = untrained(seed=10, score="general")
    bias = run.params["decoder.output.bias"]
    likely = dataclasses.replace(run, params={**run.params, "decoder.output.bias": bias.at[UNK].add(2)})
    texts = ["a zz b", "yy", "c d xx a", *TEXTS]
    kept, replaced = (likely.decode(texts, beam_size=3, unk_replace=flag) for flag in (False, True))
    assert any("<unk>" in output.tokens[1:] for output in kept)
    copied = set()
    for before, after in zip(kept, replaced, strict=True):
        by_hand = [
            before.source[max(range(len(row)), key=lambda j, row=row: row[j])] if token == "<unk>" else token
            for token, row in zip(before.tokens, before.weights, strict=True)
        ]
        assert after.tokens == by_hand
        assert after.text == " ".join(token for token in by_hand if token != "</s>")
        assert "<unk>" not in after.text
        copied |= set(after.tokens)
    assert copied & {"zz", "yy", "xx"}, "symbols that no vocabulary has are copied as they are written"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 2, "name": "greedy"}, "n_best=2: a greedy search has one output; use decode=beam or decode=sample"),
        ({"n_best": 0}, "n_best=0: must be at least 1"),
        ({"n_best": 4, "beam_size": 3}, "n_best=4 is above decode.beam_size=3"),
        ({"seed": 3}, "seed=3: decode=greedy draws nothing"),
        ({"beam_size": 3, "temperature": 0.5}, "decode.temperature belongs to decode=sample, and the search is beam"),
        ({"name": "sample", "alpha": 1}, "decode.alpha belongs to decode=beam, and the search is sample"),
        ({"alpha": 1.0}, "decode.alpha=1.0 with decode.length_penalty=none"),
        ({"name": "beem"}, "unknown decode.name 'beem': did you mean 'beam'?"),
        ({"beam_sise": 3}, "unknown configuration field 'decode.beam_sise'"),
        ({"beam_size": 0}, "decode.beam_size=0: must be greater than 0"),
        ({"min_length": 9}, "decode.min_length=9 is above decode.max_length=7"),
        ({"min_length": 9, "max_length": 8}, "decode.min_length=9 is above decode.max_length=8"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, options, message):
    with pytest.raises(UserError) as error:
        run.decode(["a"], **options)
    assert message in str(error.value)


def test_without_attention_there_is_nothing_to_replace_by_or_to_cover_with():
    run = untrained(score="none")
    with pytest.raises(UserError, match="unk_replace with score=none"):
        run.decode(["a"], unk_replace=True)
    with pytest.raises(UserError, match=r"score=none with decode\.coverage_penalty=0\.5"):
        run.decode(["a"], coverage_penalty=0.5)
    assert run.decode(["a"], beam_size=2)[0].weights is None


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_a_split_is_searched_as_configured(search):
    changes = {"score": "general", "decode": search}
    if search == "beam":
        changes |= {"decode__beam_size": 3, "decode__length_penalty": "average"}
    runs = [untrained(seed=seed, **changes) for seed in (0, 5)]
    evaluator = evaluation.Evaluator(
        runs[0].model, runs[0].corpus, max_output=LIMIT, seeds=[run.config.seed for run in runs]
    )
    params = {name: jnp.stack([run.params[name] for run in runs]) for name in runs[0].params}
    found = evaluator(params, "test")
    chosen = [4, 1]
    maps = evaluator.attention_maps(params, "test", chosen)
    for run, evaluated, shown in zip(runs, found, maps, strict=True):
        outputs = run.decode(TEXTS)
        assert evaluated.predictions == [output.text for output in outputs]
        assert evaluated.predictions != [output.text for output in run.decode(TEXTS, name="greedy")]
        for example, one in zip(chosen, shown, strict=True):
            assert one["target"] == outputs[example].tokens
            np.testing.assert_allclose(one["weights"], outputs[example].weights, atol=1e-3)
    assert runs[1].evaluate("test") == pytest.approx(found[1].metrics, rel=1e-5)
    greedy = [one.predictions for one in evaluator(params, "test", greedily=True)]
    assert greedy == [[output.text for output in run.decode(TEXTS, name="greedy")] for run in runs]


def test_keys_are_those_of_run_and_example():
    one, other = keys_of(np.uint32(3), jnp.arange(4)), keys_of(np.uint32(4), jnp.arange(4))
    data = np.concatenate([jax.random.key_data(one), jax.random.key_data(other)])
    assert len({row.tobytes() for row in data}) == 8
    np.testing.assert_array_equal(jax.random.key_data(keys_of(np.uint32(3), jnp.array([2]))), data[2:3])


def test_several_outputs_of_a_greedy_configuration_are_those_of_a_beam():
    run = untrained(seed=10, score="general")
    assert run.config.decode.name == "greedy"
    many, beam = run.decode(TEXTS, n_best=3), run.decode(TEXTS, n_best=3, name="beam")
    assert [[o.tokens for o in outputs] for outputs in many] == [[o.tokens for o in outputs] for outputs in beam]
    assert all(len({tuple(o.tokens) for o in outputs}) == 3 for outputs in many)


def test_where_nothing_is_attended_to_an_unknown_symbol_stays():
    run = untrained(score="general")
    translator = reuse.ensemble([run]).translator()
    weights = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    found = decoding.Decoded(np.array([UNK, UNK, EOS]), weights, np.array(0.0), np.array(0.0), np.array(3))
    assert translator._output("a zz", found, unk_replace=True).tokens == ["zz", "<unk>", "</s>"]
