"""What a trial says about itself while it trains.

Owns two records. Made by `session.py`; read by `sweep/` (decisions) and `report/` (the live table).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a trial is now; `loss` is the mean over the last few global batches, `checkpoint_step` the last committed one,
    `stall_s` how long the last save kept training on rank 0, `save_bytes_new` what that rank sent and `save_bytes_per_s` how
    fast, `save_bytes_reused` what of its part was stored already, `save_retries` requests made again; all None before this
    session's first save."""

    step: int
    total_steps: int
    fraction: float
    loss: float
    samples_per_s: float
    learning_rate: float
    checkpoint_step: int | None
    stall_s: float | None = None
    save_bytes_per_s: float | None = None
    save_bytes_new: int | None = None
    save_bytes_reused: int | None = None
    save_retries: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """A trial at one of its report fractions, evaluated on the validation examples. `loss` is None where it is not known: the
    trial was restored at this very step, from a checkpoint that does not say. `fell_back`, in the first report after a restore:
    the damaged checkpoints that were passed over, each with `instead` (its step), `step` (the one restored) and `reason`.
    `saves`: what the trial's saves took on rank 0 since it was last started (`SaveTotals`), `stall_s` and `save_...` the last of
    them, as in `Progress`. `interrupted`: it stopped before its report fraction because that was asked; nothing was measured,
    and `checkpoint_step` has all of it."""

    step: int
    total_steps: int
    fraction: float
    loss: float | None
    samples_per_s: float
    checkpoint_step: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    fell_back: list[dict[str, Any]] = field(default_factory=list)
    saves: dict[str, Any] = field(default_factory=dict)
    stall_s: float | None = None
    save_bytes_per_s: float | None = None
    save_bytes_new: int | None = None
    save_bytes_reused: int | None = None
    save_retries: int | None = None
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
