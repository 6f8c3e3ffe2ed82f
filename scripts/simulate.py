"""Prints how often the intervals and tests that a study shows err, over studies whose truth is known.

    scripts/simulate --studies=2000 --bootstrap_studies=500 --seed=0

Noise between seeds is normal; skewed (log-normal); or bimodal (a fifth of the seeds fails). Per kind of noise and
number of seeds:

- t: share of 95 % t-intervals that hold the true mean.
- Holm t, Holm flip, ranks: share of studies of six variants with any false claim in the table: a corrected p value of
  the paired t-test, or of the sign-flip test, at or below 0.05 for equal variants, or a true rank outside its range
  ("-": that many seeds cannot pass the correction). Nothing differs; then ("some differ") three variants are better
  than the others by two standard deviations.
- bootstrap: share of 95 % intervals of the hierarchical bootstrap that hold the mean over all seeds and all sentences,
  of one variant and of the difference of two, with 100 test sentences whose noise is about that of the seeds, and
  ("only seeds") with none; in the first case the t-interval over seeds, which holds the test set fixed, beside it.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np

from attn_jax import bootstrap, ranking, stats

Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SEEDS = (3, 5, 10, 20)
VARIANTS = 6
SENTENCES = 100


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Log-normal, sigma 0.8, turned round (a few seeds are much worse), of mean 0 and variance 1."""
    sigma = 0.8
    spread = np.sqrt((np.exp(sigma**2) - 1) * np.exp(sigma**2))
    return (np.exp(sigma**2 / 2) - rng.lognormal(0, sigma, shape)) / spread


def bimodal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two normals of sd 0.25 around +0.5 (four fifths) and -2, scaled to variance 1."""
    centre = np.where(rng.random(shape) < 0.2, -2.0, 0.5)
    return (centre + 0.25 * rng.normal(size=shape)) / np.sqrt(1 + 0.25**2)


NOISES: Mapping[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": skewed,
    "bimodal": bimodal,
}


def t_coverage(noise: Noise, n: int, studies: int, rng: np.random.Generator) -> float:
    """Share of studies whose t-interval over n seeds holds the true mean."""
    held = 0
    for row in noise(rng, (studies, n)):
        found = stats.summary(row.tolist())
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    return held / studies


def false_claims(
    noise: Noise, n: int, studies: int, rng: np.random.Generator, means: tuple[float, ...] = (0.0,) * VARIANTS
) -> tuple[float, float, float]:
    """Shares of studies with any false claim by the t-tests, the sign-flip tests and the ranges of ranks.

    means: the true mean of each variant. Variants share half of the noise of a seed.
    """
    equal = [(i, j) for i in range(len(means)) for j in range(i) if means[i] == means[j]]
    claims = np.zeros(3)
    values = (noise(rng, (studies, len(means), n)) + noise(rng, (studies, 1, n))) / np.sqrt(2)
    for study in values + np.array(means)[:, None]:
        tests = stats.pairwise([dict(enumerate(row)) for row in study.tolist()])
        ranks = ranking.ranks(range(len(means)), tests, higher=True)
        claims[0] += any((p := tests[pair].p) is not None and p <= stats.ALPHA for pair in equal)
        claims[1] += any((p := tests[pair].flip) is not None and p <= stats.ALPHA for pair in equal)
        # Of equal variants each takes any of the ranks that they share.
        claims[2] += any(
            own.first > 1 + sum(other > means[i] for other in means)
            or own.last < sum(other >= means[i] for other in means)
            for i, own in ranks.items()
        )
    return tuple((claims / studies).tolist())


def bootstrap_coverage(
    noise: Noise, n: int, studies: int, rng: np.random.Generator, spread: float = 1.0
) -> tuple[float, float, float]:
    """Shares of studies whose interval holds the true value: bootstrap of a mean, of a difference; t-interval.

    A sentence's score is its ease, of standard deviation `spread` and the same for both variants, plus what the seed
    does to all of them, plus half as much noise of its own.
    """
    held = np.zeros(3)
    for study in range(studies):
        ease = rng.normal(size=(1, 1, SENTENCES))
        own = 0.5 * rng.normal(size=(2, n, SENTENCES))
        scores = 0.1 * noise(rng, (2, n, 1)) + spread * (ease + own)
        statistics = [
            {s: np.stack([row, np.ones(SENTENCES)], axis=1) for s, row in enumerate(variant)} for variant in scores
        ]
        resampled = bootstrap.resample(statistics, lambda sums: sums[:, 0] / sums[:, 1], seed=study)
        whole = stats.summary(scores[0].mean(axis=1).tolist())
        for k, found in enumerate([resampled.mean(0), resampled.difference(0, 1), whole]):
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            held[k] += found.low <= 0 <= found.high
    return tuple((held / studies).tolist())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of the tests and the t-interval")
    parser.add_argument("--bootstrap_studies", type=int, default=500, help="simulated studies of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    columns = [("", ["t"]), ("nothing differs", ["Holm t", "Holm flip", "ranks"])]
    columns += [("some differ", ["Holm t", "Holm flip", "ranks"])]
    columns += [("bootstrap", ["mean", "difference", "t-interval"]), ("only seeds", ["mean", "difference"])]
    print(f"{options.studies} studies ({options.bootstrap_studies} of the bootstrap), all figures in percent")
    print(f"{'':14}" + "".join(f"{title:>{11 * len(names)}}" for title, names in columns))
    print(f"{'noise':9}seeds" + "".join(f"{name:>11}" for _, names in columns for name in names))
    better = (2.0,) * (VARIANTS // 2) + (0.0,) * (VARIANTS - VARIANTS // 2)
    needed = stats.seeds_needed(VARIANTS * (VARIANTS - 1) // 2)
    for number, (name, noise) in enumerate(NOISES.items()):
        for n in SEEDS:
            rng = np.random.default_rng([options.seed, number, n])
            figures: list[float | None] = [t_coverage(noise, n, options.studies, rng)]
            for means in ((0.0,) * VARIANTS, better):
                t, flip, ranks = false_claims(noise, n, options.studies, rng, means)
                figures += [t, None if n < needed else flip, ranks]
            figures += bootstrap_coverage(noise, n, options.bootstrap_studies, rng)
            figures += bootstrap_coverage(noise, n, options.bootstrap_studies, rng, spread=0.0)[:2]
            cells = ["-" if value is None else f"{100 * value:.1f}" for value in figures]
            print(f"{name:9}{n:>5}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
