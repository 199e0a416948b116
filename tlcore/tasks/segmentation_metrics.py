"""Mean intersection over union, pixel accuracy and mean loss from counts.

Owns the counting, and the loss of each picture. Called by `image_segmentation.py`. Counts rather than torchmetrics, as in
`classification_metrics.py`; the unit tests hold them against it.

Shapes: B pictures of H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks


def pixel_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each picture [B], the mean over its pixels that have a class, 0 where none has; and whether any has.

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W], `IGNORED` where there is no class.
    """
    labels = labels.to(logits.device)
    losses = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    pixels = (labels != IGNORED).sum(dim=(1, 2))
    return losses.sum(dim=(1, 2)) / pixels.clamp(min=1), pixels > 0


class PixelCounts:
    """Confusion matrix [C true, C predicted] over all pixels that have a class, summed loss, pictures; a MetricAccumulator.

    Args:
        logits: gives [B, C, H, W] logits in fp32 for a batch.
    """

    def __init__(self, classes: int, logits: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._classes, self._logits = classes, logits
        self._confusion = torch.zeros(classes, classes, dtype=torch.float64)
        self._sums = torch.zeros(2, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; pixels without a class count nowhere."""
        with torch.no_grad():
            logits = self._logits(model, batch)
            labels = batch["labels"].to(logits.device)
            losses, counted = pixel_losses(logits, labels)
            known = labels != IGNORED
            cells = labels[known] * self._classes + logits.argmax(dim=1)[known]
        self._confusion += torch.bincount(cells, minlength=self._classes**2).view_as(self._confusion).cpu()
        self._sums += torch.stack([losses.double().sum(), counted.double().sum()]).cpu()

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts; float64 holds counts exactly up to 2**53."""
        summed = sum_over_ranks(torch.cat([self._confusion.flatten(), self._sums]))
        self._confusion = summed[:-2].reshape(self._confusion.shape).clone()
        self._sums = summed[-2:].clone()

    def compute(self) -> dict[str, float]:
        """miou (mean over the classes that occur among labels or predictions), accuracy (of pixels), loss (mean over pictures)."""
        losses, pictures = self._sums.tolist()
        if pictures == 0:
            raise DataError(
                "no pixel with a class was evaluated", hint="the split is empty, or its masks hold only 255"
            )
        right = self._confusion.diagonal()
        union = self._confusion.sum(dim=0) + self._confusion.sum(dim=1) - right
        occurs = union > 0
        return {
            "miou": float((right[occurs] / union[occurs]).mean()),
            "accuracy": float(right.sum() / self._confusion.sum()),
            "loss": losses / pictures,
        }
