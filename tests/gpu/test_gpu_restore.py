"""On a CUDA device: bf16 and fp16 train, save and restore, the loss scaler included. Skips itself elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_restored_run_repeats_the_uninterrupted_one(tmp_path: Path, precision: str, stage: int) -> None:
    import json

    from tests.small_model import make_small_bert

    model = make_small_bert(tmp_path / "model")
    changes = {"deepspeed": {"zero_stage": stage}, "train": {"precision": precision}}
    (tmp_path / "cases.json").write_text(json.dumps([{"name": "gpu", "save": changes}]))
    script = ROOT / "tests" / "integration" / "ranks_restore.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", script]
    words = [*launch, tmp_path / "cases.json", model, f"file://{tmp_path}/store", tmp_path / "results.json"]
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=None, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "results.json").read_text())[0]
    assert result["pieced"] == result["whole"]
