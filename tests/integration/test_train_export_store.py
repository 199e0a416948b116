"""Exports of real size and to a real store: memory bounded by the shard, not by the model; objects that load from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from tiny_text_model import save_tiny_bert, save_tokenizer, tiny_recipe

from tests.stored_model import store_model
from tlcore.errors import RequestError
from tlcore.storage import ObjectStore, open_store
from tlcore.tasks import build_task
from tlcore.train.adapter import export_adapter
from tlcore.train.export import export_checkpoint
from tlcore.transfer import apply_strategy

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MB = 1_000_000
SHARD = 50 * MB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A checkpoint of 400 MB of weights, and their exact size."""
    from transformers import BertConfig, BertForSequenceClassification

    home = tmp_path_factory.mktemp("large")
    (home / "model").mkdir()
    config = BertConfig(
        vocab_size=save_tokenizer(home / "model"), hidden_size=1024, num_hidden_layers=8, num_attention_heads=8,
        intermediate_size=4096, max_position_embeddings=16,
    )  # fmt: skip
    config.save_pretrained(home / "model")
    model = BertForSequenceClassification(config)
    url = store_model(open_store(f"file://{home}/run"), model, tiny_recipe(home))
    return url, sum(parameter.nbytes for parameter in model.parameters())


def test_an_export_needs_a_shard_of_memory_and_not_the_model(large: tuple[str, int], tmp_path: Path) -> None:
    url, size = large
    assert size > 400 * MB
    script = ROOT / "tests" / "integration" / "export_memory.py"
    words = [sys.executable, str(script), url, str(tmp_path), str(SHARD), "fp32", "bf16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    for dtype, expected in (("fp32", size), ("bf16", size // 2)):
        assert peaks[dtype] - peaks["baseline"] < 250 * MB
        files = sorted((tmp_path / dtype).glob("*.safetensors"))
        assert expected < sum(path.stat().st_size for path in files) < expected + MB
        assert all(path.stat().st_size <= SHARD + MB for path in files)
        assert len(files) >= expected // SHARD


def test_an_export_to_a_store_loads_from_there(s3_store: ObjectStore, tmp_path: Path) -> None:
    """As `model.source` of another recipe; a second, smaller export leaves nothing of the first behind."""
    recipe = tiny_recipe(tmp_path, transfer__strategy="lora")
    model: Any = build_task(recipe).build_model(from_scratch=False)
    apply_strategy(model, recipe)
    torch.nn.init.normal_(model.classifier.weight)
    url = store_model(open_store(f"{s3_store.url}/run"), model, recipe)
    place = f"{s3_store.url}/export"
    assert export_checkpoint(url, place, max_shard_bytes=3000) == place
    keys = {each.key for each in open_store(place).list()}
    assert "model.safetensors.index.json" in keys and len(keys) > 6
    again: Any = build_task(tiny_recipe(tmp_path, model__source=place)).build_model(from_scratch=False)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    export_checkpoint(url, place)
    keys = {each.key for each in open_store(place).list()}
    assert keys == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    export_adapter(url, f"{s3_store.url}/adapter")
    keys = {each.key for each in open_store(f"{s3_store.url}/adapter").list()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= keys and "config.json" not in keys


def test_a_prefix_that_holds_something_else_is_left_alone(s3_store: ObjectStore, tmp_path: Path) -> None:
    save_tiny_bert(tmp_path / "model")
    recipe = tiny_recipe(tmp_path)
    model = build_task(recipe).build_model(from_scratch=False)
    url = store_model(open_store(f"file://{tmp_path}/run"), model, recipe)
    s3_store.put("mine/thesis.txt", b"years of work")
    with pytest.raises(RequestError, match="holds objects and is no exported model"):
        export_checkpoint(url, f"{s3_store.url}/mine")
    assert [each.key for each in s3_store.list("mine/")] == ["mine/thesis.txt"]
