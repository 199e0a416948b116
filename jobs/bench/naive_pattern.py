"""The documented way to run a sweep of DeepSpeed training on Ray, kept as a peer: Tune trials that each fit a `TorchTrainer`.

Every trial starts its own controller and workers, which import, load, tokenize and connect anew; its checkpoint goes to a local
directory and from there, before `report` returns, to the run's storage. Written after Ray's guides ("Hyperparameter Tuning with
Ray Tune", "Get Started with DeepSpeed"), without anything of tlcore but the recipe, so that model, data, batch, ZeRO stage and the
points tried are the warm side's. Called by `turnaround.py` and `sweep/walls.py`.

Under ASHA it evaluates, saves and reports at the same steps as the warm side; without a scheduler it does so once, at the end, and
evaluates nothing. Where it could be slowed down by what is not the pattern, it is not: DeepSpeed's optimizer is torch's own and its
shared-memory op is left out, since both would run a compiler at first use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.tune.schedulers import ASHAScheduler

from jobs.bench.stamps import stamp
from tlcore.models import resolve_source
from tlcore.recipe import Recipe, plan_batch, report_fractions, trial_point

EVALUATION_BATCH = 64


def train_on_rank(config: dict[str, Any]) -> None:
    """Ray Train's function: all of one trial on one rank."""
    import deepspeed
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(config["seed"])
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForSequenceClassification.from_pretrained(config["model"], num_labels=len(config["labels"]))
    training, validation = read_samples(config, tokenizer)

    def collate(samples: Any) -> Any:
        return tokenizer.pad(samples, return_tensors="pt")

    engine, _, batches, _ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        training_data=training,
        collate_fn=collate,
        config=deepspeed_config(config),
    )
    rank = ray.train.get_context().get_world_rank()
    for step, batch in enumerate(batches, start=1):
        loss = engine(**batch.to(engine.device)).loss
        engine.backward(loss)
        engine.step()
        if step == 1 and rank == 0:
            stamp(config["sweep"], "first_step", config["trial"])
        if step in config["reports"]:
            measured = {"eval_loss": evaluate(engine, validation, collate)} if config["evaluates"] else {}
            report(engine, {"step": step, "loss": loss.item(), **measured})
    if rank == 0:
        stamp(config["sweep"], "end", config["trial"])


def evaluate(engine: Any, samples: Any, collate: Any) -> float:
    """Mean loss over all samples, of which each rank sees its share."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader

    rank, ranks = dist.get_rank(), dist.get_world_size()
    sums = torch.zeros(2)
    engine.eval()
    with torch.no_grad():
        for batch in DataLoader(samples.shard(ranks, rank), batch_size=EVALUATION_BATCH, collate_fn=collate):
            count = len(batch["labels"])
            sums += torch.tensor([engine(**batch.to(engine.device)).loss.item() * count, count])
    engine.train()
    dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def report(engine: Any, metrics: dict[str, Any]) -> None:
    """Save and report, as Ray's guide has it."""
    with tempfile.TemporaryDirectory() as directory:
        engine.save_checkpoint(directory)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def read_samples(config: dict[str, Any], tokenizer: Any) -> tuple[Any, Any]:
    """Training and validation samples, tokenized: the first 1 - `validation` of the file's rows, and the rest."""
    import datasets

    rows = datasets.Dataset.from_csv(config["data"], keep_in_memory=True, cache_dir=f"{config['storage']}/cache")
    trained = round(len(rows) * (1 - config["validation"]))

    def prepare(chunk: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(chunk["text"], truncation=True, max_length=config["max_length"])
        return {**encoded, "labels": [config["labels"].index(label) for label in chunk["label"]]}

    rows = rows.map(prepare, batched=True, remove_columns=rows.column_names)
    return rows.select(range(trained)), rows.select(range(trained, len(rows)))


def deepspeed_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a user writes into DeepSpeed's configuration file."""
    return {
        "train_micro_batch_size_per_gpu": config["micro_batch_size"],
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": config["zero_stage"]},
        "optimizer": {"type": "AdamW", "params": {"lr": config["learning_rate"], "torch_adam": True}},
    }


def run_trial(config: dict[str, Any]) -> None:
    """Tune's function: one `TorchTrainer` for one trial."""
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = tune.get_context().get_trial_id()
    TorchTrainer(
        train_on_rank,
        train_loop_config={**config, "trial": trial},
        scaling_config=ScalingConfig(num_workers=config["workers"], resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=trial,
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}},
        ),
    ).fit()


def run_naive(recipe: Recipe, storage: Path, trials: int, steps: int) -> list[int]:
    """Run a sweep of the recipe's model and data over the learning rate in the Ray that is up, one trial at a time: the points that
    tlcore would try, under ASHA where the recipe has it.

    Args:
        steps: of a whole trial.

    Returns:
        The step of each trial's last report.

    Raises:
        RuntimeError: a trial failed.
    """
    batch = plan_batch(recipe, recipe.resources.workers)
    if batch.accumulation_steps != 1:
        raise ValueError(f"global batch {batch.global_batch_size} needs accumulation, which the peer does without")
    points = [trial_point(recipe, recipe.train.seed, index) for index in range(trials)]
    stamp(recipe.name, "asked")
    results = tune.Tuner(
        tune.with_resources(run_trial, {"CPU": 1}),
        param_space={
            **_fixed(recipe, storage, steps),
            "micro_batch_size": batch.micro_batch_size,
            "learning_rate": tune.grid_search([point["train.learning_rate"] for point in points]),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=1, **_scheduler(recipe, steps)),
        run_config=tune.RunConfig(name=recipe.name, storage_path=str(storage), verbose=0),
    ).fit()
    if results.errors:
        raise RuntimeError(f"trials failed: {results.errors}")
    return [int(result.metrics["step"]) for result in results]


def _fixed(recipe: Recipe, storage: Path, steps: int) -> dict[str, Any]:
    """What all trials have in common."""
    return {
        "sweep": recipe.name,
        "model": str(resolve_source(recipe.model.source, None, False).directory),
        "data": recipe.data.train,
        "validation": recipe.data.validation,
        "labels": list(recipe.data.labels or ()),
        "max_length": recipe.data.max_length,
        "zero_stage": recipe.deepspeed.zero_stage,
        "workers": recipe.resources.workers,
        "seed": recipe.train.seed,
        "storage": str(storage),
        "reports": [round(fraction * steps) for fraction in report_fractions(recipe)],
        "evaluates": recipe.search.scheduler.asha is not None,
    }


def _scheduler(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Tune's own ASHA with the recipe's rungs, counted in steps; without a scheduler, nothing stops."""
    asha = recipe.search.scheduler.asha
    if asha is None:
        return {"metric": "loss", "mode": "min"}
    grace, reduction = asha.grace * steps, asha.reduction
    scheduler = ASHAScheduler(time_attr="step", max_t=steps, grace_period=grace, reduction_factor=reduction)
    return {"scheduler": scheduler, "metric": "eval_loss", "mode": "min"}
