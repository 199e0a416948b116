"""Logits and their loss, for tasks that choose among classes.

Owns the forward pass of a batch and the mean cross entropy. Called by the classification tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlcore.tasks.base import IGNORED, Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


def logits_of(model: nn.Module, batch: Batch, **settings: Any) -> Tensor:
    """Logits in fp32, whatever the model computes in, on the model's device: [B, C], or [B, T, C] for one class per token. All of
    `batch` but `labels` goes into the model, and the `settings` of its forward pass."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs, **settings).logits
    return logits.float()


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that count: an fp32 scalar with gradient, 0 where none counts.

    Args:
        logits: [..., C].
        labels: [...], `IGNORED` where there is none.
    """
    from torch.nn.functional import cross_entropy

    labels = labels.to(logits.device).flatten()
    # Not reduction="mean": that is 0/0 for a filler batch, which must give a zero with a gradient.
    total = cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
