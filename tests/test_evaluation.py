import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import sacrebleu
import tiny

from attn_jax import evaluation
from attn_jax.data.corpus import encode
from attn_jax.data.text import BOS, EOS, PAD
from attn_jax.evaluation import Evaluator
from attn_jax.seq2seq import Model

LIMIT = 5
RUNS = 2


@pytest.fixture(scope="module")
def setting():
    corpus = encode(tiny.dataset(test=9, metric="wer"), tiny.config())
    model = Model(tiny.config(), len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    params = jax.jit(lambda keys: jax.lax.map(model.init, keys))(jax.random.split(jax.random.key(0), RUNS))
    return corpus, model, {name: 3 * value for name, value in params.items()}


def by_definition(corpus, model, params):
    """Loss, share of right symbols and greedy outputs, example by example, from the decoder's single steps."""
    width = max(len(source) for source, _ in corpus.encoded["test"])

    @jax.jit
    def encoded(params, source):
        module = model.bind(params)
        return module.decoder.start(module.encode(source, source != PAD))

    @jax.jit
    def one_step(params, state, last, prepared):
        state, logits, _ = reference.step(model.bind(params).decoder, state, last, prepared)
        return state, logits[0]

    nll, right, tokens, outputs = 0.0, 0, 0, []
    for source, target in corpus.encoded["test"]:
        row = jnp.asarray(np.pad(source, (0, width - len(source))))[None]
        state, prepared = encoded(params, row)
        for last, symbol in zip([BOS, *target[:-1]], target, strict=True):
            state, logits = one_step(params, state, jnp.array([last]), prepared)
            logits = np.asarray(logits, np.float64)
            nll += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[symbol]
            right, tokens = right + int(logits.argmax() == symbol), tokens + 1
        (state, prepared), output = encoded(params, row), [BOS]
        while output[-1] != EOS and len(output) <= LIMIT:
            state, logits = one_step(params, state, jnp.array(output[-1:]), prepared)
            output.append(int(np.argmax([-np.inf if i in (PAD, BOS) else value for i, value in enumerate(logits)])))
        outputs.append(corpus.target.decode(output))
    return nll / tokens, 100 * right / tokens, outputs


def word_errors(outputs, examples):
    return 100 * np.mean([output not in example.references for output, example in zip(outputs, examples, strict=True)])


@pytest.mark.parametrize("batch", [2, 128])
def test_a_split_in_any_batches_gives_what_its_examples_give(setting, batch, monkeypatch):
    corpus, model, params = setting
    monkeypatch.setattr(evaluation, "BATCH", batch)
    monkeypatch.setattr(evaluation, "EXAMPLES_PER_BUCKET", batch)
    evaluator = Evaluator(model, corpus, max_output=LIMIT)
    batches = evaluator.batches("test")
    assert (len(batches) > 4, len({one.source.shape for one in batches}) > 1) == (batch == 2, batch == 2)
    assert sorted(place for one in batches for place in one.places) == list(range(9))
    found = evaluator(params, "test")
    assert len(found) == RUNS
    assert found[0].predictions != found[1].predictions
    for run, evaluated in enumerate(found):
        loss, accuracy, outputs = by_definition(corpus, model, {name: value[run] for name, value in params.items()})
        assert evaluated.predictions == outputs, "in the order of the examples"
        assert evaluated.metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert evaluated.metrics["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
        assert evaluated.metrics["token_accuracy"] == pytest.approx(accuracy, rel=1e-5)
        assert evaluated.metrics["wer"] == pytest.approx(word_errors(outputs, corpus.dataset.splits["test"]))
        assert set(evaluated.metrics) == {"loss", "perplexity", "token_accuracy", "wer", "per"}


def test_loss_alone(setting):
    corpus, model, params = setting
    evaluator = Evaluator(model, corpus, max_output=LIMIT)
    whole, loss = evaluator(params, "dev")[0], evaluator(params, "dev", decode=False)[0]
    assert loss.metrics == {name: whole.metrics[name] for name in ("loss", "perplexity", "token_accuracy")}
    assert loss.predictions == []
    with pytest.raises(ValueError, match="training split"):
        evaluator(params, "train")


def test_splits_have_batches_of_the_same_shapes(setting):
    corpus, model, params = setting
    evaluator = Evaluator(model, corpus, max_output=LIMIT)
    lengths = {split: max(map(len, next(zip(*corpus.encoded[split], strict=True)))) for split in ("dev", "test")}
    shapes = {split: {one.source.shape for one in evaluator.batches(split)} for split in lengths}
    assert shapes["dev"] == shapes["test"] == {(9, max(lengths.values()))}
    evaluator(params, "dev")
    assert [program._cache_size() for program in evaluator._programs.values()] == [1]
    evaluator(params, "test")
    assert [program._cache_size() for program in evaluator._programs.values()] == [1]


def test_attention_maps(setting):
    corpus, model, params = setting
    start = jax.jit(lambda p, source: model.bind(p).decoder.start(model.bind(p).encode(source, source != PAD)))
    step = jax.jit(lambda p, state, last, prepared: reference.step(model.bind(p).decoder, state, last, prepared))

    def single(run):
        return {name: value[run] for name, value in params.items()}

    def padded(source):
        return jnp.asarray(np.pad(source, (0, 10 - len(source))))[None]

    evaluator = Evaluator(model, corpus, max_output=LIMIT)
    maps = evaluator.attention_maps(params, "test", [4, 1])
    predictions = [run.predictions for run in evaluator(params, "test")]
    for run in range(RUNS):
        for shown, example in zip(maps[run], (4, 1), strict=True):
            assert shown["source"] == corpus.dataset.splits["test"][example].source.split()
            ended = shown["target"][-1] == "</s>"
            symbols = shown["target"][: len(shown["target"]) - ended]
            assert " ".join(symbols) == predictions[run][example]
            assert ended or len(symbols) == LIMIT
            assert np.shape(shown["weights"]) == (len(shown["target"]), len(shown["source"]))
            # Row t has the weights with which symbol t was predicted.
            state, prepared, last = *start(single(run), padded(corpus.encoded["test"][example][0])), BOS
            for row, symbol in zip(shown["weights"], shown["target"], strict=True):
                state, _, weights = step(single(run), state, jnp.array([last]), prepared)
                np.testing.assert_allclose(row, weights[0, : len(row)], atol=1e-4)
                last = list(corpus.target.vocabulary.symbols).index(symbol)


def test_length_limit(setting):
    corpus, _, _ = setting
    longest = max(len(example.target.split()) for example in corpus.dataset.splits["train"]) + 1
    assert evaluation.max_length(tiny.config(), corpus) == 2 * longest + 10
    assert evaluation.max_length(tiny.config(decode__max_length=3), corpus) == 3


def test_output_ends_before_its_end_of_sentence():
    assert evaluation.trim(np.array([5, 6, EOS, 7])) == [5, 6]
    assert evaluation.trim([5, 6, PAD, PAD]) == [5, 6]
    assert evaluation.trim([EOS]) == []


def test_references_are_lower_cased_where_the_model_is():
    data = tiny.dataset()
    mixed = tiny.with_splits(data, test=[("a", "A b")])
    for lower, expected in ((False, ("A b",)), (True, ("a b",))):
        corpus = encode(mixed, tiny.config(data__lowercase=lower))
        assert evaluation.references(corpus, "test") == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"tokenize": "13a", "normalize": "logic", "case": "mixed"}),
        ({"data.lowercase": True}, {"tokenize": "13a", "normalize": "logic", "case": "lc"}),
        ({"data.bleu_tokenizer": "char"}, {"tokenize": "char", "normalize": "logic", "case": "mixed"}),
    ],
)
def test_text_is_scored_as_the_data_set_and_the_configuration_say(changes, expected):
    config = tiny.changed(tiny.config(), changes)
    corpus = encode(tiny.dataset(metric="bleu", tokenize="13a", normalization="logic"), config)
    assert evaluation.scoring(corpus, config) == expected


def test_text_is_scored_not_its_pieces():
    """Outputs that are the references, but for one whose last word is missing, of a BPE target side."""
    texts = ["low lower lowest", "new newer newest low", "lowest newest new lower", "newer lower new low low"]
    pairs = [(text, text) for text in texts * 4]
    data = tiny.with_splits(tiny.dataset(metric="bleu"), train=pairs, dev=pairs[:1], test=pairs[:4])
    config = tiny.config(data__target_unit="bpe", data__bpe_size=20)
    corpus = encode(data, config)
    outputs = [corpus.target.encode(text) for text in (*texts[:3], texts[3].removesuffix(" low"))]
    assert max(map(len, outputs)) > 6, "words are made of several pieces"

    model = Model(config, len(corpus.source.vocabulary), len(corpus.target.vocabulary))
    evaluator = Evaluator(model, corpus, max_output=40)

    def search(params, seeds, source, target, numbers):
        found = [np.pad([*outputs[number], EOS], (0, 39 - len(outputs[number]))) for number in np.asarray(numbers)]
        return (np.zeros((1, 1)),) * 3, np.ones((1, 1)), np.array(found)[None]

    evaluator._program = lambda settings: search
    (evaluated,) = evaluator({"": np.zeros(1)}, "test")
    predictions = [*texts[:3], texts[3].removesuffix(" low")]
    assert evaluated.predictions == predictions
    assert evaluated.metrics["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(predictions, [texts], tokenize="none").score
    )


@pytest.mark.parametrize(
    ("own", "selected_by", "expected"),
    [
        ("bleu", "", {"bleu", "chrf"}),
        ("chrf", "loss", {"bleu", "chrf"}),
        ("wer", "per", {"wer", "per"}),
        ("per", "", {"wer", "per"}),
        ("exact_match", "bleu", {"exact_match", "bleu"}),
        ("loss", "", {"exact_match"}),
    ],
)
def test_output_metrics(own, selected_by, expected):
    assert set(evaluation.output_metrics(encode(tiny.dataset(metric=own), tiny.config()), selected_by)) == expected
