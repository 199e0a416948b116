"""Small actors where their caller is.

Owns the placement of what lives and dies with one process: the board beside the driver, a mailbox beside its slot. Ray puts an
actor without CPUs anywhere; on another node, that node's death would end a sweep that has lost nothing else. Called by `board.py`
and `mailbox.py`.
"""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_caller() -> NodeAffinitySchedulingStrategy:
    """On the caller's node and no other."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
