"""The documented way to run a sweep of DeepSpeed training on Ray, kept as a peer: Tune trials that each fit a `TorchTrainer`.

Every trial starts its own controller and workers, which import, load, tokenize and connect anew; its checkpoint goes to a local
directory and from there, before `report` returns, to the run's storage. Written after Ray's guides ("Hyperparameter Tuning with
Ray Tune", "Get Started with DeepSpeed"), without anything of tlcore but the recipe, so that model, data, batch and ZeRO stage are
the warm side's. Called by `turnaround.py`.

Where it could be slowed down by what is not the pattern, it is not: DeepSpeed's optimizer is torch's own and its shared-memory
op is left out, since both would run a compiler at first use, and it evaluates nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train import RunConfig, ScalingConfig

from jobs.bench.stamps import stamp
from tlcore.models import resolve_source
from tlcore.recipe import Recipe, plan_batch


def train_on_rank(config: dict[str, Any]) -> None:
    """Ray Train's function: all of one trial on one rank."""
    import deepspeed
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(config["seed"])
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForSequenceClassification.from_pretrained(config["model"], num_labels=len(config["labels"]))
    engine, _, batches, _ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        training_data=read_samples(config, tokenizer),
        collate_fn=lambda samples: tokenizer.pad(samples, return_tensors="pt"),
        config=deepspeed_config(config),
    )
    rank = ray.train.get_context().get_world_rank()
    for step, batch in enumerate(batches):
        loss = engine(**batch.to(engine.device)).loss
        engine.backward(loss)
        engine.step()
        if step == 0 and rank == 0:
            stamp(config["sweep"], "first_step", config["trial"])
    with tempfile.TemporaryDirectory() as directory:
        engine.save_checkpoint(directory)
        ray.train.report({"loss": loss.item()}, checkpoint=ray.train.Checkpoint.from_directory(directory))
    if rank == 0:
        stamp(config["sweep"], "end", config["trial"])


def read_samples(config: dict[str, Any], tokenizer: Any) -> Any:
    """The training split, tokenized: the first 1 - `validation` of the file's rows."""
    import datasets

    rows = datasets.Dataset.from_csv(config["data"], keep_in_memory=True, cache_dir=f"{config['storage']}/cache")
    rows = rows.select(range(round(len(rows) * (1 - config["validation"]))))

    def prepare(chunk: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(chunk["text"], truncation=True, max_length=config["max_length"])
        return {**encoded, "labels": [config["labels"].index(label) for label in chunk["label"]]}

    return rows.map(prepare, batched=True, remove_columns=rows.column_names)


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


def run_naive(recipe: Recipe, storage: Path, trials: int) -> None:
    """Run a sweep of the recipe's model and data over the learning rate in the Ray that is up, one trial at a time.

    Raises:
        RuntimeError: a trial failed.
    """
    batch = plan_batch(recipe, recipe.resources.workers)
    if batch.accumulation_steps != 1:
        raise ValueError(f"global batch {batch.global_batch_size} needs accumulation, which the peer does without")
    stamp(recipe.name, "asked")
    results = tune.Tuner(
        tune.with_resources(run_trial, {"CPU": 1}),
        param_space={
            "sweep": recipe.name,
            "model": str(resolve_source(recipe.model.source, None, False).directory),
            "data": recipe.data.train,
            "validation": recipe.data.validation,
            "labels": list(recipe.data.labels or ()),
            "max_length": recipe.data.max_length,
            "micro_batch_size": batch.micro_batch_size,
            "zero_stage": recipe.deepspeed.zero_stage,
            "workers": recipe.resources.workers,
            "seed": recipe.train.seed,
            "learning_rate": tune.loguniform(1e-5, 1e-3),
            "storage": str(storage),
        },
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1, metric="loss", mode="min"),
        run_config=tune.RunConfig(name=recipe.name, storage_path=str(storage), verbose=0),
    ).fit()
    if results.errors:
        raise RuntimeError(f"trials failed: {results.errors}")
