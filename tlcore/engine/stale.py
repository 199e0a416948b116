"""What DeepSpeed keeps of an engine that was destroyed, let go of.

Owns two known leaks of ZeRO-3. The parameter coordinator remembers which parameters each module may release in an `lru_cache` of
the class, without a bound, whose keys hold the coordinator and the modules (`zero/partitioned_param_coordinator.py`). And each
engine puts its model at the bottom of a list that it is never taken off (`FWD_MODULE_STACK` of `zero/parameter_offload.py`). Either
alone keeps every engine that a process ever had, with its reduction buffer: 16.5 MB a trial with a model of no size. Called by
`sharded.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

_CACHED = "_PartitionedParameterCoordinator__params_to_release"
_STACK = "FWD_MODULE_STACK"


def forget_engine(model: torch.nn.Module) -> None:
    """Take the model of a destroyed engine off DeepSpeed's list and empty its cache, which an engine that still lives fills again
    with its next step. Does nothing where there is neither."""
    stack: list[Any] = getattr(parameter_offload, _STACK, [])
    stack[:] = [each for each in stack if each is not model]
    function: Any = getattr(PartitionedParameterCoordinator, _CACHED, None)
    # its decorator keeps what it wraps in a closure, and says so nowhere else
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    for each in (function, *inside):
        if hasattr(each, "cache_clear"):
            each.cache_clear()
