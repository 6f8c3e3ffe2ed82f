"""Power laws y = c x^a: how a cost grows with length."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class PowerLaw(NamedTuple):
    """The exponent a and its interval; `low` and `high` are None where there are only two points."""

    exponent: float
    low: float | None
    high: float | None


def fit(points: Mapping[float, float], level: float = 0.95) -> PowerLaw:
    """Least squares of log y = log c + a log x over at least two points {x: y}, all positive.

    The interval is that of the slope of a regression, a +- t(n - 2) s / sqrt(sum_i (u_i - mean u)^2), u = log x and
    s^2 = sum_i r_i^2 / (n - 2) with the residuals r. It is wide where the points are noisy, and also where they bend:
    a sum of two powers has no exponent of its own.
    """
    if len(points) < 2:
        raise ValueError("two points at least have an exponent")
    u, v = np.log(np.array(sorted(points.items()), float)).T
    u, v = u - u.mean(), v - v.mean()
    spread = float(u @ u)
    exponent = float(u @ v) / spread
    degrees = len(u) - 2
    if degrees == 0:
        return PowerLaw(exponent, None, None)
    # scipy.special takes a fraction of the time that importing scipy.stats does.
    from scipy.special import stdtrit

    rest = v - exponent * u
    half = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(float(rest @ rest) / degrees / spread)
    return PowerLaw(exponent, exponent - half, exponent + half)


def upper_half(points: Mapping[float, float]) -> dict[float, float]:
    """The points of largest x, half of them and the middle one: where what grows fastest shows. Three, if there are."""
    count = max(3, (len(points) + 1) // 2)
    return dict(sorted(points.items())[-count:])
