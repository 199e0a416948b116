"""Whether two orders of the same few things agree, for the benches.

Owns the statistic: Kendall's tau with its exact p, as scipy counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST: Final = 9
"""Things whose orders are all gone through, of which 9 have 362,880."""


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
    import numpy as np
    from scipy.stats import kendalltau, permutation_test

    if len(one) != len(other) or not 2 <= len(one) <= MOST:
        raise ValueError(f"{len(one)} and {len(other)} scores: give equally many, 2 to {MOST}")
    if len(set(one)) == 1 or len(set(other)) == 1:
        raise ValueError("one side gives all things the same score: there is no order to compare")
    # kendalltau's own exact p knows no ties.
    found = permutation_test(
        (np.asarray(one, float),),
        lambda order: kendalltau(order, other).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    return Agreement(float(found.statistic), float(found.pvalue), len(one))
