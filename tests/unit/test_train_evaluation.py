"""How many samples an evaluation takes at a time, and which are shown with the model's answers."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
import torch

from tlcore.train.evaluation import EXAMPLE_BYTES, MOST_AT_ONCE, answered, evaluate
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


class Telling:
    """A task whose answers are as long as its inputs, and that cannot be asked while the model trains."""

    def examples(self, split: str, count: int) -> Any:
        rows = [("good film", date(2026, 11, 28)), ("x" * EXAMPLE_BYTES, 1), ("bad film", 0)]
        return [] if split == "validation" else rows[:count]

    def predict(self, model: torch.nn.Module, inputs: list[str]) -> Any:
        assert not model.training
        return [{"prediction": text, "score": 0.5} for text in inputs]


def test_the_first_samples_are_shown_with_the_models_answers_as_json_has_them_and_none_that_is_too_large() -> None:
    task: Any = Telling()
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1).eval())
    assert answered(task, model, "test", 3) == [
        {"input": "good film", "expected": "2026-11-28", "prediction": "good film", "score": 0.5},
        {"input": "bad film", "expected": 0, "prediction": "bad film", "score": 0.5},
    ]
    assert answered(task, model, "validation", 3) == []
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
