"""The keys of DeepSpeed's configuration that tlcore sets itself, and by which setting a recipe reaches them.

Owns the table for `deepspeed.extra`; the configuration itself is built in `engine/`. Read in DeepSpeed 0.19.8's
`runtime/config.py` and `runtime/zero/config.py`. Called by `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown

_BATCH: Final = "train.global_batch_size, train.micro_batch_size and resources.workers"
_CHECKPOINTS: Final = "the checkpoint section; tlcore writes checkpoints itself"
_TRACK: Final = "the track section"

OWNED: Final[dict[str, str]] = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "managed_gradient_accumulation": _BATCH,
    "optimizer": "train.optimizer, train.learning_rate and train.weight_decay",
    "scheduler": "train.lr_schedule and train.warmup_ratio",
    "gradient_clipping": "train.gradient_clip",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "activation_checkpointing": "train.activation_checkpointing",
    "compile": "train.compile",
    "checkpoint": _CHECKPOINTS,
    "elasticity": "resources.workers",
    "zero_allow_untested_optimizer": "train.optimizer",
    "zero_force_ds_cpu_optimizer": "train.optimizer",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "zero_optimization.offload_optimizer": "deepspeed.offload_optimizer",
    "zero_optimization.offload_param": "deepspeed.offload_param",
    "zero_optimization.cpu_offload": "deepspeed.offload_optimizer",
    "zero_optimization.cpu_offload_param": "deepspeed.offload_param",
    "zero_optimization.cpu_offload_use_pin_memory": "deepspeed.offload_optimizer and deepspeed.offload_param",
    "zero_optimization.load_from_fp32_weights": _CHECKPOINTS,
    "zero_optimization.elastic_checkpoint": _CHECKPOINTS,
    "tensorboard": _TRACK,
    "wandb": _TRACK,
    "comet": _TRACK,
    "csv_monitor": _TRACK,
}
"""Key in DeepSpeed's configuration -> what to set instead."""

LAYOUTS: Final = ("round_robin_gradients", "mics_shard_size", "zenflow")
"""Keys of `zero_optimization` that lay the state out otherwise than checkpoints read it."""


def owned_faults(extra: dict[str, Any]) -> Iterator[Fault]:
    """One fault per key of `deepspeed.extra` that is tlcore's own."""
    for key, instead in OWNED.items():
        value: Any = extra
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            yield Fault(f"deepspeed.extra.{key}", f"is set by tlcore; take it out and use {instead}")
    zero = extra.get("zero_optimization", {})
    if isinstance(zero, dict):
        for key in (key for key in LAYOUTS if zero.get(key)):
            text = f"got {shown(zero[key])}, which lays state out otherwise than checkpoints read it; take it out"
            yield Fault(f"deepspeed.extra.zero_optimization.{key}", text)
    else:
        yield Fault(
            "deepspeed.extra.zero_optimization", f"got {shown(zero)}; give a section, the stage is deepspeed.zero_stage"
        )


_ABSENT: Final = object()
