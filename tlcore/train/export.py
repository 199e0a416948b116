"""A checkpoint as a model that `from_pretrained` loads: sharded safetensors, made shard by shard from the store.

Owns the order of it and the memory bound: one shard and what the reader holds, whatever the size of the model, no GPU, no process
group. Does not own what goes into which file (`shards.py`), where files go (`places.py`), nor merging adapters
(`models/stored.py`). Called by the command and by `offline.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from tlcore.checkpoint import CheckpointRef
from tlcore.errors import RequestError
from tlcore.models import quiet
from tlcore.models.stored import StoredWeights, transposed_layers, weights_of
from tlcore.storage.urls import real_place
from tlcore.tasks import Task, build_task
from tlcore.train.places import Place, open_place
from tlcore.train.shards import Layout, Part, cut, plan_parts, revert, shard_names

ExportDtype = Literal["fp32", "bf16", "fp16", "source"]
DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_BYTES: Final = 2_000_000_000
_CONFIG: Final = "config.json"


def export_checkpoint(
    ref: str,
    destination: str,
    *,
    dtype: ExportDtype = "fp32",
    max_shard_bytes: int = SHARD_BYTES,
    on_shard: Callable[[int, int], None] | None = None,
) -> str:
    """Write a checkpoint as a plain transformers model and return where it is.

    LoRA updates are merged. fp32, the default, is what was trained, bit for bit; `source` is the format of the model it was trained
    from.

    Args:
        ref: `<run>/trials/<trial>/step-<n>`, of any ZeRO stage and world size.
        destination: a directory, which appears whole or not at all, or an `s3://` prefix, where config.json comes last.
        max_shard_bytes: of tensors per file; also about what this needs in memory. A larger tensor has a file of its own.
        on_shard: called with (shards written, shards in all).

    Raises:
        RequestError: no such URL, or the destination holds something else, or is what the checkpoint was trained from.
        CheckpointError: no such checkpoint, or damaged. CheckpointIncompatible, ModelError: the model that it belongs to cannot be
            built any more.
    """
    store, manifest = CheckpointRef.parse(ref).open()
    recipe = StoredWeights(store, manifest).recipe
    _check_is_not_source(destination, recipe.model.source)
    task = build_task(recipe, facts=manifest.common["task"])
    model = skeleton(task)
    stored = StoredWeights(store, manifest, transposed_layers(model))
    stored.check(weights_of(model))
    files = _small_files(task, model)
    chosen = _source_dtype(files) if dtype == "source" else DTYPES[dtype]
    place = open_place(destination)
    try:
        write_weights(place, model, stored, chosen, max_shard_bytes, on_shard)
        for name, data in _with_dtype(files, chosen).items():
            place.write(name, data)
        place.commit()
    except BaseException:
        place.abandon()
        raise
    return place.url


def _check_is_not_source(destination: str, source: str) -> None:
    """It looks like an earlier export, and is what other recipes start from."""
    try:
        is_source = real_place(destination) == real_place(source)
    except RequestError:
        return  # a hub id, a package, another form that is no place
    if is_source:
        text = f"{destination} is the model that this checkpoint was trained from (model.source {source!r})"
        raise RequestError(text, hint="name another directory or prefix")


def skeleton(task: Task) -> Any:
    """The task's model without any weights: names, shapes, ties and configuration."""
    with torch.device("meta"), quiet():
        return task.build_model(from_scratch=True)


def _small_files(task: Task, model: Any) -> dict[str, bytes]:
    """Configuration, tokenizer and, where there is one, generation settings and the model's own code."""
    with tempfile.TemporaryDirectory() as name, quiet():
        directory = Path(name)
        if callable(can_generate := getattr(model, "can_generate", None)) and can_generate():
            model.generation_config.save_pretrained(directory)
        if callable(is_remote := getattr(model, "is_remote_code", None)) and is_remote():
            from transformers.dynamic_module_utils import custom_object_save

            custom_object_save(model, directory, config=model.config)
        task.export_extras(directory)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _source_dtype(files: Mapping[str, bytes]) -> torch.dtype:
    """What the source's configuration says, fp32 where it says nothing."""
    config = json.loads(files[_CONFIG])
    said = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return said if isinstance(said, torch.dtype) else torch.float32


def _with_dtype(files: Mapping[str, bytes], dtype: torch.dtype) -> dict[str, bytes]:
    """The same with the exported format in config.json: from_pretrained loads in that one, not in the file's."""
    config = json.loads(files[_CONFIG])
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    return {**files, _CONFIG: _json(config)}


def write_weights(
    place: Place,
    model: Any,
    stored: StoredWeights,
    dtype: torch.dtype,
    max_shard_bytes: int = SHARD_BYTES,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Write the safetensors files of a model, and their index where there are several.

    Args:
        model: on the meta device.
    """
    shards = cut(plan_parts(model, dtype), max_shard_bytes)
    layouts = [Layout.of(target for part in shard for target in part.targets) for shard in shards]
    memory = np.empty(max(layout.size_bytes for layout in layouts), dtype=np.uint8)
    names = shard_names(len(shards))
    for number, (name, layout, shard) in enumerate(zip(names, layouts, shards, strict=True), start=1):
        body = memory[: layout.size_bytes]
        _fill(model, stored, shard, layout.views([target for part in shard for target in part.targets], body))
        place.write(name, body.data)
        if on_shard is not None:
            on_shard(number, len(shards))
    if len(shards) > 1:
        weights = {
            t.name: name for name, shard in zip(names, shards, strict=True) for part in shard for t in part.targets
        }
        total = sum(part.size_bytes for shard in shards for part in shard)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
        place.write("model.safetensors.index.json", _json(index))


def _fill(model: Any, stored: StoredWeights, shard: Sequence[Part], views: Mapping[str, torch.Tensor]) -> None:
    """Read one shard: straight into its place where nothing changes on the way, part by part where something does."""
    stored.read_into({part.sources[0]: views[part.targets[0].name] for part in shard if not part.converted})
    own = model.state_dict()
    for part in shard:
        if part.converted:
            read = {name: torch.empty_like(own[name], device="cpu") for name in part.sources}
            stored.read_into(read)
            for name, tensor in revert(model, read).items():
                views[name].copy_(tensor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
