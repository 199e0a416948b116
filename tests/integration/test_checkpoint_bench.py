"""The checkpoint bench runs end to end, every section of it, at a size where its times mean nothing; what it counts is checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.checkpoint.figures import GPU_TARGETS, TARGETS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SMALL = ["--quick", "--sizes", "0.012", "--rounds", "1", "--width", "256", "--interval", "0.5", "--json"]


def run_bench(scratch: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.bench.checkpoint", *SMALL, "--scratch", str(scratch), *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-5000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_section_gives_its_figures(tmp_path: Path) -> None:
    report = run_bench(tmp_path, "--peers", "dcp_fsspec,torch_save_s3fs")
    assert set(TARGETS) - set(report) == {"stall_over_ray_sync"}, "Ray Train is measured by the long test below"
    assert set(report["not_measured"]) == set(GPU_TARGETS)
    assert report["disk_bytes_written"] == 0
    assert report["lora_repeat_over_trainable"] <= 1.02
    assert report["clone_bytes"] < 1 << 20
    size = report["sizes"]["0.012"]
    saved = size["counts"]["per_save"]
    assert saved["chunk_bytes"] == saved["state_bytes"]
    assert size["counts"]["lora"]["adapter_bytes"] >= 50e6
    assert set(report["peers"]) == {"tlcore", "dcp_fsspec", "torch_save_s3fs"}
    for row in report["peers"].values():
        assert row["save_s"]["value"] >= row["stall_s"]["value"] > 0


@pytest.mark.long
def test_deepspeed_and_ray_train_as_peers(tmp_path: Path) -> None:
    report = run_bench(tmp_path, "--only", "peers", "--peers", "ray_sync,ray_async")
    assert report["peers"]["ray_sync"]["disk_bytes_written"]["value"] > 1e7, "DeepSpeed's save goes to a local disk"
    assert report["stall_over_ray_sync"] > 0
