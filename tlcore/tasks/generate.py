"""Text produced by a model, on all ranks together.

Owns the call of transformers' `generate` and its settings. Called by the tasks that judge or show produced text.

Under ZeRO-3 every forward pass is a collective, and ranks' texts end at different steps: where all ranks produce together,
`synced_gpus` keeps those that have ended running until all have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlcore.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


def generate(model: nn.Module, inputs: Batch, *, together: bool, **settings: Any) -> Tensor:
    """Token ids [B, T] of what the model produces for `inputs`, which go to its device. Greedy, or beams by `num_beams`.

    Args:
        together: every rank of the process group calls this equally often, as in an evaluation; False for one process's own model.
    """
    import torch
    import torch.distributed as dist

    device = next(model.parameters()).device
    ranks = dist.get_world_size() if together and dist.is_initialized() else 1
    with torch.no_grad():
        produced: Tensor = model.generate(  # type: ignore[operator]
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            do_sample=False,
            synced_gpus=ranks > 1,
            **settings,
        )
    return produced
