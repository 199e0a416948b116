"""Any torch module as a committed checkpoint of one rank, without training it: for tests of what reads weights back."""

from __future__ import annotations

from typing import Any

import numpy as np

from tlcore.recipe import Recipe
from tlcore.storage import ObjectStore


def store_model(
    store: ObjectStore,
    model: Any,
    recipe: Recipe,
    labels: tuple[str, ...] = ("neg", "pos"),
    step: int = 5,
    metrics: dict[str, float] | None = None,
    task_facts: dict[str, Any] | None = None,
) -> str:
    """Commit the model's weights (no moments) as `step` of trial t000, where `metrics` were measured; returns its URL.
    `task_facts` stand in place of `labels`."""
    import torch

    from tlcore.checkpoint import CheckpointRef, CheckpointWriter, Piece, Row, WriterSettings, next_attempt
    from tlcore.engine.state import parameter_table

    table = parameter_table(model)
    pieces = []
    buffers = dict(model.named_buffers())
    for name, facts in table.items():
        tensor = buffers.get(name)
        state = "buffer"
        if tensor is None:
            tensor, state = model.get_parameter(name).data, "fp32" if facts["trained"] else "frozen"
        if facts["tied_to"] is None and tensor.numel():
            data = np.frombuffer(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy(), dtype=np.uint8)
            pieces.append(Piece(Row(name, state, 0, tensor.numel(), facts["dtype"]), data))
    common = {
        "parameters": table,
        "scalars": {"optimizer_steps": step, "loss_scaler": None, "step": step, "global_batch_size": 8},
        "precision": "fp32",
        "recipe": recipe.to_dict(),
        "task": {"labels": list(labels)} if task_facts is None else task_facts,
        "metrics": metrics or {},
    }
    settings = WriterSettings(memory_bytes=128 << 20)
    with CheckpointWriter(store, "t000", 0, 1, next_attempt(store, "t000"), settings) as writer:
        writer.save(step, pieces, common)
        writer.wait()
    return str(CheckpointRef(store.url, "t000", step))
