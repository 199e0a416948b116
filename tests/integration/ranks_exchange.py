"""Run by torchrun from test_train_exchange.py: training states that go from DeepSpeed to us and from us to DeepSpeed, and LoRA.

Arguments: the model's directory, a working directory, the output file. All cases share one group of gloo ranks.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import deepspeed  # noqa: E402 (the process must be settled first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from tlcore.checkpoint import CheckpointRef  # noqa: E402
from tlcore.data import Order, split_batch  # noqa: E402
from tlcore.engine.optimizer import build_optimizer, learning_rate  # noqa: E402
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict  # noqa: E402
from tlcore.storage import create_run, open_store  # noqa: E402
from tlcore.tasks import build_task  # noqa: E402
from tlcore.train.deepspeed_import import import_deepspeed  # noqa: E402
from tlcore.train.deepspeed_universal import export_universal  # noqa: E402
from tlcore.train.group import agree, process_group, sum_over_ranks  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402
from tlcore.train.stepper import step_seed  # noqa: E402
from tlcore.transfer import apply_strategy, parameter_groups  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"
STEPS, MORE = 3, 3
LAST_N = {"transfer": {"strategy": "last_n", "n": 1}}
PLAIN: dict[str, dict[str, Any]] = {
    "stage1": {"deepspeed": {"zero_stage": 1}},
    "stage2": {"deepspeed": {"zero_stage": 2}},
    "stage3": {"deepspeed": {"zero_stage": 3}},
    "stage1_last_n": {"deepspeed": {"zero_stage": 1}, **LAST_N},
    "stage3_last_n": {"deepspeed": {"zero_stage": 3}, **LAST_N},
    "stage1_bf16": {"deepspeed": {"zero_stage": 1}, "train": {"precision": "bf16"}},
    "stage3_bf16": {"deepspeed": {"zero_stage": 3}, "train": {"precision": "bf16"}},
    "stage2_sgd": {"deepspeed": {"zero_stage": 2}, "train": {"optimizer": "sgd", "learning_rate": 0.05}},
    "stage3_lion": {"deepspeed": {"zero_stage": 3}, "train": {"optimizer": "lion", "learning_rate": 5e-4}},
}
ZERO: dict[str, dict[str, Any]] = {"stage3": {"sub_group_size": 2000}}
"""What DeepSpeed alone is told besides: the decayed parameters lie in several sub-groups then, as those of large models do."""
LORA = {"strategy": "lora", "rank": 16, "dropout": 0.1}


class Home:
    """Where this run of the script keeps things."""

    def __init__(self, model: str, directory: Path) -> None:
        self.model, self.directory = model, directory
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def recipe(self, name: str, changes: dict[str, Any]) -> Recipe:
        """A small recipe with `changes` laid over its sections."""
        base: dict[str, Any] = {
            "name": name,
            "task": "text-classification",
            "model": {"source": self.model},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"epochs": 1, "global_batch_size": 24, "learning_rate": 2e-3},
            "resources": {"workers": self.world},
            "storage": f"file://{self.directory}/store",
        }
        for section, values in changes.items():
            base[section] = {**base.get(section, {}), **values}
        return recipe_from_dict(base)

    def run_url(self, recipe: Recipe) -> str:
        now = datetime.now(UTC)
        return agree(create_run(recipe.storage, recipe.name, {}, now, recipe.name).url if self.rank == 0 else "")


class Plain:
    """The same training with DeepSpeed alone: its engine, its own loop, its own checkpoints."""

    def __init__(self, recipe: Recipe, zero: dict[str, Any] | None = None, **config: Any) -> None:
        self.recipe, self.task = recipe, build_task(recipe)
        self.task.load_data()
        lengths = self.task.lengths("train")
        self.order = Order(len(lengths), recipe.train.global_batch_size, recipe.train.seed, lengths)
        self.total = self.order.steps_per_epoch * recipe.train.epochs
        model = self.task.build_model(from_scratch=False)
        apply_strategy(model, recipe)
        groups = parameter_groups(model, recipe)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(recipe, groups),
            config={
                "train_batch_size": 24,
                "train_micro_batch_size_per_gpu": 12,
                "gradient_clipping": 1.0,
                "steps_per_print": 2**31 - 1,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": recipe.train.precision == "bf16"},
                "zero_optimization": {"stage": recipe.deepspeed.zero_stage, "overlap_comm": False, **(zero or {})},
                **config,
            },
            dist_init_required=False,
        )

    def losses(self, first: int, count: int) -> list[str]:
        """Global loss of each step, as exact hexadecimal."""
        plan = plan_batch(self.recipe, dist.get_world_size())
        seen = []
        for step in range(first, first + count):
            for group in self.engine.optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, step, self.total)
            indices = self.order.batch(step)
            torch.manual_seed(step_seed(self.recipe.train.seed, step, dist.get_rank()))
            (share,) = split_batch(indices, plan.world_size, plan.micro_batch_size, 1)[dist.get_rank()]
            weight = len(share) * plan.world_size / len(indices)
            loss = self.task.loss(self.engine, self.task.collate("train", share)) * weight
            self.engine.backward(loss)
            self.engine.step()
            seen.append((sum_over_ranks(loss.detach().clone()) / plan.world_size).item().hex())
        return seen

    def close(self) -> None:
        self.engine.destroy()


class Ours:
    """One session, whose losses are written down; `stop` steps in all."""

    def __init__(self, recipe: Recipe, run_url: str, resume: int) -> None:
        self.session = TrialSession(recipe, run_url, "t000", resume_step=resume)
        self.seen: list[str] = []
        stepper = self.session._stepper
        run = stepper.run

        def recorded(step: int) -> Any:
            loss, samples = run(step)
            self.seen.append((sum_over_ranks(loss.clone()) / dist.get_world_size()).item().hex())
            return loss, samples

        stepper.run = recorded  # type: ignore[method-assign]

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.session.train_step()

    def save(self) -> str:
        ref = self.session.save(wait=True)
        # Only rank 0 knows when it is committed; what follows reads it on every rank.
        dist.barrier()
        return str(ref)


def from_deepspeed(home: Home, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Train with DeepSpeed, save, go on there; import what was saved, go on here."""
    recipe = home.recipe(f"ds-{name}", changes)
    folder = home.directory / f"ds-{name}"
    plain = Plain(recipe, ZERO.get(name))
    plain.losses(0, STEPS)
    plain.engine.save_checkpoint(str(folder))
    there = plain.losses(STEPS, MORE)
    plain.close()
    url = agree(str(import_deepspeed(folder, recipe).ref) if home.rank == 0 else "")
    ours = Ours(recipe, CheckpointRef.parse(url).run_url, resume=STEPS)
    ours.steps(MORE)
    ours.session.close()
    return {"there": there, "here": ours.seen, "url": url, "folder": str(folder)}


def to_deepspeed(home: Home, changes: dict[str, Any]) -> dict[str, Any]:
    """Train here under stage 2, save, go on here; load the universal checkpoint with a plain engine, go on there, back again."""
    recipe = home.recipe("universal", {"deepspeed": {"zero_stage": 2}, **changes})
    url = home.run_url(recipe)
    ours = Ours(recipe, url, resume=0)
    ours.steps(STEPS)
    ref = ours.save()
    ours.steps(MORE)
    ours.session.close()
    folder = home.directory / "universal"
    if home.rank == 0:
        export_universal(ref, folder)
    dist.barrier()
    found: dict[str, Any] = {"here": ours.seen[STEPS:], "url": ref, "folder": str(folder)}
    for stage in (1, 2, 3):
        scheduler = {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}
        staged = home.recipe("universal", {"deepspeed": {"zero_stage": stage}, **changes})
        plain = Plain(staged, checkpoint={"load_universal": True}, scheduler=scheduler)
        plain.engine.load_checkpoint(str(folder))
        # DeepSpeed 0.19's stage 3 loader gives every group the same step tensor, which each group then counts up.
        for state in plain.engine.optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()
        found[f"stage{stage}"] = plain.losses(STEPS, MORE)
        found[f"scheduler{stage}"] = plain.engine.lr_scheduler.last_batch_iteration
        plain.close()
    back = agree(str(import_deepspeed(folder, recipe).ref) if home.rank == 0 else "")
    again = Ours(recipe, CheckpointRef.parse(back).run_url, resume=STEPS)
    again.steps(MORE)
    again.session.close()
    return found | {"back": again.seen, "back_url": back}


def lora(home: Home, stage: int) -> dict[str, Any]:
    """Whole, and in two pieces with a save between; bytes of the first and of the second save."""
    changes = {"deepspeed": {"zero_stage": stage}, "transfer": LORA}
    recipe = home.recipe(f"lora-{stage}", changes)
    url = home.run_url(recipe)
    whole = Ours(recipe, url, resume=0)
    whole.steps(1)
    whole.save()
    first = chunk_bytes(url)
    whole.steps(STEPS - 1)
    ref = whole.save()
    second = chunk_bytes(url) - first
    whole.steps(MORE)
    table = whole.session.model.parameters
    whole.session.close()
    restored = Ours(recipe, url, resume=STEPS)
    restored.steps(MORE)
    metrics = restored.session._evaluate()
    restored.session.close()
    trained = [name for name, facts in table.items() if facts["trained"]]
    elements = sum(torch.Size(table[name]["shape"]).numel() for name in trained)
    return {
        "whole": whole.seen[STEPS:],
        "pieced": restored.seen,
        "metrics": metrics,
        "url": ref,
        "trained": trained,
        "elements": elements,
        "second_bytes": second,
        "first_bytes": first,
    }


def chunk_bytes(run_url: str) -> int:
    """Bytes of state in the store, over all checkpoints of the run."""
    return sum(each.size_bytes for each in open_store(run_url).list("cas/"))


def main() -> None:
    model, directory, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with process_group():
        home = Home(model, directory)
        results: dict[str, Any] = {name: from_deepspeed(home, name, changes) for name, changes in PLAIN.items()}
        results["universal"] = to_deepspeed(home, LAST_N)
        results |= {f"lora{stage}": lora(home, stage) for stage in (0, 1, 2, 3)}
        if home.rank == 0:
            output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
