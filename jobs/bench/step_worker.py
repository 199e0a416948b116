"""One rank of one loop of the step bench: builds it, then runs as many steps as each line on standard input asks for.

Owns the four loops: tlcore's own, bare DeepSpeed, Hugging Face Trainer on DeepSpeed, and plain torch. All of them see the same
model, the same batches in the same order, the same optimizer (torch's fused AdamW) and, where there is one, the same DeepSpeed
configuration. tlcore collates its batches within the time that is taken. With `collate` of `ahead` the peers find theirs collated;
of `within` they do as tlcore, by the same code: pictures and sounds are opened when a batch needs them. The loss is the model's own
for the peers, the task's for tlcore.

Only tlcore's loop keeps freed memory (`engine/process.py`) unless `allocator` says `kept`.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])

if SETTINGS["loop"] == "tlcore" or SETTINGS["allocator"] == "kept":
    from tlcore.engine.process import prepare_process

    prepare_process()
os.environ.setdefault("DS_ACCELERATOR", "cpu" if not Path("/dev/nvidiactl").exists() else "cuda")

import torch  # noqa: E402 (after the process is settled)
import torch.distributed as dist  # noqa: E402

from tlcore.data import Order, split_batch  # noqa: E402
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict  # noqa: E402
from tlcore.tasks import build_task  # noqa: E402
from tlcore.train.group import process_group, rank_device  # noqa: E402
from tlcore.transfer import parameter_groups  # noqa: E402

Step = Callable[[], int]


def world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class RankBatches:
    """This rank's micro-batches of every step of the first epoch; steps beyond begin anew."""

    def __init__(self, recipe: Recipe) -> None:
        rank, size = world()
        self._task = build_task(recipe)
        self._task.load_data(("train",))
        lengths = self._task.lengths("train")
        order = Order(len(lengths), recipe.train.global_batch_size, recipe.train.seed, lengths)
        plan = plan_batch(recipe, size)
        self.micro_steps = plan.accumulation_steps
        self._shares = [
            share
            for step in range(order.steps_per_epoch)
            for share in split_batch(order.batch(step), size, plan.micro_batch_size, plan.accumulation_steps)[rank]
        ]
        ahead = SETTINGS["collate"] == "ahead"
        self._made = [self._task.collate("train", share) for share in self._shares] if ahead else None
        model = self._task.build_model(from_scratch=True)
        # Beside what the model takes, a batch may hold what its task's metrics need.
        self._taken = set(inspect.signature(model.forward).parameters)

    def micro_batch(self, micro_step: int) -> dict[str, torch.Tensor]:
        """What of the `micro_step`-th micro-batch from the start goes into a model that computes its own loss."""
        at = micro_step % len(self._shares)
        batch = self._task.collate("train", self._shares[at]) if self._made is None else self._made[at]
        return {name: tensor for name, tensor in batch.items() if name in self._taken}

    def of_step(self, step: int) -> Iterator[dict[str, torch.Tensor]]:
        for micro_step in range(self.micro_steps):
            yield self.micro_batch(step * self.micro_steps + micro_step)

    def size(self, step: int) -> int:
        """What a step is counted as: real tokens, padding left out, where batches are at hand, else samples."""
        places = [(step * self.micro_steps + each) % len(self._shares) for each in range(self.micro_steps)]
        if self._made is None:
            return sum(len(self._shares[at]) for at in places)
        return sum(int(self._made[at]["attention_mask"].sum()) for at in places)


def build_model(recipe: Recipe) -> torch.nn.Module:
    return build_task(recipe).build_model(from_scratch=False).to(rank_device(), torch.float32)


def deepspeed_configuration(recipe: Recipe, model: torch.nn.Module) -> dict[str, Any]:
    from tlcore.engine.config import deepspeed_config

    trained = sum(parameter.numel() for parameter in model.parameters())
    return deepspeed_config(recipe, plan_batch(recipe, world()[1]), "fp32", rank_device().type, trained)


def fused_adamw(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.train.learning_rate, fused=True)


def tlcore_loop(recipe: Recipe) -> Iterator[int]:
    """The product's own loop, with its progress reports; nothing is saved within the steps timed."""
    from tlcore.train.session import TrialSession

    session = TrialSession(recipe, SETTINGS["run_url"], "t000", on_progress=lambda progress: None, resume_step=0)
    batches = RankBatches(recipe)
    while True:
        step = session.step
        session.train_step()
        yield batches.size(step)


def bare_loop(recipe: Recipe) -> Iterator[int]:
    """What DeepSpeed's documentation shows: forward, backward, step."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    model = build_model(recipe).train()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=fused_adamw(model, recipe), config=deepspeed_configuration(recipe, model)
    )
    batches = RankBatches(recipe)
    for step in itertools.count():
        for batch in batches.of_step(step):
            engine.backward(engine(**batch).loss)
            engine.step()
        yield batches.size(step)


def plain_loop(recipe: Recipe) -> Iterator[int]:
    """One process, no sharding: the limit."""
    model = build_model(recipe).train()
    optimizer = fused_adamw(model, recipe)
    batches = RankBatches(recipe)
    for step in itertools.count():
        for batch in batches.of_step(step):
            (model(**batch).loss / batches.micro_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.gradient_clip or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield batches.size(step)


def trainer_loop(recipe: Recipe, pace: Pace) -> None:
    """Hugging Face Trainer with the same DeepSpeed configuration; it owns its loop, so it is paced through a callback."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    batches = RankBatches(recipe)
    model = build_model(recipe)
    configuration = deepspeed_configuration(recipe, model)
    # On CPU ranks accelerate counts one process whatever the world size, and refuses the true total; DeepSpeed derives it.
    del configuration["train_batch_size"]

    class PaceCallback(TrainerCallback):
        def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
            engine = trainer.model_wrapped
            if type(engine).__name__ != "DeepSpeedEngine" or engine.world_size != world()[1]:
                raise RuntimeError(f"Trainer trains a {type(engine).__name__}, not a DeepSpeedEngine over all ranks")
            pace.before_step()

        def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            if (done := trainer.model_wrapped.global_steps) != state.global_step:
                raise RuntimeError(f"Trainer is at step {state.global_step}, its DeepSpeed engine at {done}")
            pace.after_step(batches.size(state.global_step - 1))
            # Here and not at the next step's begin: Trainer takes that step's batches before it says so.
            pace.before_step()

    class MicroBatches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return batches.micro_batch(index)

    class OwnBatches(Trainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader[dict[str, torch.Tensor]]:
            return torch.utils.data.DataLoader(MicroBatches(), batch_size=None)

    arguments = TrainingArguments(
        output_dir=SETTINGS["scratch"],
        per_device_train_batch_size=plan_batch(recipe, world()[1]).micro_batch_size,
        gradient_accumulation_steps=batches.micro_steps,
        max_steps=10**6,
        learning_rate=recipe.train.learning_rate,
        max_grad_norm=recipe.train.gradient_clip or 1.0,
        optim="adamw_torch_fused",
        deepspeed=configuration,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = OwnBatches(model=model, args=arguments, callbacks=[PaceCallback()])
    trainer.train()


class Pace:
    """Lets steps pass as the parent asks for them and answers each block with its time, tokens and processor time."""

    def __init__(self) -> None:
        self._left = 0
        self._tokens = 0
        self._asked = 0
        self._began = self._cpu_began = 0.0

    def before_step(self) -> None:
        """Wait for the next block when the last one is done."""
        if self._left == 0:
            line = sys.stdin.readline()
            if not line:
                raise SystemExit(0)
            self._left = self._asked = int(line)
            self._tokens = 0
            if dist.is_initialized():
                dist.barrier()
            self._began, self._cpu_began = time.monotonic(), cpu_seconds()

    def after_step(self, step_tokens: int) -> None:
        """Count a step; answer at the block's end."""
        self._tokens += step_tokens
        self._left -= 1
        if self._left == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds, cpu = time.monotonic() - self._began, cpu_seconds() - self._cpu_began
            print(json.dumps({"seconds": seconds, "steps": self._asked, "tokens": self._tokens, "cpu_s": cpu}))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    recipe = recipe_from_dict(SETTINGS["recipe"])
    pace = Pace()
    name = SETTINGS["loop"]
    if name == "trainer":
        trainer_loop(recipe, pace)
        return
    if name == "tlcore":
        with process_group():
            run(tlcore_loop(recipe), pace)
    run({"bare": bare_loop, "plain": plain_loop}[name](recipe), pace)


def run(loop: Iterator[int], pace: Pace) -> None:
    while True:
        pace.before_step()
        pace.after_step(next(loop))


if __name__ == "__main__":
    main()
