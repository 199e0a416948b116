"""Lazy saves beside real training store what eager ones store, at every ZeRO stage, and change nothing of the training; on two
gloo ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every run's losses and what its checkpoints hold, from one torchrun of two ranks."""
    directory = tmp_path_factory.mktemp("lazy")
    model = make_small_bert(directory / "model")
    output = directory / "runs.json"
    script = ROOT / "tests" / "integration" / "ranks_lazy.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    words = [str(word) for word in (*launch, model, f"file://{directory}/store", output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank"))
    return json.loads(output.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_training_is_the_same_with_lazy_saves(runs: dict[str, Any], stage: int) -> None:
    lazy, eager = runs[f"lazy{stage}"], runs[f"eager{stage}"]
    assert lazy["losses"] == eager["losses"]
    assert len(set(lazy["losses"])) == len(lazy["losses"]) > 5, "equal losses prove nothing where the loss stands still"


@pytest.mark.parametrize("stage", STAGES)
def test_every_lazy_checkpoint_holds_the_bytes_of_the_eager_one(runs: dict[str, Any], stage: int) -> None:
    """By digest, chunk by chunk, rank by rank: a copy that met the optimizer's step would differ."""
    lazy, eager = runs[f"lazy{stage}"], runs[f"eager{stage}"]
    assert list(map(int, lazy["held"])) == list(range(1, len(lazy["losses"]) + 1))
    assert lazy["held"] == eager["held"]
    assert lazy["totals"]["saves"] == len(lazy["losses"])
    assert lazy["totals"]["failed"] == 0
