"""Whether two orders of the same few things agree, for the benches.

Owns the statistic: Kendall's tau with its exact p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Final

MOST: Final = 9
"""Things whose orders are all gone through: 9 have 362,880."""


@dataclass(frozen=True)
class Agreement:
    """`tau` is tau-b, -1 to 1. `p` is one-sided: the share of all orders of the one side that agree as well with the other."""

    tau: float
    p: float
    things: int

    def to_dict(self) -> dict[str, Any]:
        return {"tau": round(self.tau, 4), "p": round(self.p, 5), "things": self.things}

    def __str__(self) -> str:
        return f"tau {self.tau:+.3f}, p {self.p:.4f}"


def kendall(one: Sequence[float], other: Sequence[float]) -> Agreement:
    """Kendall's tau-b (Kendall 1945) between two scores of the same things, ties allowed, by all permutations.

    Raises ValueError for unequal lengths, fewer than two things or more than can be gone through, or a side that ties them all.
    """
    if len(one) != len(other) or not 2 <= len(one) <= MOST:
        raise ValueError(f"{len(one)} and {len(other)} scores: give equally many, 2 to {MOST}")
    pairs = list(combinations(range(len(one)), 2))
    first, second = _signs(one, pairs), _signs(other, pairs)
    spread = math.sqrt(sum(map(abs, first.values())) * sum(map(abs, second.values())))
    if not spread:
        raise ValueError("one side gives all things the same score: there is no order to compare")
    observed = _agreeing(first, second, pairs, range(len(one)))
    orders = list(permutations(range(len(one))))
    as_good = sum(_agreeing(first, second, pairs, order) >= observed for order in orders)
    return Agreement(observed / spread, as_good / len(orders), len(one))


Signs = dict[tuple[int, int], int]


def _signs(values: Sequence[float], pairs: Sequence[tuple[int, int]]) -> Signs:
    """Which of each pair is more, both ways round."""
    found = {(a, b): (values[a] > values[b]) - (values[a] < values[b]) for a, b in pairs}
    return found | {(b, a): -sign for (a, b), sign in found.items()}


def _agreeing(first: Signs, second: Signs, pairs: Sequence[tuple[int, int]], order: Sequence[int]) -> int:
    """Pairs that both sides put the same way round less those that they do not, the second side's things taken in `order`.

    Both dictionaries hold each pair twice, which the caller's spread takes into account."""
    return 2 * sum(first[pair] * second[order[pair[0]], order[pair[1]]] for pair in pairs)
