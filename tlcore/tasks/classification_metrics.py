"""Accuracy, macro F1 and mean loss from counts.

Owns the counting for tasks that choose one class per sample, or any number. Called by those of texts, pictures and sounds.

Counts are kept here rather than in torchmetrics because importing that costs every worker 2 s (it brings torchvision and scipy
along) and one `bincount` is all that is needed; the unit tests hold the results against torchmetrics and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks
from tlcore.tasks.logits import binary_losses


class ClassificationCounts:
    """Samples of each class that are labelled so, that are answered so, and both [3, C], and summed loss; a MetricAccumulator. Not
    the whole confusion matrix, which of 10,000 classes takes 800 MB.

    Args:
        logits: gives [B, C] logits in fp32 for a batch.
    """

    def __init__(self, classes: int, logits: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._classes = classes
        self._logits = logits
        self._by_class = torch.zeros(3, classes, dtype=torch.float64)
        self._loss_sum = torch.zeros(1, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; ignored samples count nowhere."""
        with torch.no_grad():
            logits = self._logits(model, batch)
            labels = batch["labels"].to(logits.device)
            losses = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
            counted = labels != IGNORED
            wanted, found = labels[counted], logits.argmax(dim=-1)[counted]
            kinds = (wanted, found, wanted[wanted == found])
            self._by_class += torch.stack([torch.bincount(kind, minlength=self._classes) for kind in kinds]).cpu()
            self._loss_sum += losses[counted].double().sum().cpu()

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts; float64 holds counts exactly up to 2**53."""
        summed = sum_over_ranks(torch.cat([self._by_class.flatten(), self._loss_sum]))
        self._by_class = summed[:-1].reshape(self._by_class.shape).clone()
        self._loss_sum = summed[-1:].clone()

    def compute(self) -> dict[str, float]:
        """accuracy, f1 (mean over the classes that occur among labels or predictions), loss (mean over samples)."""
        wanted, found, right = self._by_class
        samples = wanted.sum()
        if samples == 0:
            raise DataError("no sample was evaluated", hint="the split is empty")
        occurrences = wanted + found
        present = occurrences > 0
        f1 = (2 * right[present] / occurrences[present]).mean()
        return {"accuracy": float(right.sum() / samples), "f1": float(f1), "loss": float(self._loss_sum[0] / samples)}


class MultiLabelCounts:
    """Right, wrongly found and missed labels per class, samples right in all classes, summed loss; a MetricAccumulator.

    Args:
        logits: gives [B, C] logits in fp32 for a batch; a class counts as found from a probability of one half on.
    """

    def __init__(self, classes: int, logits: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._logits = logits
        self._by_class = torch.zeros(3, classes, dtype=torch.float64)
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; ignored samples count nowhere."""
        with torch.no_grad():
            logits = self._logits(model, batch)
            labels = batch["labels"].to(logits.device)
            counted = labels[:, 0] != IGNORED
            losses = binary_losses(logits, labels)[counted].double().sum()
            found, wanted = logits[counted] >= 0, labels[counted] == 1
        cells = torch.stack([found & wanted, found & ~wanted, ~found & wanted]).sum(dim=1)
        self._by_class += cells.double().cpu()
        right = (found == wanted).all(dim=1).sum()
        self._sums += torch.stack([right.double(), losses, counted.sum().double()]).cpu()

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        summed = sum_over_ranks(torch.cat([self._by_class.flatten(), self._sums]))
        self._by_class = summed[:-3].reshape(self._by_class.shape).clone()
        self._sums = summed[-3:].clone()

    def compute(self) -> dict[str, float]:
        """accuracy (share of samples right in every class), f1 (mean over the classes that occur among labels or predictions; 1
        where none does and none should), loss (mean over samples and classes)."""
        right, losses, samples = self._sums.tolist()
        if samples == 0:
            raise DataError("no sample was evaluated", hint="the split is empty")
        hits, false, missed = self._by_class
        occurs = hits + false + missed > 0
        f1 = (2 * hits[occurs] / (2 * hits + false + missed)[occurs]).mean() if occurs.any() else torch.tensor(1.0)
        return {"accuracy": right / samples, "f1": float(f1), "loss": losses / samples}
