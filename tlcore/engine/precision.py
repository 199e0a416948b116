"""Which number format a device trains in.

Owns the choice behind `train.precision`. Called by `engine/build.py` and, for its refusals, by `train/`.

On a CPU `auto` means fp32 even where the processor has bf16 instructions: masters, moments and gloo's reductions are fp32 anyway,
and a recipe should give the same figures on a laptop and in CI. bf16 there is taken when a recipe asks for it by name.
"""

from __future__ import annotations

from typing import Literal

import torch

from tlcore.errors import RequestError
from tlcore.recipe import Recipe

Format = Literal["fp32", "bf16", "fp16"]

MODEL_DTYPES: dict[Format, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(recipe: Recipe, device: torch.device) -> Format:
    """The format this recipe trains in on `device`.

    Stage 0 trains in fp32: in 16 bits DeepSpeed keeps its masters outside ZeRO there, where checkpoints do not reach them.

    Raises:
        RequestError: the device has no such format, or stage 0 has not.
    """
    asked, stage = recipe.train.precision, recipe.deepspeed.zero_stage
    if asked == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native and stage > 0 else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise RequestError(
            "train.precision: fp16 has no loss-scaled training on CPU workers",
            hint="set train.precision to auto, fp32 or bf16, or give each worker a GPU",
        )
    if asked != "fp32" and stage == 0:
        raise RequestError(
            f"train.precision: {asked} needs ZeRO, and deepspeed.zero_stage is 0",
            hint="set deepspeed.zero_stage to 1 (the same memory on one worker, less on several), or train.precision to fp32",
        )
    return asked
