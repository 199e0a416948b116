"""How well the nearest neighbours of embeddings share their label, and the loss that brings them there.

Owns both. Called by `image_embedding.py`.

Shapes: N samples, E numbers per embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks
from tlcore.tasks.gathered import SLOT, GatheredSamples

TEMPERATURE: Final = 0.1
"""Of the contrastive loss, as its authors chose."""
_QUERIES: Final = 512
"""Compared at a time with all samples, so that memory grows with N and not with its square."""


def contrastive_losses(embeddings: Tensor, labels: Tensor, queries: slice = slice(None)) -> Tensor:
    """Supervised contrastive loss of each query among all samples (Khosla et al. 2020, equation 2); NaN for one that is alone with
    its label, or ignored.

    Args:
        embeddings: unit vectors [N, E].
        labels: [N]; ignored ones are nobody's neighbour.
        queries: which of the samples.
    """
    others, same = _relations(labels, queries)
    scores = (embeddings[queries] @ embeddings.T / TEMPERATURE).masked_fill(~others, -torch.inf)
    # The largest score is finite where there is any other sample; where there is none, no query counts.
    logs = scores.masked_fill(~others.any(dim=1, keepdim=True), 0.0).log_softmax(dim=1)
    summed = logs.masked_fill(~same, 0.0).sum(dim=1)
    return -summed / same.sum(dim=1).where(same.any(dim=1), torch.nan)


def _relations(labels: Tensor, queries: slice) -> tuple[Tensor, Tensor]:
    """[queries, N]: whom a query is compared with, and who of them shares its label."""
    counted = labels != IGNORED
    places = torch.arange(len(labels), device=labels.device)
    others = counted[queries, None] & counted & (places[queries, None] != places)
    return others, others & (labels[queries, None] == labels)


class Neighbours:
    """A MetricAccumulator over the embeddings of a whole split, gathered from all ranks.

    Args:
        size: E.
        embed: gives unit vectors [B, E] for a batch.
    """

    def __init__(self, size: int, embed: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._embed = embed
        self._samples = GatheredSamples(size + 1)
        self._whole = torch.empty(0, size + 1, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep a batch's embeddings."""
        with torch.no_grad():
            embeddings = self._embed(model, batch).cpu()
        self._samples.add(batch[SLOT], torch.cat([embeddings, batch["labels"].cpu()[:, None]], dim=1))

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Every rank gets all of them."""
        self._whole = self._samples.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """Over the samples that share their label with another: recall_at_1 (the nearest one does), map_at_r (mean average
        precision at R, their number; Musgrave et al. 2020, arXiv:2003.08505), and loss, contrastive over the whole split."""
        embeddings, labels = self._whole[:, :-1], self._whole[:, -1]
        parts = [
            _of_queries(embeddings, labels, slice(start, start + _QUERIES)) for start in range(0, len(labels), _QUERIES)
        ]
        found = torch.cat(parts)
        found = found[~found[:, 0].isnan()]
        if not len(found):
            raise DataError(
                f"none of {len(labels)} samples shares its label with another, so none has a neighbour to find",
                hint="give at least two pictures of a label, or check data.label",
            )
        loss, first, precision = found.mean(dim=0).tolist()
        return {"recall_at_1": first, "map_at_r": precision, "loss": loss}


def _of_queries(embeddings: Tensor, labels: Tensor, queries: slice) -> Tensor:
    """Loss, recall at 1 and average precision at R of each query, [queries, 3]; NaN for one that has no neighbour to find."""
    others, same = _relations(labels, queries)
    near = (embeddings[queries] @ embeddings.T).masked_fill(~others, -torch.inf)
    order = near.argsort(dim=1, descending=True, stable=True)
    hits = same.gather(1, order).double()
    ranks = torch.arange(1, len(labels) + 1, dtype=torch.float64)
    wanted = same.sum(dim=1, keepdim=True)
    precision = (hits.cumsum(dim=1) / ranks * hits * (ranks <= wanted)).sum(dim=1) / wanted[:, 0]
    return torch.stack([contrastive_losses(embeddings, labels, queries), hits[:, 0], precision], dim=1)
