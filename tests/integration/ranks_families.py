"""What each rank does in test_families.py: one family, trained plainly and at three ZeRO stages, restored, exported, asked.

Run by `rank_server.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import numpy as np  # noqa: E402 (the process must be settled first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from tlcore.data import Course, split_batch  # noqa: E402
from tlcore.engine.formats import move_buffers, move_parameters  # noqa: E402
from tlcore.engine.optimizer import learning_rate  # noqa: E402
from tlcore.models import quiet  # noqa: E402
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict  # noqa: E402
from tlcore.storage import create_run  # noqa: E402
from tlcore.tasks import build_task  # noqa: E402
from tlcore.train.evaluation import evaluate, evaluation_mode  # noqa: E402
from tlcore.train.export import export_checkpoint  # noqa: E402
from tlcore.train.group import agree, sum_over_ranks  # noqa: E402
from tlcore.train.offline import TrainedModel  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402
from tlcore.train.stepper import draws_of, seed_everything, step_seed  # noqa: E402
from tlcore.transfer import apply_strategy, parameter_groups  # noqa: E402

STAGES = (1, 2, 3)


def recipe_for(case: dict[str, Any], stage: int) -> Recipe:
    base: dict[str, Any] = {
        "name": "family",
        "data": {},
        "train": {"epochs": 2, "global_batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
        "deepspeed": {"zero_stage": stage},
        "resources": {"workers": dist.get_world_size()},
        "storage": case["storage"],
    }
    sections = {key: value for key, value in case["sections"].items() if key != "predict"}
    for section, values in {"task": case["task"], **sections}.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return recipe_from_dict(base)


def plain(recipe: Recipe) -> list[float]:
    """Losses of the same training by torch alone in this one process, over the ranks' micro-batches, weighed as they are."""
    task = build_task(recipe)
    task.load_data()
    model = task.build_model(from_scratch=False)
    apply_strategy(model, recipe)
    groups = parameter_groups(model, recipe)
    chosen = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(chosen, lr=1.0, momentum=0.9)
        if recipe.train.optimizer == "sgd"
        else torch.optim.AdamW(chosen, lr=1.0)
    )
    batch = plan_batch(recipe, dist.get_world_size())
    lengths = task.lengths("train")
    order = Course(len(lengths), recipe.train.epochs, recipe.train.seed, lengths, [(0, recipe.train.global_batch_size)])
    weights = task.weights("train")
    weigh = np.ones(len(lengths)) if weights is None else weights
    losses = []
    for step in range(order.total_steps):
        indices = order.batch(step)
        total = 0.0
        for rank, shares in enumerate(
            split_batch(indices, batch.world_size, batch.micro_batch_size, batch.accumulation_steps)
        ):
            seed_everything(step_seed(recipe.train.seed, step, rank))
            for micro_step, share in enumerate(shares):
                made = task.collate("train", share, draws_of(recipe.train.seed, step, rank, micro_step))
                loss = task.loss(model, made) * (weigh[share].sum() / weigh[indices].sum())
                loss.backward()
                total += loss.item()
        if recipe.train.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, *order.schedule(step))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def sharded(
    recipe: Recipe, url: str, resume: int, save_at: int, asked: Sequence[Any] = ()
) -> tuple[list[float], dict[str, float], Any]:
    """Loss of every step from `resume` on, the metrics at the end, and what the ranks together answer to what is `asked` then;
    saves at `save_at` on the way."""
    session = TrialSession(recipe, url, "t000", resume_step=resume)
    losses: list[float] = []
    run = session._stepper.run

    def recorded(step: int) -> Any:
        loss, samples = run(step)
        losses.append((sum_over_ranks(loss.detach().clone()) / dist.get_world_size()).item())
        return loss, samples

    session._stepper.run = recorded  # type: ignore[method-assign]
    while session.step < save_at:
        session.train_step()
    if save_at > resume:
        session.save()
    report = session.advance(1.0, commit=True)
    with evaluation_mode(session.model.module):
        answers = session.task.predict(session.model.module, asked) if asked else []
    session.close()
    return losses, report.metrics, json.loads(json.dumps(answers))


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Everything about one family."""
    found: dict[str, Any] = {"name": case["name"], "plain": plain(recipe_for(case, 1))}
    steps = len(found["plain"])
    for stage in STAGES:
        recipe = recipe_for(case, stage)
        started = datetime.now(UTC)
        name = f"{case['name'].replace('/', '-')}-{stage}"
        url = agree(create_run(case["storage"], name, {}, started, "family").url if dist.get_rank() == 0 else "")
        # A restore in the middle at the stage that has most to put together; every stage's is in test_train_restore.py.
        whole, metrics, _ = sharded(recipe, url, 0, steps // 2 if stage == 3 else 0)
        found[f"stage{stage}"] = {"whole": whole, "metrics": metrics}
    found["halved"] = halved(recipe_for(case, 1))  # on every rank: each judges its share
    asked = case["sections"].get("predict") or [given for given, _ in build_task(recipe).examples("train", 2)]
    pieced, again, answers = sharded(recipe, url, steps // 2, 0, asked)
    found["restored"] = {"losses": pieced, "metrics": again, "answers": answers}
    found |= agree(exported(f"{url}/trials/t000/step-{steps:08d}", asked) if dist.get_rank() == 0 else {})
    return found


def halved(recipe: Recipe) -> list[float]:
    """Losses of the same samples by the model in fp32 and in bf16, as the engine casts it; that is then trained and judged."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        task = build_task(recipe)
        task.load_data()
        model = task.build_model(from_scratch=False)
        move_parameters(model, torch.device("cpu"), dtype)
        move_buffers(model, torch.device("cpu"), dtype)
        seed_everything(7)
        batch = task.collate("train", range(4))
        found.append(task.loss(model.eval(), batch).item())
    task.loss(model.train(), batch).backward()
    evaluate(task, model, "validation", torch.device("cpu"), 4, dist.get_rank(), dist.get_world_size())
    return found


def exported(ref: str, asked: Sequence[Any]) -> dict[str, Any]:
    """The trained model and its export give the same loss on the same batch; what it answers. Both in evaluation mode."""
    trained = TrainedModel(ref)
    trained.task.load_data()
    trained.model.eval()
    batch = trained.task.collate("validation", range(2))
    with tempfile.TemporaryDirectory() as directory:
        with quiet():
            loaded = load(Path(export_checkpoint(ref, f"{directory}/model")), trained.model).eval()
        with torch.no_grad():
            losses = []
            for model in (trained.model, loaded):
                seed_everything(7)
                losses.append(trained.task.loss(model, batch).item())
        weights = dict(loaded.state_dict())
        equal = all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items())
    return {"losses": losses, "weights_equal": equal, "answers": json.loads(json.dumps(trained.predict(asked)))}


def load(directory: Path, model: Any) -> Any:
    """As a user loads it: by the class that its configuration names."""
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    assert architecture == type(model).__name__
    return type(model).from_pretrained(directory)
