"""The keys of DeepSpeed's configuration: those that tlcore sets itself, by which setting a recipe reaches them, and the others.

Owns the tables for `deepspeed.extra`; the configuration itself is built in `engine/`. Read in DeepSpeed 0.19.8's
`runtime/config.py` and `runtime/zero/config.py`. Called by `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown
from tlcore.recipe.fields import close_to

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

FREE: Final = (
    "aio",
    "autotuning",
    "comms_logger",
    "communication_data_type",
    "compression_training",
    "curriculum_learning",
    "data_efficiency",
    "data_parallel_size",
    "dataloader_drop_last",
    "datastates_ckpt",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "eigenvalue",
    "expert_parallel",
    "flops_profiler",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "graph_harvesting",
    "hybrid_engine",
    "log_level",
    "memory_breakdown",
    "nebula",
    "pipeline",
    "prescale_gradients",
    "progressive_layer_drop",
    "quantize_training",
    "seq_parallel_communication_data_type",
    "sequence_parallel_size",
    "sparse_attention",
    "sparse_gradients",
    "steps_per_print",
    "tensor_parallel",
    "timers",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "weight_quantization",
    "zero_optimization",
)
"""Every other key that DeepSpeed reads at the top level. Whatever stands there beside these it ignores without a word."""

LAYOUTS: Final = ("round_robin_gradients", "mics_shard_size", "zenflow")
"""Keys of `zero_optimization` that lay the state out otherwise than checkpoints read it."""


def owned_faults(extra: dict[str, Any]) -> Iterator[Fault]:
    """One fault per key of `deepspeed.extra` that is tlcore's own, or nobody's."""
    for key, instead in OWNED.items():
        value: Any = extra
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            yield Fault(f"deepspeed.extra.{key}", f"is set by tlcore; take it out and use {instead}")
    for key in extra:
        if key not in FREE and key not in OWNED:
            meant = close_to(key, FREE)
            text = f"did you mean {meant}?" if meant else "see DeepSpeed's documentation, or take it out"
            yield Fault(
                f"deepspeed.extra.{key}", f"is no key of DeepSpeed's configuration, which would ignore it; {text}"
            )
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
