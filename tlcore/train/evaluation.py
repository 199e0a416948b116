"""Metrics of a model on one split, every sample counted once over all ranks.

Owns the evaluation loop, and that all ranks judge the same model; and the few samples that are shown with the model's answers.
Called by `session.py` (on all ranks of a trial) and `offline.py` (on one process).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from tlcore.engine.state import persistent_buffers
from tlcore.tasks import Task
from tlcore.train.ahead import Ahead
from tlcore.train.group import from_rank_0, sum_over_ranks

MOST_AT_ONCE = 64
EXAMPLES: Final = 2
EXAMPLE_BYTES: Final = 64 << 10
"""Most that an example may take as JSON to be shown: it is kept in the run's journal."""


def evaluate(
    task: Task,
    module: torch.nn.Module,
    split: str,
    device: torch.device,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The task's metrics on `split`, equal on every rank. Buffers (running statistics of a batch norm) become rank 0's first:
    each rank's are of its own samples, and a checkpoint holds rank 0's.

    A rank takes `MOST_AT_ONCE` samples at a time, but no more than it trains on: logits over a vocabulary are most of what a
    forward pass without gradients needs, and are there at training as well. Samples are dealt out longest first, so that ranks pad
    alike. Every rank runs the same number of batches, since under ZeRO-3 a forward pass is a collective; one that has run out runs
    a filler, which counts nothing. `after_batch` is called after each.
    """
    longest_first = np.argsort(-np.asarray(task.lengths(split)), kind="stable")
    metrics = task.metrics()
    step = min(MOST_AT_ONCE, micro_batch_size) * world_size
    batches = Ahead(
        lambda start: task.collate(split, longest_first[start : start + step][rank::world_size]),
        lambda start: start + step if start + step < len(longest_first) else None,
        device,
    )
    if world_size > 1:
        from_rank_0([buffer for _, buffer in persistent_buffers(module)])
    with evaluation_mode(module):
        for start in range(0, len(longest_first), step):
            metrics.update(module, batches.take(start))
            after_batch()
    metrics.merge(lambda counts: sum_over_ranks(counts.to(device)).cpu())
    return metrics.compute()


def answered(task: Task, module: torch.nn.Module, split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` samples of a split of its own place, as people wrote them, with what the model says of each: `input`,
    `expected` and the task's answer, as JSON has them. One of more than `EXAMPLE_BYTES` (a mask) is left out.

    Every rank of the process group calls this, and all give the model the same inputs: under ZeRO-3 a forward pass is a collective.
    """
    found = task.examples(split, count)
    if not found:
        return []
    with evaluation_mode(module):
        answers = task.predict(module, [given for given, _ in found])
    shown = [
        json.dumps({"input": given, "expected": expected, **answer}, default=str)
        for (given, expected), answer in zip(found, answers, strict=True)
    ]
    return [json.loads(each) for each in shown if len(each) <= EXAMPLE_BYTES]


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the modes of all children are put back after."""
    was_training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in was_training:
            child.training = True
