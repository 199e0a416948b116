"""A model in the format that it is trained in, but for what must not be rounded.

Owns which buffers stay in fp32. `nn.Module.to(dtype)` rounds all of them, and two kinds are spoilt by bf16 and fp16. The
frequencies of rotary positions (`inv_freq`, never stored): rounded to bf16 they are off by up to 0.2 %, which is radians after a
thousand tokens, so that training would see other places than pre-training did and than the export has. The running statistics of
batch norms: a step of a hundredth of the way is less than a bf16 can tell, so that they stop short. transformers keeps the former
when it loads in half precision, torch's automatic mixed precision the latter. Called by `sharded.py` and `partition.py`.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_STATISTICS = ("running_mean", "running_var")


def move_parameters(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Every parameter to `device`, floating ones in `dtype`, in place."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else parameter.dtype)


def move_buffers(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Every buffer to `device`, floating ones in `dtype` but for those that stay in fp32; batch norms then take both formats."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            wanted = dtype if buffer.is_floating_point() and not _stays(module, name) else buffer.dtype
            setattr(module, name, buffer.to(device, wanted))
        if type(module) in _NORMS and dtype != torch.float32:
            module.forward = MethodType(_batch_norm, module)


def _stays(module: nn.Module, name: str) -> bool:
    """Frozen batch norms, whose weights are buffers too, are no norms in this sense: nothing moves them."""
    norm = type(module) in _NORMS or getattr(module, "fp32_statistics", False)
    return name.endswith("inv_freq") or (norm and name in _STATISTICS)


def _batch_norm(self: nn.BatchNorm2d, values: Tensor) -> Tensor:
    """As `_BatchNorm.forward`; torch wants scale and shift in the format of the statistics, whatever the values are in."""
    self._check_input_dim(values)
    momentum = self.momentum or 0.0
    if self.training and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
    measured = self.training or self.running_mean is None
    scale, shift = (None if each is None else each.float() for each in (self.weight, self.bias))
    return functional.batch_norm(
        values, self.running_mean, self.running_var, scale, shift, measured, momentum, self.eps
    )
