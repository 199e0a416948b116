"""When a trial saves between its reports, and which of its saves other trials may take over.

Owns the decisions, as pure functions of numbers. Called by `session.py`; the clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tlcore.recipe import Recipe, scheduler_fractions

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True)
class Cadence:
    """`every_steps`, `every_epochs` and `every_minutes` of a recipe; each may be None."""

    every_steps: int | None
    every_epochs: int | None
    every_minutes: float | None

    @classmethod
    def of(cls, recipe: Recipe) -> Cadence:
        """What this recipe asks for."""
        section = recipe.checkpoint
        return cls(section.every_steps, section.every_epochs, section.every_minutes)

    def due_by_step(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the state after `step` optimizer steps is to be saved; the same on every rank."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        by_epochs = self.every_epochs is not None and step % (self.every_epochs * steps_per_epoch) == 0
        return by_steps or by_epochs

    def due_by_time(self, seconds_since_save: float) -> bool:
        """Whether so long without a save is too long. Clocks differ, so rank 0's answer must be agreed on."""
        return self.every_minutes is not None and seconds_since_save >= self.every_minutes * SECONDS_PER_MINUTE


def ends_interval(recipe: Recipe, step: int, step_at: Callable[[float], int]) -> bool:
    """Whether an interval of a population ends at `step`, where others may go on from; `step_at`: the step of a fraction."""
    if recipe.search.scheduler.population is None:
        return False
    return any(step == step_at(fraction) for fraction in scheduler_fractions(recipe))
