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
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    from tlcore.engine.stale import forget_engines

    coordinator, module = Coordinator(), torch.nn.Module()
    module.ds_external_parameters = list
    PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release(coordinator, module, 0)
    kept = weakref.ref(coordinator), weakref.ref(module)
    del coordinator, module
    gc.collect()
    assert all(each() is not None for each in kept), "DeepSpeed has mended it: stale.py can go"
    forget_engines()
    gc.collect()
    assert all(each() is None for each in kept)
