"""Ratios with their spread, for the benches.

Owns the statistics: medians, and a 95 % interval of a ratio measured in pairs.
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
    t = _T95[len(logs) - 2] if len(logs) - 2 < len(_T95) else _NORMAL95
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))
