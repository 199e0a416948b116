"""When a trial's loss says that it goes on in vain.

Owns that judgement. Called by `session.py` at each look at the loss, which is the mean over all ranks, and so alike on all of them.

A loss that is not finite ends a trial at once. One that stays finite and has grown beyond `failures.max_loss_factor` times what the
trial began with, at three looks in a row, ends it too: its scheduler may not compare it for hours. What it began with goes with its
checkpoints, since one that is resumed in the middle of an explosion would begin with that.
"""

from __future__ import annotations

import math
from typing import Any, Final

from tlcore.checkpoint import Manifest
from tlcore.errors import Diverged
from tlcore.recipe import Recipe

_IN_A_ROW: Final = 3
_FIRST: Final = "first_loss"


class LossWatch:
    """One trial's losses, as far as they are judged."""

    def __init__(self, recipe: Recipe, trial: str) -> None:
        self._recipe, self._trial = recipe, trial
        self._first: float | None = None
        self._exploded = 0

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {_FIRST: self._first}

    def restore(self, manifest: Manifest) -> None:
        """Go on from what a checkpoint kept; one of before this was kept says nothing."""
        self._first = manifest.scalars.get(_FIRST)

    def look(self, step: int, loss: float) -> None:
        """Judge the mean loss of the steps since the last look. Raises Diverged."""
        self.check_finite(step, "the loss", loss)
        self._first = loss if self._first is None else self._first
        factor = self._recipe.failures.max_loss_factor
        grown = factor is not None and loss > factor * self._first > 0
        self._exploded = self._exploded + 1 if grown else 0
        if self._exploded >= _IN_A_ROW:
            raise self._diverged(step, f"the loss is {loss:.4g}, {loss / self._first:.0f} times what it began with")

    def check_finite(self, step: int, what: str, value: float) -> None:
        """Raise Diverged where it is not."""
        if not math.isfinite(value):
            raise self._diverged(step, f"{what} is {value}")

    def _diverged(self, step: int, text: str) -> Diverged:
        rate = self._recipe.train.learning_rate
        return Diverged(
            f"trial {self._trial}, step {step}: {text}",
            hint=f"train.learning_rate is {rate:g}; try a lower one, or train.gradient_clip",
            trial=self._trial,
            step=step,
        )
