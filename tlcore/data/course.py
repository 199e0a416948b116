"""The order of training of a trial whose global batch changes on the way, as it does when it takes over another trial's state.

Owns the mapping: the position is counted in samples, so every sample of an epoch is still taken exactly once, whatever the batches
were before. A pure function of (samples, epochs, seed, lengths) and the legs, which a checkpoint carries. Called by `train/`.

A leg is a stretch of steps with one global batch. The steps go on counting where the leg before ended; where a trial stands in
its schedule follows from the samples it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcore.data.order import Indices, Order

_EDGE = 1e-9


@dataclass(frozen=True)
class _Leg:
    """`rest` is what is left of the epoch in which the leg begins, none at an epoch's beginning; then whole epochs from `epoch`."""

    start: int
    order: Order
    rest: Indices
    epoch: int

    @property
    def rest_steps(self) -> int:
        return -(-len(self.rest) // self.order.global_batch_size)

    def batch(self, step: int) -> Indices:
        size, place = self.order.global_batch_size, step - self.start
        if place >= self.rest_steps:
            return self.order.batch(self.epoch * self.order.steps_per_epoch + place - self.rest_steps)
        return self.order.longest_first(self.rest[place * size : (place + 1) * size])

    def next(self, start: int, order: Order) -> _Leg:
        """The leg that begins at step `start` of this one."""
        place = start - self.start
        if place < self.rest_steps:
            return _Leg(start, order, self.rest[place * self.order.global_batch_size :], self.epoch)
        epoch, into = divmod(place - self.rest_steps, self.order.steps_per_epoch)
        if into == 0:
            return _Leg(start, order, self.rest[:0], self.epoch + epoch)
        rest = self.order.layout(self.epoch + epoch)[into * self.order.global_batch_size :]
        return _Leg(start, order, rest, self.epoch + epoch + 1)


class Course(Order):
    """An `Order` over all epochs of a trial, in legs; its own global batch is that of the last leg.

    Args:
        epochs: of the trial.
        legs: (first step, global batch) of each leg, ascending, the first from step 0.
    """

    def __init__(
        self,
        samples: int,
        epochs: int,
        seed: int,
        lengths: Sequence[int] | npt.NDArray[np.integer] | None,
        legs: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(samples, legs[-1][1], seed, lengths)
        self.epochs = epochs
        orders = [Order(samples, size, seed, lengths) for _, size in legs]
        self._legs = [_Leg(0, orders[0], np.empty(0, dtype=np.int64), 0)]
        for (start, _), order in zip(legs[1:], orders[1:], strict=True):
            self._legs.append(self._legs[-1].next(start, order))
        last = self._legs[-1]
        self.total_steps = last.start + last.rest_steps + (epochs - last.epoch) * self.steps_per_epoch
        self._begun = (last.epoch * samples - len(last.rest)) / (epochs * samples)

    @property
    def legs(self) -> list[tuple[int, int]]:
        """(first step, global batch) of each leg."""
        return [(leg.start, leg.order.global_batch_size) for leg in self._legs]

    def batch(self, step: int) -> Indices:
        """Sample indices of global step `step`."""
        return next(leg for leg in reversed(self._legs) if leg.start <= step).batch(step)

    def step_at(self, fraction: float) -> int:
        """The step, in the last leg, after which `fraction` of the trial is done."""
        last = self._legs[-1]
        steps = self.total_steps - last.start
        share = (fraction - self._begun) / (1 - self._begun) if self._begun < 1 else 1.0
        return min(self.total_steps, last.start + max(0, math.ceil(share * steps - _EDGE)))

    def schedule(self, step: int) -> tuple[float, int]:
        """Where step `step` of the last leg stands in a schedule over the whole trial: (place, steps in all) at its batch."""
        last, whole = self._legs[-1], self.epochs * self.steps_per_epoch
        if len(self._legs) == 1:
            return step, whole
        share = (step - last.start) / max(1, self.total_steps - last.start)
        return (self._begun + (1 - self._begun) * share) * whole, whole
