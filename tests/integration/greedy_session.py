"""A real training session whose second trial asks for more memory than there is, at one step, until it runs under ZeRO-3.

It also looks at what a heartbeat would see of it."""

from __future__ import annotations

import torch

from tlcore.train.session import TrialSession

GREEDY, AT_STEP = "t001", 13


class GreedySession(TrialSession):
    """Training as it is; the allocation that fails is torch's own."""

    def train_step(self):
        if (self.trial, self.step, self.rank) == (GREEDY, AT_STEP, 1) and self.recipe.deepspeed.zero_stage < 3:
            torch.empty(2**46, dtype=torch.uint8)
        assert self.phase == ("train" if self._prepared else "first step")
        super().train_step()
        assert self.phase == "train"

    def _evaluate(self):
        assert self.phase == "evaluate"
        ticks = self.ticks
        found = super()._evaluate()
        assert self.ticks > ticks
        return found
