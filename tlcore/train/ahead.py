"""Batches made ahead of their use: while the model works on one, a thread makes the next.

Owns that thread and the order of the work. Opening pictures and sounds takes as long as a device takes to train on them, and a read
from a store longer; made in the training thread they would leave the device idle. Called by `stepper.py` and `evaluation.py`.

One thread for the whole process, so that no task is ever asked for two batches at once, and one batch ahead: where batches take
less time than steps, that hides all of it; where they take more, they are the limit however many lie ready. What is drawn at random
for a batch must come from a generator of its own then, not from one that the model draws from meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

import torch

from tlcore.tasks import Batch

Place = TypeVar("Place")

_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="batches")


class Ahead(Generic[Place]):
    """Batches by place (a step and micro-batch, a position in a split), each made while the one before is in use.

    Args:
        make: the batch of a place, on the host.
        following: the place that is likely asked for after one, None after the last.
        device: where batches go: for an accelerator they are made in page-locked memory, from which copies need not be waited for.
    """

    def __init__(
        self, make: Callable[[Place], Batch], following: Callable[[Place], Place | None], device: torch.device
    ) -> None:
        self._make, self._following, self._device = make, following, device
        self._next: tuple[Place, Future[Batch]] | None = None

    def take(self, place: Place) -> Batch:
        """The batch of `place` on the device. Raises whatever making it did, when it is asked for and not before."""
        ahead, self._next = self._next, None
        made = ahead[1] if ahead is not None and ahead[0] == place else self._begin(place)
        batch = made.result()
        following = self._following(place)
        if following is not None:
            self._next = following, self._begin(following)
        return to_device(batch, self._device)

    def _begin(self, place: Place) -> Future[Batch]:
        return _THREAD.submit(self._made, place)

    def _made(self, place: Place) -> Batch:
        batch = self._make(place)
        if self._device.type == "cpu":
            return batch
        with torch.cuda.device(self._device):  # a thread begins on the first one
            return {name: tensor.pin_memory() for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device its model is on."""
    if device.type == "cpu":
        return batch
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
