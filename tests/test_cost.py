import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import properties
import pytest
import scipy.stats
import tiny

from attn_jax import power_law
from attn_jax.cost import Grown, Limits, Program, Subject, check_mappings, grown, interleaved, tokens
from attn_jax.data.text import EOS, SPECIALS
from attn_jax.errors import UserError
from attn_jax.search import search
from attn_jax.training import Trainer

# -- exponents --------------------------------------------------------------------------------------------------------

LENGTHS = (32, 64, 96, 128, 512)


def power(exponent, factor=3e-7, noise=0.0, seed=0):
    errors = np.random.default_rng(seed).normal(0, noise, len(LENGTHS))
    return {n: factor * n**exponent * np.exp(error) for n, error in zip(LENGTHS, errors, strict=True)}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7, 3.0])
def test_the_exponent_of_an_exact_power_law(exponent):
    assert power_law.fit(power(exponent)) == pytest.approx((exponent, exponent, exponent), abs=1e-9)
    shuffled = dict(reversed(power(exponent, factor=20.0).items()))
    assert power_law.fit(shuffled).exponent == pytest.approx(exponent, abs=1e-9)


def test_the_interval_is_that_of_a_regression():
    points = power(2.0, noise=0.1)
    line = scipy.stats.linregress(np.log(LENGTHS), np.log(list(points.values())))
    half = scipy.stats.t.ppf(0.975, len(LENGTHS) - 2) * line.stderr
    assert power_law.fit(points) == pytest.approx((line.slope, line.slope - half, line.slope + half))
    found = [power_law.fit(power(1.5, noise=0.05, seed=seed), level=0.8) for seed in range(500)]
    # The share has a standard deviation of 0.018.
    assert np.mean([one.low < 1.5 < one.high for one in found]) == pytest.approx(0.8, abs=0.06)


def test_few_points_and_sums_of_powers():
    assert power_law.fit({10: 1.0, 100: 1000.0}) == (pytest.approx(3.0), None, None)
    with pytest.raises(ValueError, match="two points"):
        power_law.fit({10: 1.0})
    bent = {n: n + n**2 / 100 for n in LENGTHS}
    whole, upper = power_law.fit(bent), power_law.fit(power_law.upper_half(bent))
    assert 1 < whole.exponent < upper.exponent < 2
    assert whole.high - whole.low > 0.1, "a bend is no power law"


def test_the_upper_half():
    assert power_law.upper_half(dict.fromkeys((5, 1, 2, 3, 4), 0.0)) == dict.fromkeys((3, 4, 5), 0.0)
    assert [*power_law.upper_half(dict.fromkeys(range(8), 0.0))] == [4, 5, 6, 7]
    assert [*power_law.upper_half({2: 0.0, 1: 0.0})] == [1, 2]


# -- programs ---------------------------------------------------------------------------------------------------------

B, V = 3, 12
SMALL = {"train.batch_size": B, "transformer.size": 8, "transformer.heads": 2, "transformer.feedforward": 8}
SMALL |= {"transformer.encoder_layers": 1, "transformer.decoder_layers": 1, "optim.learning_rate": 0.05}


def subject(**changes):
    return Subject(tiny.changed(tiny.config(**changes), SMALL), V)


def test_tokens_are_sentences_of_the_given_sizes():
    corpus = tokens(4, 7, 5, 9)
    assert len(corpus.source.vocabulary) == len(corpus.target.vocabulary) == 9
    sources, targets = map(np.array, zip(*corpus.encoded["train"], strict=True))
    assert (sources.shape, targets.shape) == ((4, 7), (4, 5))
    assert (targets[:, -1] == EOS).all()
    words = np.concatenate([sources, targets[:, :-1]], axis=1)
    assert len(SPECIALS) <= words.min() < words.max() < 9
    again, other = (tokens(4, 7, 5, 9, seed).encoded for seed in (0, 1))
    assert corpus.encoded == again != other


def test_steps_are_those_that_training_does_and_go_on_from_each_other():
    one, sizes = subject(score="additive", cell="gru"), [(5, 4), (3, 2)]
    trainers = {size: Trainer([one.config], tokens(B, *size, V)) for size in sizes}
    states, programs = properties.copied(one.states), {size: one.training(*size) for size in sizes}
    for size in (*sizes, sizes[0]):
        steps = programs[size].call()
        states, expected = trainers[size].chunk(states, 0, 1, 1)
        np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-6)
    properties.assert_same(one.states, states, 1e-6)


def test_decoding_has_the_length_that_it_is_said_to_have():
    one = subject(score="dot")
    # A model that would rather end at once.
    one.params = {**one.params, "decoder.output.bias": one.params["decoder.output.bias"].at[EOS].set(50.0)}
    found = one.greedy(6, 9).call()
    assert np.asarray(found.lengths).tolist() == [[9]] * B
    source = jnp.asarray(np.array([pair[0] for pair in tokens(B, 6, 9, V).encoded["train"]], np.int32))
    model = Trainer([one.config], tokens(B, 6, 9, V)).model.bind(one.params)
    settings = dataclasses.replace(one.config.decode, name="greedy", min_length=9)
    expected = search([model], source, source > 0, 9, settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_memory_of_decoding_is_that_of_its_results():
    for changes, attended in (({"score": "none"}, 0), ({"score": "dot"}, 20), ({"model": "transformer"}, 20)):
        program = subject(**changes).greedy(20, 30)
        # Symbols, weights, and three numbers a sentence; besides, the addresses of these five arrays.
        assert program.output == 4 * B * (30 + 30 * attended + 3) + 5 * 8
        assert program.temporary > 0
        assert program.bytes == program.temporary + program.output


def memory_of_training(sizes, **changes):
    one = subject(**changes)
    return np.array([one.training(source, target).bytes for source, target in sizes], float)


def test_memory_of_training_without_attention_is_linear_in_the_target():
    first, second, third = memory_of_training([(8, 64), (8, 128), (8, 256)], score="none")
    assert (third - second) / (second - first) == pytest.approx(2, rel=0.02)
    states = 5  # h and the gates of an LSTM of width 4 are needed backwards
    assert second - first >= 4 * B * 64 * 4 * states


def test_memory_of_training_holds_the_weights_of_every_layer_but_with_a_window():
    (full,) = memory_of_training([(512, 8)], model="transformer")
    weights = 4 * B * 2 * (512**2 + 8 * 512)  # two heads; the decoder's own are a trifle
    assert full >= weights
    (windowed,) = memory_of_training([(512, 8)], model="transformer", transformer__window=4)
    assert windowed < weights / 2


def test_a_local_window_saves_no_memory():
    everywhere, local = (subject(score="dot", window=name).greedy(64, 64).bytes for name in ("global", "local_m"))
    assert local >= everywhere


# -- many programs ----------------------------------------------------------------------------------------------------


def fake(length, log, size=0):
    return Program(lambda: log.append(length), size, length)


def test_lengths_end_at_the_first_one_above_a_limit():
    log, made = [], []

    def programs(size=0):
        for length in (1, 2, 3, 4):
            made.append(length)
            yield length, fake(length, log, size)

    whole = grown(programs(), Limits(np.inf, 4))
    assert ([*whole.programs], whole.ended, log) == ([1, 2, 3, 4], "", [1, 2, 3, 4])
    assert all(program.bytes == length for length, program in whole.programs.items())

    log.clear(), made.clear()
    large = grown(programs(size=2 * 10**9), Limits(np.inf, 2e9 + 2))
    assert ([*large.programs], log, made) == ([1, 2], [1, 2], [1, 2, 3])
    assert large.ended == "3 needs 2 GB"

    log.clear(), made.clear()
    slow = grown(programs(), Limits(0, np.inf))
    assert (slow.programs, log, made) == ({}, [1], [1])
    assert slow.ended.startswith("1 takes ")
    assert grown([], Limits(0, 0)) == Grown({})


def test_programs_are_called_in_turn():
    log = []
    rounds = list(interleaved({name: fake(name, log) for name in "abc"}, 2))
    assert "".join(log) == "abcabc"
    assert [[*spent] for spent in rounds] == [["a", "b", "c"]] * 2
    assert all(seconds > 0 for spent in rounds for seconds in spent.values())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_a_process_that_runs_out_of_memory_mappings_says_so():
    check_mappings()
    used = len(Path("/proc/self/maps").read_text().splitlines())
    allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
    check_mappings((used + 100) / allowed)
    with pytest.raises(UserError, match="memory mappings that the system allows"):
        check_mappings((used - 100) / allowed)
