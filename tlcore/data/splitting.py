"""Holding validation samples out of the training data.

Owns which samples are held out. Called by `tasks/` when `data.validation` is a fraction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tlcore.data.order import permutation
from tlcore.errors import DataError

SPLIT_KEY = 0x7C0DE
"""Fixed, and not the trial's seed: all trials of a sweep must be compared on the same samples, also where the sweep varies
`train.seed`, and a trial that takes over another's checkpoint must not be judged on what that one was trained with."""


def hold_out(samples: int, fraction: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the samples to train on and of those held out, both ascending: the same for the same `samples` and `fraction`.

    Raises:
        DataError: one of the two would be empty.
    """
    held = round(samples * fraction)
    if not 0 < held < samples:
        raise DataError(
            f"data.validation is {fraction}, which of {samples} training samples holds out {held}",
            hint="change the fraction, or give validation data of its own",
        )
    order = permutation(samples, SPLIT_KEY, samples)
    return np.sort(order[held:]), np.sort(order[:held])
