"""What each rank does in test_engine_streaming.py: build a source's model and cut it for ZeRO-3, watching its own memory. Run by
`rank_server.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import deepspeed  # noqa: E402 (the process must be settled first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from ranks_memory import status_bytes  # noqa: E402

from tlcore.engine.sharded import ShardedModel  # noqa: E402
from tlcore.recipe import plan_batch, recipe_from_dict  # noqa: E402
from tlcore.tasks import build_task  # noqa: E402
from tlcore.transfer import apply_strategy, parameter_groups  # noqa: E402

FIELDS = ("RssAnon", "RssFile")


@contextmanager
def watched(most: dict[str, int]) -> Iterator[None]:
    """Into `most`, by how much this process grew at most inside: memory of its own, and pages of mapped files."""
    before = {field: status_bytes(field) for field in FIELDS}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            for field in FIELDS:
                most[field] = max(most.get(field, 0), status_bytes(field) - before[field])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def build(settings: dict[str, Any]) -> ShardedModel:
    recipe = recipe_from_dict(settings)
    task = build_task(recipe)
    task.load_data(("train",))
    model = task.build_model(from_scratch=False)
    apply_strategy(model, recipe)
    batch = plan_batch(recipe, dist.get_world_size())
    return ShardedModel(recipe, model, parameter_groups(model, recipe), batch, torch.device("cpu"))


def differences(model: ShardedModel, wanted: Path) -> list[str]:
    """Names of gathered weights that are not those of a plain model (saved with torch, fp32)."""
    plain = torch.load(wanted, weights_only=True)
    wrong = []
    for name, parameter in model.module.module.named_parameters():  # type: ignore[union-attr, operator]
        with deepspeed.zero.GatheredParameters([parameter]):
            if name in plain and not torch.equal(parameter.data, plain[name]):
                wrong.append(name)
    return wrong


def run(case: dict[str, Any]) -> Any:
    """Of "wanted", the weights that differ; else how much each rank grew at most, bytes by field, after a build that has imported
    what a build imports."""
    if "wanted" in case:
        model = build(case["recipe"])
        found = differences(model, Path(case["wanted"]))
        model.close()
        return found
    build(case["warm"]).close()
    most: dict[str, int] = {}
    dist.barrier()
    with watched(most):
        model = build(case["recipe"])
    model.close()
    grown: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(grown, most)
    return grown
