"""LoRA or DoRA updates of a checkpoint alone, in peft's own format: what `PeftModel.from_pretrained(base, directory)` loads.

Owns the names and the configuration peft expects. Merging the updates into a whole model is `export.py`'s. Called by the command.

Beside the updates, what was trained whole (a head, and what follows the last block with it) goes along as peft's
`modules_to_save`, module by module; an adapter of a language model has none.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save

from tlcore.checkpoint import CheckpointRef
from tlcore.errors import RequestError
from tlcore.models import resolve_source
from tlcore.models.stored import StoredWeights
from tlcore.recipe import Recipe
from tlcore.tasks import Task, build_task
from tlcore.train.places import open_place

_PREFIX: Final = "base_model.model."
_PARTS: Final = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_PEFT_TASKS: Final = {
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "summarization": "SEQ_2_SEQ_LM",
    "translation": "SEQ_2_SEQ_LM",
    "text-generation": "CAUSAL_LM",
}
"""What peft calls the tasks that it knows: with it, its `AutoPeftModelFor...` loads base and adapter at once."""
_PACKAGE: Final = "package:"
_NOT_OURS: Final = "config.json"
"""A directory with both is a whole model to some loaders."""


def export_adapter(ref: str, destination: str) -> str:
    """Write the updates and what was trained whole, in fp32, and return where they are.

    Says so in a line where peft cannot find the base elsewhere by the name that the adapter gives it.

    Args:
        ref, destination: as `export_checkpoint` takes them.

    Raises:
        RequestError: the checkpoint has no updates; else as `export_checkpoint` does.
    """
    store, manifest = CheckpointRef.parse(ref).open()
    stored = StoredWeights(store, manifest)
    if not stored.updated:
        raise RequestError(
            f"{ref} has no adapter: it was trained with transfer.strategy {stored.recipe.transfer.strategy}",
            hint="leave out --adapter to export the whole model",
        )
    recipe = stored.recipe
    task = build_task(recipe, facts=manifest.common["task"])
    tensors, layers = _updates(stored)
    whole = _trained_whole(stored)
    read = {name: torch.empty(stored.shape(name) or (), dtype=torch.float32) for name in whole}
    stored.read_into(read)
    tensors |= {_PREFIX + name: tensor for name, tensor in read.items()}
    place = open_place(destination)
    try:
        for name, data in _small_files(task, recipe, layers, whole).items():
            place.write(name, data)
        place.write("adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
        place.commit()
    except BaseException:
        place.abandon()
        raise
    if line := _base_line(recipe.model.source):
        logging.getLogger(__name__).warning("%s", line)
    return place.url


def _updates(stored: StoredWeights) -> tuple[dict[str, torch.Tensor], list[str]]:
    tensors: dict[str, torch.Tensor] = {}
    layers = []
    for layer, parts in stored.read_updates():
        layers.append(layer)
        # a layer without DoRA's lengths has the first two
        for name, part in zip(_PARTS, parts, strict=False):
            tensors[f"{_PREFIX}{layer}.{name}"] = part
    return tensors, layers


def _trained_whole(stored: StoredWeights) -> list[str]:
    """Parameters that were trained and are no update."""
    parameters = stored.manifest.parameters
    return [name for name in stored.names if (facts := parameters.get(name)) and facts.trained and not facts.tied_to]


def _small_files(task: Task, recipe: Recipe, layers: list[str], whole: list[str]) -> dict[str, bytes]:
    from peft import LoraConfig

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        task.export_extras(directory)
        (directory / _NOT_OURS).unlink()
        settings: dict[str, Any] = {
            "r": recipe.transfer.lora_rank,
            "lora_alpha": recipe.transfer.lora_alpha,
            "lora_dropout": recipe.transfer.dropout or 0.0,
            "target_modules": layers,
            "use_dora": recipe.transfer.strategy == "dora",
            # None and not empty: that is what servers ask for
            "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
            "bias": "none",
            "task_type": _PEFT_TASKS.get(recipe.task),
            "base_model_name_or_path": _base(recipe),
            "inference_mode": True,
        }
        LoraConfig(**settings).save_pretrained(name)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _base(recipe: Recipe) -> str:
    """The source as other tools can load it: an installed package by its directory."""
    model = recipe.model
    if not model.source.startswith(_PACKAGE):
        return model.source
    return str(resolve_source(model.source, model.revision, model.trust_remote_code).directory)


def _base_line(source: str) -> str | None:
    """What to know of a base that peft does not find everywhere; None for a hub id."""
    if CheckpointRef.is_one(source):
        what = "is a checkpoint, which peft cannot load: export that one and give its directory"
    elif source.startswith(_PACKAGE) or Path(source).exists():
        what = "is a directory of this machine: elsewhere give one of the same weights"
    elif ":" in source or source.startswith("~"):
        what = "is no hub id nor directory, which is what peft can load: give one of the same weights"
    else:
        return None
    return f"the adapter's base, {source!r}, {what} as base_model_name_or_path in adapter_config.json"
