"""Logits and their loss, for tasks that choose among classes.

Owns the forward pass of a batch and the mean cross entropy, for one class per sample or any number.
Called by the classification tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlcore.tasks.base import IGNORED, Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


def logits_of(model: nn.Module, batch: Batch, **settings: Any) -> Tensor:
    """Logits in fp32, whatever the model computes in, on the model's device: [B, C], or [B, T, C] for one class per token. All of
    `batch` but `labels` goes into the model, and `settings` with it."""
    logits: Tensor = model(**inputs_of(model, batch), **settings).logits
    return logits.float()


def inputs_of(model: nn.Module, batch: Batch, without: Sequence[str] = ("labels",)) -> Batch:
    """What of a batch goes into the model, on its device and, pictures and sound, in the format that it computes in: DeepSpeed
    casts weights to bf16 and leaves inputs as they are."""
    first = next(model.parameters())
    return {
        name: tensor.to(first.device, first.dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
        for name, tensor in batch.items()
        if name not in without
    }


def mean_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean over the labels that count: an fp32 scalar with gradient, 0 where none counts.

    Args:
        logits: [..., C].
        labels: [...], `IGNORED` where there is none.
        smoothing: share of each target that all classes have alike.
        class_weights: [C], by which the loss of each label of a class is multiplied. The mean is over labels, not over their
            weights: it must not depend on which of them meet in a micro-batch.
    """
    from torch.nn.functional import cross_entropy

    labels = labels.to(logits.device).flatten()
    # Not reduction="mean": that is 0/0 for a filler batch, which must give a zero with a gradient.
    counted = (labels != IGNORED).sum().clamp(min=1)
    told = logits.flatten(0, -2)
    if class_weights is None:
        return cross_entropy(told, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing) / counted
    losses = cross_entropy(told, labels, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing)
    return (losses * class_weights.to(logits.device)[labels.clamp(min=0)]).sum() / counted


def mean_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the samples that count of the mean over classes: an fp32 scalar with gradient, 0 where none counts.

    Args:
        logits: [B, C].
        labels: [B, C], 1 for each class of a sample, else 0; `IGNORED` in the rows of one that does not count.
    """
    labels = labels.to(logits.device)
    counted = labels[:, 0] != IGNORED
    losses = binary_losses(logits, labels).masked_fill(~counted, 0.0)
    return losses.sum() / counted.sum().clamp(min=1)


def binary_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each sample [B], the mean over its classes; any number for an ignored one."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(dim=-1)
