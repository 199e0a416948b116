"""A model's weights into ZeRO-3 partitions, one parameter at a time.

Owns the way from the file that a source's weights are mapped from to each rank's part. `deepspeed.zero.Init` alone wants the whole
model in the training format first, in host memory on every rank, and broadcasts each parameter from rank 0. Here
a rank reads no more of a mapped parameter than its own part, casts that and moves it: the ranks of a node together read each byte
once, through the page cache that they share, nothing is sent, and no rank holds more of the model than its part and the largest
parameter. What no file carries (new heads, adapters, a net from scratch) ranks may have drawn differently, so it is rank 0's, and
broadcast as DeepSpeed does. Called by `sharded.py`, at stage 3.

transformers' own way under ZeRO-3 reads every file whole into the host memory of every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from tlcore.engine.formats import move_buffers
from tlcore.models import is_carried


def partition(model: torch.nn.Module, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Leave each rank its part of every parameter, in `dtype`, where `config` keeps parts; buffers whole on `device`, as
    `formats.py` says. All ranks together; `deepspeed.initialize` then finds a model that is partitioned already.

    Args:
        config: what `deepspeed.initialize` will be given.
    """
    move_buffers(model, device, dtype)
    # as `deepspeed.initialize` does first of all: its configuration asks for the number of ranks
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), dist_init_required=False)
    _PartByPart(model, config, device, dtype)


class _PartByPart(deepspeed.zero.Init):
    """DeepSpeed's partitions, filled as above."""

    def __init__(
        self, model: torch.nn.Module, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._device, self._format = device, dtype
        super().__init__(module=model, config_dict_or_path=dict(config), dtype=dtype)

    def _convert_to_zero_parameters(self, param_list: Iterable[torch.nn.Parameter]) -> None:
        """Called by DeepSpeed with the model's parameters."""
        for parameter in param_list:
            if hasattr(parameter, "ds_id"):
                continue
            dtype = self._format if parameter.is_floating_point() else parameter.dtype
            if is_carried(parameter):
                self._take_part(parameter, dtype)
            else:
                parameter.data = parameter.data.to(device=self._device, dtype=dtype)
                self._take_from_rank_0(parameter)

    def _take_from_rank_0(self, parameter: Any) -> None:
        if parameter.dim():
            self._zero_init_param(parameter)
            return
        # the same without a view of its bytes, which torch has none of where there is no dimension
        self._convert_to_deepspeed_param(parameter)
        dist.broadcast(parameter.data.view(1), group_src=0, group=self.get_partition_dp_group(parameter))
        parameter.partition()

    def _take_part(self, parameter: Any, dtype: torch.dtype) -> None:
        whole = parameter.data
        # memory that is never written costs nothing on the host: of it, `partition` reads this rank's part alone
        parameter.data = torch.empty(whole.shape, dtype=dtype, device=self._device)
        self._convert_to_deepspeed_param(parameter)
        size = self._aligned_size(parameter) // self._partition_world_size(parameter)
        start = size * self._partition_rank(parameter)
        part = whole.reshape(-1)[start : start + size]
        parameter.data.view(-1)[start : start + part.numel()].copy_(part)
        parameter.partition()
