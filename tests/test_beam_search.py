"""Beam search against exhaustive search and against a plain loop over the definition of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_search
import pytest
import reference
from plain_search import Ranked

from attn_jax.beam_search import PENALTIES, Ranking, beam, largest, stages
from attn_jax.data.text import EOS, PAD
from attn_jax.decoding import greedy
from attn_jax.seq2seq import build

SOURCES = [[4, 5, 6], [], [7, 8, 4, 5, 5], [6]]
CHANGES = {"score": "additive", "input_feeding": "attentional", "cell": "lstm", "encoder": "bi"}


def searches(model, source, limit, **options):
    """The compiled search; it takes the parameters of one member or of several."""
    return reference.jit(lambda *params: beam([model.bind(p) for p in params], source, source != PAD, limit, **options))


def some_params(params, seeds):
    """Parameters with which outputs end early, late, and not at all."""
    for seed in seeds:
        found = reference.random_like(params, seed=seed, scale=1.0)
        found["decoder.output.bias"][EOS] += seed % 4 - 1
        yield found


def assert_found(found, row, expected, source):
    """The hypotheses of a row are the expected ones: symbols, scores, log-probabilities, lengths and weights."""
    for place, hypothesis in enumerate(expected):
        n = len(hypothesis.symbols)
        symbols = found.tokens[row, place].tolist()
        assert symbols == [*hypothesis.symbols, *[PAD] * (len(symbols) - n)]
        assert found.lengths[row, place] == n
        np.testing.assert_allclose(found.score[row, place], hypothesis.score, rtol=1e-9)
        np.testing.assert_allclose(found.log_probability[row, place], hypothesis.log_probability, rtol=1e-9)
        weights = found.weights[row, place]
        if weights.shape[-1]:
            np.testing.assert_allclose(weights[:n, : len(source)], hypothesis.weights, rtol=1e-9)
            assert not np.any(weights[:n, len(source) :]), "weights on padding"
            assert not np.any(weights[n:]), "weights after the end"


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize(
    ("ranked", "min_length"),
    [
        (Ranked(), 0),
        (Ranked("gnmt", 1.3, 0.4), 0),
        (Ranked("power", 2.0), 2),
        (Ranked("average", beta=0.7), 3),
    ],
    ids=lambda value: value.penalty if isinstance(value, Ranked) else str(value),
)
def test_a_wide_beam_is_exhaustive_search(x64, ranked, min_length, in_parts):
    model, config, params = reference.tiny_model(**CHANGES)
    rows, limit, n = [[4, 5, 6, 7], [8]], 3, 12
    ranking = Ranking(ranked.penalty, ranked.alpha, ranked.beta)
    source = reference.padded(rows)
    options = {"ranking": ranking, "min_length": min_length, "in_parts": in_parts}
    decode = searches(model, source, limit, beam_size=160, n_best=n, **options)
    ended = set()
    for params_ in some_params(params, range(3)):
        found = decode(params_)
        for row, symbols in enumerate(rows):
            predict = plain_search.predictor(config, [params_], symbols)
            every = plain_search.exhaustive(predict, reference.TARGET_SIZE, limit, ranked, min_length)
            assert_found(found, row, every[:n], symbols)
            ended |= {hypothesis.symbols[-1] == EOS for hypothesis in every[:n]}
    assert ended == {True, False}, "hypotheses that end and that do not compete"


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize(
    ("changes", "members", "ranked", "k"),
    [
        (CHANGES, 1, Ranked("gnmt", 1.0, 0.3), 3),
        (CHANGES, 2, Ranked("average"), 3),
        ({"score": "general", "cell": "gru", "decoder.layers": 2, "input_feeding": "context"}, 1, Ranked(), 4),
        ({"score": "none", "cell": "rnn", "input_feeding": "context"}, 1, Ranked("power", 0.7), 2),
    ],
    ids=["penalties", "ensemble", "layers", "none"],
)
def test_a_narrow_beam_is_the_plain_loop(x64, changes, members, ranked, k, in_parts):
    """State, fed vector and weights go with their hypothesis when the beam is reordered, and so do scores."""
    model, config, params = reference.tiny_model(**changes)
    source, limit = reference.padded(SOURCES), 6
    ranking = Ranking(ranked.penalty, ranked.alpha, ranked.beta)
    decode = searches(model, source, limit, beam_size=k, n_best=k, ranking=ranking, in_parts=in_parts)
    lengths = set()
    drawn = list(some_params(params, range(4 * members)))
    for group in zip(*[iter(drawn)] * members, strict=True):
        found = decode(*group)
        for row, symbols in enumerate(SOURCES):
            if not symbols:
                assert not found.tokens[row].any()
                assert not found.lengths[row].any()
                assert (found.score[row] == -np.inf).all()
                continue
            predict = plain_search.predictor(config, group, symbols)
            expected = plain_search.beam(predict, reference.TARGET_SIZE, limit, k, ranked)
            assert len({hypothesis.symbols for hypothesis in expected}) == k
            assert_found(found, row, expected, symbols)
            lengths |= {len(hypothesis.symbols) for hypothesis in expected}
    assert len(lengths) > 2, "hypotheses of several lengths"


def test_a_beam_of_one_is_greedy_search(x64):
    model, _, params = reference.tiny_model(score="concat", input_feeding="attentional", cell="gru", encoder="bi")
    source, limit = reference.padded(SOURCES, 7), 6

    @reference.jit
    def both(params):
        module, found = model.bind(params), []
        for least in (0, 3):
            found.append(beam(module, source, source != PAD, limit, beam_size=1, min_length=least))
            found.append(greedy(module, source, source != PAD, limit, min_length=least))
        return found

    for params_ in some_params(params, range(4)):
        found, expected, later, expected_later = both(params_)
        for part, wanted in zip((*found, *later), (*expected, *expected_later), strict=True):
            np.testing.assert_allclose(part[:, 0], wanted, rtol=1e-9)
        assert np.asarray(later.lengths)[[0, 2, 3]].min() >= 3


def test_hypotheses_depend_neither_on_the_batch_nor_on_its_padding(x64):
    model, _, params = reference.tiny_model(score="concat", input_feeding="attentional", cell="gru", encoder="bi")
    options = {"beam_size": 4, "n_best": 2, "ranking": Ranking("gnmt", 1.0, 0.2)}
    decode = searches(model, reference.padded(SOURCES, 7), 6, **options)
    alone = {row: searches(model, reference.padded([SOURCES[row]]), 6, **options) for row in (0, 2)}
    for params_ in some_params(params, range(4)):
        together = decode(params_)
        for row, one in alone.items():
            found = one(params_)
            np.testing.assert_array_equal(found.tokens[0], together.tokens[row])
            np.testing.assert_allclose(found.score[0], together.score[row], rtol=1e-9)
            np.testing.assert_allclose(found.weights[0], together.weights[row, :, :, : len(SOURCES[row])], rtol=1e-9)


class Wrapped:
    """A model that notes the rows of every step, and whose weights are two heads if asked: these and these reversed."""

    def __init__(self, module, steps=None, heads=False):
        self.module, self.steps, self.heads, self.decoder = module, steps, heads, self
        self.encode, self.start, self.output = module.encode, module.decoder.start, module.decoder.output

    def step(self, state, tokens, source):
        if self.steps is not None:
            jax.debug.callback(lambda: self.steps.append(len(tokens)))
        state, features, weights = self.module.decoder.step(state, tokens, source)
        if self.heads:
            weights = jnp.stack([weights, weights[:, ::-1]], axis=1)
        return state, features, weights


@pytest.mark.parametrize("name", PENALTIES)
def test_an_early_stop_loses_nothing(x64, name):
    model, _, params = reference.tiny_model(score="dot", cell="rnn")
    source, limit = reference.padded([[4, 5, 6], [7, 8, 4, 5, 5], [6], [8, 8]]), 14
    ranking, steps = Ranking(name, 1.5, 0.5 if name == "none" else 0.0), []

    def search(params, **options):
        module = Wrapped(model.bind(params), steps)
        return beam(module, source, source != PAD, limit, beam_size=3, ranking=ranking, **options)

    early = reference.jit(lambda p: search(p, n_best=1))
    late = reference.jit(lambda p: search(p, n_best=3, early_stop=False))
    saved, waited = 0, 0
    for seed in range(12):
        drawn = reference.random_like(params, seed=seed, scale=1.2)
        drawn["decoder.output.bias"][EOS] += 3 * (seed % 4)
        steps.clear()
        found = jax.block_until_ready(early(drawn))
        jax.effects_barrier()
        saved += limit - len(steps)
        expected = late(drawn)
        for part, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part[:, 0], wanted[:, 0])
        waited += int((expected.lengths[:, 0] > expected.lengths[:, 1]).sum())
    assert saved > 0, "no search has ended early"
    assert waited > 0, "no longer hypothesis has won against a shorter one"


@pytest.mark.parametrize(
    ("changes", "ranking"),
    [
        (CHANGES, Ranking("gnmt", 1.0, 0.2)),
        ({"score": "location", "cell": "gru", "placement": "before", "window": "local_p"}, Ranking()),
        ({"score": "additive", "coverage": True, "encoder": "bi"}, Ranking("power", 0.5)),
        ({"model": "transformer"}, Ranking("average")),
    ],
    ids=["penalties", "positions", "coverage", "transformer"],
)
def test_unfinished_sentences_go_on_in_smaller_batches(x64, changes, ranking):
    """Every sentence of a batch that shrinks twice is what a search of its own finds."""
    model, _, params = reference.tiny_model(**changes)
    draw, batch, limit, k = np.random.default_rng(5), 33, 12, 3
    rows = [draw.integers(4, reference.SOURCE_SIZE, size=draw.integers(0, 6)).tolist() for _ in range(batch)]
    source, steps = reference.padded(rows, 5), []
    options = {"beam_size": k, "n_best": 2, "ranking": ranking}

    def search(params, source, steps=None):
        return beam(Wrapped(model.bind(params), steps), source, source != PAD, limit, in_parts=True, **options)

    together = reference.jit(lambda params: search(params, source, steps))
    alone = reference.jit(lambda params, row: search(params, row))
    sizes, lengths = set(), set()
    for seed in range(8):
        params_ = reference.random_like(params, seed=seed, scale=1.0)
        params_["decoder.output.bias"][EOS] += seed % 4
        steps.clear()
        found = jax.block_until_ready(together(params_))
        jax.effects_barrier()
        sizes |= set(steps)
        assert steps.count(batch) == 1, "the first step has one hypothesis a sentence"
        for number in range(0, batch, 4 if seed else 1):
            one = alone(params_, source[number : number + 1])
            np.testing.assert_array_equal(found.tokens[number], one.tokens[0])
            for part, wanted in zip(found, one, strict=True):
                np.testing.assert_allclose(part[number], wanted[0], rtol=1e-9, atol=1e-300)
            lengths |= set(np.asarray(one.lengths[0]).tolist())
    assert sizes == {batch, *(k * size for size in stages(batch))} == {33, 99, 48, 24}
    assert len(lengths) > 3, "sentences end at different steps"


@pytest.mark.parametrize(
    ("changes", "members", "ranked"),
    [
        (CHANGES, 1, Ranked("gnmt", 1.0, 0.3)),
        (CHANGES, 2, Ranked("power", 0.5, 0.2)),
    ],
    ids=["penalties", "ensemble"],
)
def test_a_batch_that_shrinks_is_the_plain_loop(x64, changes, members, ranked):
    """Sentences that end in each of the stages, the empty one and those that never end are the plain loop's."""
    model, config, params = reference.tiny_model(**changes)
    draw, batch, limit, k = np.random.default_rng(3), 17, 7, 2
    rows = [draw.integers(4, reference.SOURCE_SIZE, size=draw.integers(1, 6)).tolist() for _ in range(batch)]
    rows[5] = []
    source, steps, ranking = reference.padded(rows, 5), [], Ranking(ranked.penalty, ranked.alpha, ranked.beta)

    def search(*params):
        models = [Wrapped(model.bind(p), None if number else steps) for number, p in enumerate(params)]
        return beam(models, source, source != PAD, limit, beam_size=k, n_best=k, ranking=ranking, in_parts=True)

    decode, sizes, lengths, most = reference.jit(search), set(), set(), 0
    for seed in range(4):
        group = [reference.random_like(params, seed=seed + 4 * member, scale=1.0) for member in range(members)]
        for member in group:
            member["decoder.output.bias"][EOS] += 1 + seed
        steps.clear()
        found = jax.block_until_ready(decode(*group))
        jax.effects_barrier()
        sizes |= set(steps)
        most = max(most, steps.count(k * stages(batch)[-1]))
        for row, symbols in enumerate(rows):
            if not symbols:
                assert (found.score[row] == -np.inf).all()
                continue
            predict = functools.cache(plain_search.predictor(config, group, symbols))
            expected = plain_search.beam(lambda y, p=predict: p(tuple(y)), reference.TARGET_SIZE, limit, k, ranked)
            assert_found(found, row, expected, symbols)
            lengths |= {len(hypothesis.symbols) for hypothesis in expected}
    assert sizes == {batch, *(k * size for size in stages(batch))} == {17, 34, 16}
    assert most > 1, "the smaller batch does several steps"
    assert len(lengths) > 3, "sentences end at different steps"


def test_runs_whose_batches_shrink_at_different_steps_do_not_disturb_each_other(x64):
    model, _, params = reference.tiny_model(**CHANGES)
    draw, batch, limit, k = np.random.default_rng(7), 33, 12, 3
    rows = [draw.integers(4, reference.SOURCE_SIZE, size=draw.integers(0, 6)).tolist() for _ in range(batch)]
    source, steps = reference.padded(rows, 5), []
    options = {"beam_size": k, "n_best": 2, "ranking": Ranking("gnmt", 1.0, 0.2), "in_parts": True}

    def search(params):
        return beam(Wrapped(model.bind(params), steps), source, source != PAD, limit, **options)

    runs = [reference.random_like(params, seed=seed, scale=1.0) for seed in range(4)]
    for number, run in enumerate(runs):
        run["decoder.output.bias"][EOS] += number
    one, alone, shrinking = reference.jit(search), [], []
    for run in runs:
        steps.clear()
        alone.append(jax.block_until_ready(one(run)))
        jax.effects_barrier()
        shrinking.append(tuple(steps.count(k * size) for size in stages(batch)))
    assert len(set(shrinking)) == len(runs), "runs shrink at different steps"
    assert all(max(counts) > 0 for counts in zip(*shrinking, strict=True)), "every stage is there"
    together = reference.jit(jax.vmap(search))({name: np.stack([run[name] for run in runs]) for name in params})
    for number, wanted in enumerate(alone):
        for part, expected in zip(together, wanted, strict=True):
            np.testing.assert_allclose(part[number], expected, rtol=1e-9, atol=1e-300)


def test_heads_are_averaged_for_coverage_and_kept_in_the_weights(x64):
    model, _, params = reference.tiny_model(**CHANGES)
    source, limit = reference.padded([[4, 5, 6], [7, 8, 4]]), 5
    ranking = Ranking("gnmt", 0.5, 0.8)

    def search(params, *, heads):
        module = Wrapped(model.bind(params), heads=heads)
        return beam(module, source, source != PAD, limit, beam_size=4, n_best=2, ranking=ranking)

    for params_ in some_params(params, range(2)):
        found = reference.jit(lambda p: search(p, heads=True))(params_)
        assert found.weights.shape == (2, 2, limit, 2, 3)
        np.testing.assert_allclose(found.weights[..., 1, :], found.weights[..., 0, ::-1], rtol=1e-12)
        sums = np.clip(np.asarray(found.weights).mean(axis=3).sum(axis=2), None, 1)
        lp = ((5 + np.asarray(found.lengths)) / 6) ** 0.5
        expected = found.log_probability / lp + 0.8 * np.log(sums).sum(axis=-1)
        np.testing.assert_allclose(found.score, expected, rtol=1e-9)
        greedily = greedy(Wrapped(model.bind(params_), heads=True), source, source != PAD, limit).weights
        np.testing.assert_allclose(greedily[..., 1, :], greedily[..., 0, ::-1], rtol=1e-12)


def test_runs_do_not_disturb_each_other(x64):
    model, _, params = reference.tiny_model(score="general", cell="gru", input_feeding="attentional")
    source, options = reference.padded(SOURCES), {"beam_size": 3, "n_best": 2, "ranking": Ranking("gnmt", 1.0)}

    def search(params):
        return beam(model.bind(params), source, source != PAD, 6, **options)

    runs = list(some_params(params, range(4)))
    together = reference.jit(jax.vmap(search))({name: np.stack([run[name] for run in runs]) for name in params})
    one = reference.jit(search)
    for number, run in enumerate(runs):
        for part, expected in zip(together, one(run), strict=True):
            np.testing.assert_allclose(part[number], expected, rtol=1e-9)
    assert len({row.tobytes() for row in np.asarray(together.tokens)}) == len(runs)


def test_a_position_without_any_attention_has_a_finite_penalty():
    ranking = Ranking(coverage_penalty=2.0)
    sums, mask = jnp.array([[[0.0, 0.5, 3.0, 0.0]]]), jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(ranking.coverage(sums, mask), [[2 * (np.log(1e-30) + np.log(0.5))]], rtol=1e-6)


def test_more_hypotheses_than_the_beam_holds_are_refused(x64):
    model, _, params = reference.tiny_model(score="dot")
    with pytest.raises(ValueError, match="n_best=3 is not between 1 and beam_size=2"):
        beam(model.bind(params), jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool), 4, beam_size=2, n_best=3)


@pytest.mark.parametrize("length", [960, 1024, 70])
def test_largest_values_of_long_rows(length):
    """Few different values, so that many are equal, and -inf among them, in the offsets, too."""
    draw = np.random.default_rng(0)
    drawn = draw.integers(0, 9, size=(6, 3, length)).astype(np.float32)
    scores = np.where(drawn == 0, -np.inf, drawn)
    scores[3, :, 5:] = -np.inf
    offset = draw.integers(-2, 3, size=(6, 3)).astype(np.float32)
    offset[4, 1:] = -np.inf
    allowed = np.ones(length, bool)
    allowed[:40] = draw.random(40) < 0.9
    tops = scores.reshape(6, 3, -1, 64 if length > 70 else length).max(axis=-1)
    values = (np.where(allowed, scores, -np.inf) + offset[:, :, None]).reshape(6, -1)
    for count in (1, 3, 10):
        found, parents, symbols = reference.jit(lambda *given, count=count: largest(*given, count))(
            scores, tops, offset, allowed
        )
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(parents * length + symbols, order)
        np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=1))


@pytest.mark.parametrize("beam_size", [0, 5])
def test_scores_that_are_not_numbers_give_symbols_of_the_vocabulary(beam_size):
    """Of a vocabulary that is not a whole number of blocks; a beam of 0 stands for greedy search."""
    symbols = 9 * 64 + 1
    model = build(reference.tiny(score="dot"), reference.SOURCE_SIZE, symbols)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan, np.float32), jax.eval_shape(model.init, jax.random.key(0))
    )
    source = reference.padded([[4, 5, 6], [7, 8]])
    options = {"beam_size": beam_size} if beam_size else {}
    search = beam if beam_size else greedy
    found = reference.jit(lambda p: search(model.bind(p), source, source != PAD, 4, **options))(params)
    assert (np.asarray(found.tokens) < symbols).all()
