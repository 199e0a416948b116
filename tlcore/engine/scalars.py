"""Parameters without dimensions under DeepSpeed, which takes all of them to have one.

Owns the replacement of two methods of its engine. Called by `sharded.py`, once per process.

When an engine is made, each parameter's bytes are sent, and torch has no view of bytes where there is no dimension to lengthen; at
stage 0 each gradient is multiplied in place by a factor that has one. Both get views of one element, of the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine

_broadcast: Callable[[Any], None] = DeepSpeedEngine._broadcast_model
_clip: Callable[[Any], None] = DeepSpeedEngine.clip_fp32_gradients


def allow_scalars() -> None:
    """Have DeepSpeed train parameters without dimensions, too."""
    DeepSpeedEngine._broadcast_model = _broadcast_model
    DeepSpeedEngine.clip_fp32_gradients = _clip_fp32_gradients


def _broadcast_model(engine: DeepSpeedEngine) -> None:
    with _as_vectors([each for each in engine.module.parameters() if not each.dim()]):
        _broadcast(engine)


def _clip_fp32_gradients(engine: DeepSpeedEngine) -> None:
    scalars = (each.grad for each in engine.module.parameters() if not each.dim())
    with _as_vectors([each for each in scalars if each is not None]):
        _clip(engine)


@contextmanager
def _as_vectors(scalars: list[torch.Tensor]) -> Iterator[None]:
    held = [each.data for each in scalars]
    for each, values in zip(scalars, held, strict=True):
        each.data = values.view(1)
    try:
        yield
    finally:
        for each, values in zip(scalars, held, strict=True):
            each.data = values
