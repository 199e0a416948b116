"""Whether the kernel has killed processes for want of memory: the only trace that such a kill leaves for those who live on.

A rank that the kernel kills dies by SIGKILL without a word, as one does that an operator kills. What tells them apart is the
kernel's count of its own kills: of the container where there is one, else of the machine. Each rank notes it when it joins;
`group.py` has it read again on the node of a rank that died.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_COUNTERS: Final = ("sys/fs/cgroup/memory.events", "proc/vmstat")
_ASK_S: Final = 20.0


def oom_kills(root: str = "/") -> int | None:
    """Processes that the kernel has killed here for want of memory; None where it does not say."""
    for name in _COUNTERS:
        with suppress(OSError):
            for line in Path(root, name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return None


def oom_kills_on(node_id: str) -> int | None:
    """The same on a node of the cluster; None also where it cannot be asked."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    asked = ray.remote(oom_kills).options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote()
    try:
        count: int | None = ray.get(asked, timeout=_ASK_S)
    except (GetTimeoutError, RayError):
        return None
    return count


def has_killed(before: int | None, now: int | None) -> bool:
    """Whether the kernel has killed something between two counts."""
    return before is not None and now is not None and now > before
