"""What an engine's model was made of is told where it is not all the source's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_text_model import tiny_recipe

from tlcore.tasks import build_task
from tlcore.train.making import say_what_is_new

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("strategy", "lines"), [("full", 1), ("scratch", 0)])
def test_what_a_pretrained_source_lacks_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, strategy: str, lines: int
) -> None:
    recipe = tiny_recipe(tmp_path, transfer__strategy=strategy)
    file = tmp_path / "model" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("embeddings.LayerNorm.")}
    save_file(kept, file, metadata={"format": "pt"})
    model: Any = build_task(recipe).build_model(from_scratch=strategy == "scratch")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            say_what_is_new(model, recipe)
    assert len(caplog.messages) == lines
    assert all("has no bert.embeddings.LayerNorm.bias" in line for line in caplog.messages)
