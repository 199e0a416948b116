"""What each rank does in test_train_strategies.py: trials of every transfer strategy, and the same in plain torch.

Run by `rank_server.py`; a case names its `kind`, a function of this module.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from ranks_restore import everywhere, losses, new_run, recipe_for, told_losses

from tlcore.engine.optimizer import build_optimizer, learning_rate
from tlcore.recipe import Recipe
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.features import _CachedTask
from tlcore.train.group import agree
from tlcore.train.session import TrialSession
from tlcore.transfer import apply_strategy, joining, parameter_groups, set_training_mode

_plain: dict[str, list[float]] = {}


def whole(case: dict[str, Any]) -> dict[str, Any]:
    """A trial from beginning to end: every loss, by DeepSpeed and by plain torch, the sizes of what trains, and what was told."""
    recipe = recipe_for(case["changes"], case["model"], case["storage"], dist.get_world_size())
    session = TrialSession(recipe, new_run(case, case["name"]), "t000", resume_step=0)
    moments, trained = [], []
    with told_losses() as found:
        while session.step < session.total_steps:
            session.train_step()
            moments.append(_moments(session))
            trained.append(_trained(session))
    parameters = session.model.parameters
    ordered_by = session._saver._writer._device is session.model.memory
    session.close()
    return {
        "copies_are_ordered": ordered_by,
        "losses": found,
        "plain": agree(_in_plain_torch(recipe) if dist.get_rank() == 0 else []),
        "moments": moments,
        "trained": trained,
        "parameters": {name: facts["trained"] for name, facts in parameters.items()},
    }


def _moments(session: TrialSession) -> int:
    """Elements of one of the optimizer's states over all ranks."""
    rows = [piece.row for piece in session.model.pieces()]
    kept = {row.state for row in rows} - {"fp32", "frozen", "buffer"}
    first = min(everywhere(min(kept)))
    return sum(everywhere(sum(row.end - row.start for row in rows if row.state == first)))


def _trained(session: TrialSession) -> int:
    """Elements of what trains, by the model itself."""
    table = session.model.parameters.values()
    return sum(torch.Size(each["shape"]).numel() for each in table if each["trained"] and not each["tied_to"])


def _in_plain_torch(recipe: Recipe) -> list[float]:
    """The losses of one process with torch's own optimizer and no DeepSpeed; the same for every ZeRO stage."""
    key = json.dumps([recipe.to_dict()["transfer"], recipe.to_dict()["train"]])
    if key not in _plain:
        _plain[key] = _trained_plainly(recipe)
    return _plain[key]


def _trained_plainly(recipe: Recipe) -> list[float]:
    from tlcore.data import Course

    task = build_task(recipe)
    task.load_data()
    lengths, train = task.lengths("train"), recipe.train
    order = Course(len(lengths), train.epochs, train.seed, lengths, [(0, train.global_batch_size)])
    model = task.build_model(from_scratch=False)
    joins = joining(model, recipe)
    apply_strategy(model, recipe)
    optimizer = build_optimizer(recipe, parameter_groups(model, recipe))
    found = []
    for step in range(order.total_steps):
        if joins:
            apply_strategy(model, recipe, sum(order.step_at(fraction) <= step for fraction in joins))
        set_training_mode(model)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, *order.schedule(step)) * group["rate"]
        loss = task.loss(model, task.collate("train", order.batch(step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([each for each in model.parameters() if each.grad is not None], 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def pieced(case: dict[str, Any]) -> dict[str, Any]:
    """The same trial in two pieces, cut at `until` of it, the second one restored from the store."""
    world = dist.get_world_size()
    recipe = recipe_for(case["changes"], case["model"], case["storage"], world)
    after = recipe_for({**case["changes"], **case.get("then", {})}, case["model"], case["storage"], world)
    urls = [new_run(case, f"{case['name']}-{number}") for number in range(2)]
    everything, _, _ = losses(recipe, urls[0], until=1.0, resume=0)
    first, _, step = losses(recipe, urls[1], until=case["until"], resume=0)
    second, _, _ = losses(after, urls[1], until=1.0, resume=step)
    return {"step": step, "whole": everything, "pieced": first + second}


def features(case: dict[str, Any]) -> dict[str, Any]:
    """Head alone, with and without cached features, then with those that are there: losses, metrics, and what was computed."""
    found: dict[str, Any] = {"losses": [], "metrics": [], "tests": []}
    url = new_run(case, case["name"])
    computed = []
    compute = _CachedTask._computed

    def noted(self: _CachedTask, split: str) -> Any:
        computed.append(split)
        return compute(self, split)

    _CachedTask._computed = noted  # type: ignore[method-assign]
    for number, cached in enumerate((False, True, True)):
        transfer = {"strategy": "head", "cache_features": cached}
        changes = {**case["changes"], "transfer": transfer, "data": {"test": case["test_data"]}}
        recipe = recipe_for(changes, case["model"], case["storage"], dist.get_world_size())
        session = TrialSession(recipe, url, f"t{number:03}", resume_step=0)
        with told_losses() as told:
            found["metrics"].append(session.advance(1.0).metrics)
        found["tests"].append(session.test(session.step))
        session.close()
        found["losses"].append(told)
    _CachedTask._computed = compute  # type: ignore[method-assign]
    kept = [each.key.rpartition("/")[2] for each in open_store(url).list("features/")]
    return {**found, "computed": everywhere(computed), "kept": kept}


def run(case: dict[str, Any]) -> Any:
    return globals()[case["kind"]](case)
