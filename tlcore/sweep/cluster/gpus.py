"""How much memory the cluster's GPUs have, which Ray does not tell.

Owns the question, put to nvidia-smi on each node that has GPUs. Called by `runner.py` and `planning.py`, with Ray up.
"""

from __future__ import annotations

import subprocess

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_S = 20.0


def smallest_gpu_bytes() -> float | None:
    """Memory of the smallest GPU of all nodes; None where one node's is not known, or there is none."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    ask = ray.remote(_here).options(num_cpus=0)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    try:
        found = ray.get(answers, timeout=_ANSWER_S) if answers else []
    except RayError:
        return None
    return None if not found or None in found else min(found)


def _here() -> float | None:
    return min(gpu_memories(), default=None)


def gpu_memories() -> list[float]:
    """Memory of each NVIDIA GPU of this machine, bytes."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [float(word) * 2**20 for word in said.split()]
