"""How much memory the GPUs of each node have, which Ray does not tell.

Owns the question, put to nvidia-smi on each node that has GPUs. Called by `runner.py` and `planning.py`, with Ray up.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tlcore.sweep.cluster.resources import NODE_ID, Node

_ANSWER_S = 20.0


def with_gpu_memory(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, each with the memory of its smallest GPU; None where it has none, or does not say."""
    with_gpus = [
        node.labels[NODE_ID] for node in nodes if node.resources.get("GPU", 0.0) > 0 and NODE_ID in node.labels
    ]
    if not with_gpus:
        return list(nodes)
    ask = ray.remote(num_cpus=0)(_here)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in with_gpus
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    found: dict[str | None, float | None] = {}
    for answer in answered:
        with suppress(RayError):  # a node that left meanwhile says nothing of the others
            found[asked[answer]] = ray.get(answer)
    return [replace(node, gpu_bytes=found.get(node.labels.get(NODE_ID))) for node in nodes]


def _here() -> float | None:
    return smallest(gpu_memories())


def smallest(memories: Sequence[float | None]) -> float | None:
    """The smallest of these GPUs; None where there is none, or one's memory is not known."""
    known = [memory for memory in memories if memory is not None]
    return min(known, default=None) if len(known) == len(memories) else None


def gpu_memories() -> list[float | None]:
    """Memory of each NVIDIA GPU of this machine, bytes; None for one that has none of its own to tell of, such as one that shares
    its host's."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [float(line) * 2**20 if line.strip().isdigit() else None for line in said.splitlines() if line.strip()]
