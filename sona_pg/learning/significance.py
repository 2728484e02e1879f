"""Tests of one look: Welch's t, and Benjamini and Hochberg's adjustment where several are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations: what tests of means need of a sample, and what can be added up.

    Parameters
    ----------
    count
        How many values.
    mean
        Their mean, 0 without any.
    squares
        ``Σ (x - mean)²``.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of these values."""
        if not values:
            return cls()
        mean = math.fsum(values) / len(values)
        return cls(len(values), mean, math.fsum((value - mean) ** 2 for value in values))

    def add(self, value: float) -> Moments:
        """With one value more (Welford 1962)."""
        count = self.count + 1
        mean = self.mean + (value - self.mean) / count
        return Moments(count, mean, self.squares + (value - self.mean) * (value - mean))

    def __add__(self, other: Moments) -> Moments:
        """Of both samples together (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * other.count / count,
            self.squares + other.squares + shift * shift * self.count * other.count / count,
        )

    @property
    def variance(self) -> float:
        """Unbiased; 0 of fewer than two values."""
        return max(self.squares, 0.0) / (self.count - 1) if self.count > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Welch:
    """Whether two means differ, without assuming equal variances.

    Parameters
    ----------
    t
        Statistic; positive where the first mean is larger.
    freedom
        Degrees of freedom by Satterthwaite.
    p
        Two-sided.
    """

    t: float
    freedom: float
    p: float


def welch(first: Moments, second: Moments) -> Welch:
    """Welch's test (1947) of two means; p is 1 where a sample has fewer than two values.

    Examples
    --------
    >>> test = welch(Moments.of([0.9, 0.8, 0.85, 0.95, 0.9]), Moments.of([0.5, 0.7, 0.6, 0.65, 0.4, 0.55]))
    >>> round(test.t, 6), round(test.freedom, 6)
    (6.151548, 7.810581)
    """
    if first.count < 2 or second.count < 2:
        return Welch(0.0, 0.0, 1.0)
    a, b = first.variance / first.count, second.variance / second.count
    difference = first.mean - second.mean
    # Sums of rounded numbers: samples without a spread have none of that size.
    if a + b <= 1e-24 * max(1.0, first.mean**2, second.mean**2):
        is_same = abs(difference) <= 1e-9
        return Welch(0.0 if is_same else math.copysign(math.inf, difference), math.inf, 1.0 if is_same else 0.0)
    t = difference / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a * a / (first.count - 1) + b * b / (second.count - 1))
    return Welch(t, freedom, two_sided(t, freedom))


def two_sided(t: float, freedom: float) -> float:
    """``P(|T| >= |t|)`` of Student's distribution: ``I_{f/(f+t²)}(f/2, 1/2)``."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function by its continued fraction (Lentz 1976; DLMF 8.17.22)."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 1000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + factor * d or tiny)
            c = 1 + factor / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: calling those up to α true is false of α of them at most, in the mean (1995).

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    m, least = len(p_values), 1.0
    adjusted = [1.0] * m
    for rank, place in sorted(enumerate(sorted(range(m), key=lambda i: p_values[i]), 1), reverse=True):
        least = min(least, p_values[place] * m / rank)
        adjusted[place] = least
    return adjusted
