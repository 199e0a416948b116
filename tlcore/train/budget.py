"""Whether a run's budget is used up: the decision alone, of the recipe and the run's account.

Called by the sweep's driver and by `local.py`, which stop what runs. `search.trials`, the third budget, is the search's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlcore.recipe import Recipe
from tlcore.storage.account import Usage


@dataclass(frozen=True)
class Exhausted:
    """A limit that is reached: the setting's dotted path, what it allows and what was used of it, hours."""

    setting: str
    allowed: float
    used: float

    def __str__(self) -> str:
        return f"{self.setting}={self.allowed:g} is used up ({self.used:.4g} used)"

    @property
    def hint(self) -> str:
        """How to go on."""
        return f"to go on: --resume with --set {self.setting}=<more than {self.used:.4g}>"


def exhausted(recipe: Recipe, used: Usage) -> Exhausted | None:
    """The first limit that is reached, None while there is room."""
    budget = recipe.budget
    limits = (
        ("budget.hours", budget.hours, used.hours),
        ("budget.worker_hours", budget.worker_hours, used.worker_hours),
    )
    for setting, allowed, spent in limits:
        if allowed is not None and spent >= allowed:
            return Exhausted(setting, allowed, spent)
    return None
