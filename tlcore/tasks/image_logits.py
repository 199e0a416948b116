"""What a transformers model of pictures says of a batch.

Owns the forward pass. Called by the tasks that use image classification models.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tlcore.tasks.base import Batch
from tlcore.tasks.logits import logits_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def image_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits in fp32 [B, C] of `pixel_values`; a model with positions for another size than the pictures have stretches them."""
    pictures = {"pixel_values": batch["pixel_values"]}
    return logits_of(model, pictures, **position_settings(model, batch["pixel_values"]))


def position_settings(model: nn.Module, pixel_values: Tensor) -> dict[str, Any]:
    """What a vision transformer's forward pass needs for pictures [..., H, W] of another size than it was trained with."""
    plain: Any = getattr(model, "module", model)
    own = getattr(plain.config, "image_size", None)
    if own is None or "interpolate_pos_encoding" not in inspect.signature(plain.forward).parameters:
        return {}
    size = tuple(own) if isinstance(own, list | tuple) else (own, own)
    return {} if tuple(pixel_values.shape[-2:]) == size else {"interpolate_pos_encoding": True}
