"""Ratios and differences with their spread, for the benches.

Owns the statistics: 95 % intervals of a ratio and of a difference measured in pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal value is close enough.
_T95 = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13]
_NORMAL95 = 1.96


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of paired ratios, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """`over[i] / under[i]`, where i-th measurements were taken next to each other.

    Raises ValueError for fewer than two pairs or unequal lengths.
    """
    logs = [math.log(a / b) for a, b in zip(over, under, strict=True)]
    if len(logs) < 2:
        raise ValueError(f"{len(logs)} pairs: an interval needs at least two")
    mean = statistics.fmean(logs)
    half = _half_width(logs)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and the bounds of its 95 % interval; None for a single pair, which has none."""

    value: float
    low: float | None
    high: float | None
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        return {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.value:+.4f}{spread}"


def paired_difference(of: Sequence[float], less: Sequence[float]) -> Difference:
    """`of[i] - less[i]`, where i-th measurements belong together. Raises ValueError for no pair or unequal lengths."""
    gaps = [a - b for a, b in zip(of, less, strict=True)]
    if not gaps:
        raise ValueError("no pairs: nothing to compare")
    mean = statistics.fmean(gaps)
    if len(gaps) == 1:
        return Difference(mean, None, None, 1)
    half = _half_width(gaps)
    return Difference(mean, mean - half, mean + half, len(gaps))


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two values, by Student's t."""
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else _NORMAL95
    return t * statistics.stdev(values) / math.sqrt(len(values))
