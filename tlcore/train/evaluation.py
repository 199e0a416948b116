"""Metrics of a model on one split, every sample counted once over all ranks.

Owns the evaluation loop. Called by `session.py` (validation, on all ranks of a trial) and `offline.py` (test, on one process).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tlcore.tasks import Split, Task
from tlcore.train.group import sum_over_ranks
from tlcore.train.stepper import to_device

EVALUATION_BATCH = 64


def evaluate(
    task: Task, module: torch.nn.Module, split: Split, device: torch.device, rank: int = 0, world_size: int = 1
) -> dict[str, float]:
    """The task's metrics on `split`, equal on every rank.

    Samples are dealt out longest first, so that ranks pad alike. Every rank runs the same number of batches, since under ZeRO-3 a
    forward pass is a collective; one that has run out repeats a sample and does not count it.
    """
    longest_first = np.argsort(-np.asarray(task.lengths(split)), kind="stable")
    metrics = task.metrics()
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(longest_first), EVALUATION_BATCH * world_size):
                own = longest_first[start : start + EVALUATION_BATCH * world_size][rank::world_size]
                batch = to_device(task.collate(split, own if len(own) else longest_first[:1]), device)
                outputs: Any = task.forward(module, batch)
                if len(own):
                    metrics.update(outputs, batch)
    finally:
        module.train(was_training)
    return metrics.compute(lambda tensor: sum_over_ranks(tensor.to(device)))
