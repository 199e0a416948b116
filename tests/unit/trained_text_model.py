"""A tiny text classifier that was trained, its checkpoint, and how its export is loaded: for the tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_text_model import tiny_recipe

from tests.stored_model import store_model
from tlcore.models import quiet
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.transfer import apply_strategy


class Trained:
    """A tiny BERT classifier whose weights, adapters too, are not those it began with, and its checkpoint."""

    def __init__(self, home: Path, **changes: Any) -> None:
        self.recipe = tiny_recipe(home, **changes)
        self.task = build_task(self.recipe, facts={"labels": ["neg", "pos"]})
        self.model: Any = self.task.build_model(from_scratch=False)
        apply_strategy(self.model, self.recipe)
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        self.model.eval()
        self.store = open_store(f"file://{home}/run")
        self.url = store_model(self.store, self.model, self.recipe)

    def logits(self, model: Any) -> torch.Tensor:
        tokens = torch.tensor([[2, 4, 6, 3], [2, 7, 5, 3]])
        with torch.no_grad():
            found: torch.Tensor = model.eval()(input_ids=tokens).logits.float()
        return found


def load(directory: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(directory)
