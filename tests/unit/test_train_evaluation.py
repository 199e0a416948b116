"""How many samples an evaluation takes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tlcore.train.evaluation import MOST_AT_ONCE, evaluate
from tlcore.train.group import process_group

pytestmark = pytest.mark.unit


class Counting:
    """A task that notes the size of each batch, and a metric that counts samples."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.sizes: list[int] = []
        self.counted = 0

    def lengths(self, split: str) -> Any:
        return np.ones(self.samples, dtype=np.int32)

    def collate(self, split: str, indices: Any) -> dict[str, torch.Tensor]:
        self.sizes.append(len(indices))
        return {"x": torch.zeros(len(indices))}

    def metrics(self) -> Counting:
        return self

    def update(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
        self.counted += len(batch["x"])

    def merge(self, sum_over_ranks: Any) -> None:
        self.counted = int(sum_over_ranks(torch.tensor([self.counted])))

    def compute(self) -> dict[str, float]:
        return {"count": self.counted}


@pytest.mark.parametrize(("micro", "most"), [(1, 1), (8, 8), (1000, MOST_AT_ONCE)])
def test_no_more_than_training_takes_and_each_sample_once(micro: int, most: int) -> None:
    task: Any = Counting(131)
    model = torch.nn.Linear(1, 1)
    with process_group():
        assert evaluate(task, model, "validation", torch.device("cpu"), micro) == {"count": 131}
    assert max(task.sizes) == most and model.training
