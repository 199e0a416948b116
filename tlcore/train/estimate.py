"""How much memory each worker of a recipe's trial needs, before anything is started.

Owns the assembly: the task's own model and largest micro-batch over fake tensors, the transfer strategy, one counted pass, and
what DeepSpeed holds around it; and what a worker holds besides: its process, and room for two snapshots. No weights and no data are
read; where the recipe does not list the classes, a head of two stands for theirs. Works for a GPU on a machine that has none.

As a program it answers requests, one JSON object a line, so that whoever asks loads no torch (`sweep/cluster/fit.py` starts it):

    {"recipe": ..., "on_gpu": false} -> {"device_bytes": 0, "host_bytes": 123} or {"unknown": why}, or {"error": class, ...}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tlcore.engine.process import CUDA_BYTES, prepare_process
from tlcore.errors import TlcoreError
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict

PROCESS_BYTES: Final = 900 << 20
"""Resident in a worker that has trained a model of no size: 0.85 to 0.95 GB with torch, transformers, DeepSpeed and Ray loaded."""
_CPU_HALVES: Final = ("bf16", "fp16")


class Estimator:
    """Counts passes once for all recipes that share them."""

    def __init__(self) -> None:
        self._passes: dict[str, Any] = {}

    def estimate(self, recipe: Recipe, on_gpu: bool) -> dict[str, int]:
        """Most bytes of any rank: `device_bytes` on its GPU, `host_bytes` in host memory, the whole process.

        Raises:
            TlcoreError: the recipe cannot be trained (no such source, another number of blocks).
        """
        from tlcore.engine.config import bucket_elements
        from tlcore.engine.zero_memory import Setup, rank_memory

        batch = plan_batch(recipe, recipe.resources.workers)
        item = 2 if self._half(recipe, on_gpu) else 4
        weights, buffers, passes = self._counted(recipe, batch.micro_batch_size, item, on_gpu)
        trained = sum(weight.elements for weight in weights if weight.trained)
        setup = Setup.of(recipe, item, on_gpu, bucket_elements(trained), batch.accumulation_steps > 1)
        found = rank_memory(setup, weights, buffers, passes)
        held = PROCESS_BYTES + found.host_bytes + _copied_bytes(recipe, trained)
        return {"device_bytes": found.device_bytes + CUDA_BYTES if on_gpu else 0, "host_bytes": held}

    def _half(self, recipe: Recipe, on_gpu: bool) -> bool:
        asked = recipe.train.precision
        return asked in _CPU_HALVES or (asked == "auto" and on_gpu and recipe.deepspeed.zero_stage > 0)

    def _counted(self, recipe: Recipe, samples: int, item: int, on_gpu: bool) -> Any:
        train = recipe.train
        key = json.dumps(
            [recipe.to_dict()[section] for section in ("task", "model", "data", "transfer")]
            + [samples, item, on_gpu, train.activation_checkpointing, train.optimizer == "muon", train.weight_decay]
        )
        if key not in self._passes:
            self._passes[key] = _count(recipe, samples, item, on_gpu)
        return self._passes[key]


def _copied_bytes(recipe: Recipe, trained: int) -> int:
    """Two saves of a rank's share of masters and moments, or what the recipe allows; where a schedule unfreezes, one share more,
    which is handed from engine to engine (`engine/carry.py`)."""
    allowed = recipe.checkpoint.memory_bytes
    from tlcore.engine.zero_memory import states_of

    share = 4 * trained * (1 + states_of(recipe.train.optimizer)) // recipe.resources.workers
    saves = 2 * share if allowed == "auto" else min(2 * share, allowed)
    return saves + (share if recipe.transfer.strategy == "gradual" else 0)


def _count(recipe: Recipe, samples: int, item: int, on_gpu: bool) -> Any:
    """The trial's weights, bytes of its buffers, and what its passes take."""
    import torch

    from tlcore.engine.activations import checkpoint_activations, count_pass, nothing_allocated
    from tlcore.engine.zero_memory import Weight
    from tlcore.models import quiet
    from tlcore.tasks import build_without_data
    from tlcore.transfer import apply_strategy, parameter_groups

    task = build_without_data(recipe)
    with quiet(), nothing_allocated(), _attention_as_on(on_gpu):
        model = task.build_model(from_scratch=True)
        if recipe.transfer.strategy != "scratch":
            forget_what_is_new(model)
        apply_strategy(model, recipe)
        if recipe.train.activation_checkpointing:
            checkpoint_activations(model)
        if item == 2:
            model.to(torch.bfloat16)
        groups = parameter_groups(model, recipe)
        muon = {name for group in groups if group["muon"] for name in group["names"]}
        number = {name: index for index, group in enumerate(groups) for name in group["names"]}
        weights = [
            Weight(name, _elements(each, item), each.requires_grad, number.get(name, 0), name in muon)
            for name, each in model.named_parameters()
        ]
        buffers = sum(each.numel() * each.element_size() for each in model.buffers())
        batch = task.largest_batch(samples)
        passes = count_pass(model, lambda: task.loss(model, batch))
    return weights, buffers, passes


def _elements(parameter: Any, item_bytes: int) -> int:
    """Of the training format; a weight in a format of its own (four bits) counts as those that its bytes would be."""
    count = int(parameter.numel())
    return count if parameter.is_floating_point() else -(-count * parameter.element_size() // item_bytes)


def forget_what_is_new(model: Any) -> None:
    """A model that was made without its weights has no new parameters to speak of: its head is known by where it stands."""
    from tlcore.models.build import mark_new

    mark_new(model, frozenset())


@contextmanager
def _attention_as_on(gpu: bool) -> Iterator[None]:
    """A GPU's fused attention drops weights inside its kernel; a CPU's saves them all to do so, and would be counted with that."""
    import torch.nn.functional as functional

    plain = functional.scaled_dot_product_attention
    if not gpu:
        yield
        return

    def fused(*args: Any, **more: Any) -> Any:
        return plain(*args, **{**more, "dropout_p": 0.0})

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def answer(estimator: Estimator, request: Mapping[str, Any]) -> dict[str, Any]:
    """One request of the program above."""
    try:
        return {**estimator.estimate(recipe_from_dict(request["recipe"]), request["on_gpu"])}
    except TlcoreError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:  # noqa: BLE001 (whatever a model's code does over fake tensors: then its memory is not known)
        return {"unknown": f"{type(error).__name__}: {error}".splitlines()[0]}


def main() -> None:
    """Answer until there is nothing more to read."""
    prepare_process()
    estimator = Estimator()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(estimator, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
