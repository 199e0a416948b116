"""GPU memory asked of each node of a real Ray that believes in two GPUs. In a process of its own, since it is another Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, logging, ray
from tlcore.sweep.cluster.gpus import with_gpu_memory
from tlcore.sweep.cluster.resources import NODE_ID, Cluster, Node
ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
left = Node({"GPU": 1.0}, {NODE_ID: "ab" * 28})
found = with_gpu_memory([*Cluster().nodes(), left, Node({"CPU": 1.0}, {})])
print(json.dumps([node.gpu_bytes for node in found]))
"""


def test_each_node_tells_its_smallest_gpu_and_one_that_left_hides_no_other(tmp_path: Path) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 81559\necho 16384\n")
    command.chmod(0o755)
    places = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **places, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [16384 << 20, None, None]
