"""Which number format a device trains in.

Owns the choice behind `train.precision`. Called by `sharded.py`.

On a CPU `auto` means fp32 even where the processor has bf16 instructions: masters, moments and gloo's reductions are fp32 anyway,
and a recipe should give the same figures on a laptop and in CI. bf16 there is taken when a recipe asks for it by name.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

from tlcore.errors import RequestError
from tlcore.recipe import Recipe

Format = Literal["fp32", "bf16", "fp16"]

MODEL_DTYPES: dict[Format, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(recipe: Recipe, device: torch.device) -> Format:
    """The format this recipe trains in on `device`.

    Stage 0 trains in fp32: in 16 bits DeepSpeed keeps its masters outside ZeRO there, where checkpoints do not reach them. A recipe
    that asks for them by name is refused (`recipe/checks.py`).

    Raises:
        RequestError: the device has no such format.
    """
    asked, stage = recipe.train.precision, recipe.deepspeed.zero_stage
    if asked == "auto":
        return "bf16" if stage > 0 and _all_have_bf16(device) else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise RequestError(
            "train.precision: fp16 has no loss-scaled training on CPU workers",
            hint="set train.precision to auto, fp32 or bf16, or give each worker a GPU",
        )
    return asked


def _all_have_bf16(device: torch.device) -> bool:
    """Whether every rank's device computes in bf16: ranks of a mixed group must not choose for themselves."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if not (dist.is_initialized() and device.type == "cuda"):
        return native
    least = torch.tensor(int(native), device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return bool(least.item())
