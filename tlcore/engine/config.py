"""DeepSpeed's own configuration, made from a recipe.

Owns the translation and nothing that runs. `recipe/` has already refused keys in `deepspeed.extra` that tlcore sets, so the merge
cannot contradict it. Called by `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlcore.engine.precision import Format
from tlcore.recipe import BatchPlan, Recipe

_NEVER_PRINT = 2**31 - 1
_LARGEST_BUCKET_ELEMENTS = 200_000_000


def deepspeed_config(
    recipe: Recipe, batch: BatchPlan, precision: Format, device_type: str, trained_elements: int
) -> dict[str, Any]:
    """The dictionary `deepspeed.initialize` takes.

    Args:
        precision: what `choose_precision` gave.
        device_type: "cuda" or "cpu".
        trained_elements: parameters that get gradients; bounds the communication buckets, which DeepSpeed allocates whole.
    """
    ours: dict[str, Any] = {
        "train_batch_size": batch.global_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.accumulation_steps,
        "gradient_clipping": recipe.train.gradient_clip or 0.0,
        "steps_per_print": _NEVER_PRINT,
        # It waits for the device at every forward and every step, and so for a lazy snapshot's copy as well.
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW, not DeepSpeed's, also where the optimizer is offloaded: see optimizer.py.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": _zero(recipe, device_type, trained_elements),
    }
    return merge(ours, recipe.deepspeed.extra)


def bucket_elements(trained_elements: int) -> int:
    """Size of DeepSpeed's communication buckets: all that is trained, as far as that is reasonable."""
    # Even, or ZeRO 1 and 2 refuse it: they align buckets to two elements.
    return max(2, min(_LARGEST_BUCKET_ELEMENTS, trained_elements + trained_elements % 2))


def _zero(recipe: Recipe, device_type: str, trained_elements: int) -> dict[str, Any]:
    bucket = bucket_elements(trained_elements)
    zero: dict[str, Any] = {
        "stage": recipe.deepspeed.zero_stage,
        "overlap_comm": device_type == "cuda",
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # Checkpoints map intervals through the plain layout.
        "round_robin_gradients": False,
    }
    if recipe.deepspeed.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device_type == "cuda"}
    if recipe.deepspeed.offload_param == "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": device_type == "cuda"}
    return zero


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, section by section."""
    merged = dict(base)
    for key, value in extra.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
