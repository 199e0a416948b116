"""An engine that was destroyed is nobody's any more."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytestmark = pytest.mark.unit


class Coordinator:
    """As much of one as the cached function asks for."""

    _PartitionedParameterCoordinator__most_recent_step_id_param_fetched_for = None
    _PartitionedParameterCoordinator__submodule_order = ()
    _PartitionedParameterCoordinator__max_reuse_dist_in_numel = 0

    def is_complete_trace(self):
        return True


def test_what_deepspeed_remembers_of_an_engine_is_let_go():
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    from tlcore.engine.stale import forget_engine

    coordinator, module = Coordinator(), torch.nn.Module()
    module.ds_external_parameters = list
    PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release(coordinator, module, 0)
    other = torch.nn.Module()
    FWD_MODULE_STACK[:] = [module, other]
    kept = weakref.ref(coordinator), weakref.ref(module)
    del coordinator
    gc.collect()
    assert kept[0]() is not None, "DeepSpeed has mended it: that part of stale.py can go"
    forget_engine(module)
    assert [other] == FWD_MODULE_STACK
    FWD_MODULE_STACK.clear()
    del module
    gc.collect()
    assert all(each() is None for each in kept)
