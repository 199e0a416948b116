"""Run by torchrun from test_train_restore.py: train, save, restore into a fresh engine, and write both runs' losses as JSON.

Arguments: a JSON file of cases, the model's directory, a store's URL, the output file. All cases share one group of gloo ranks.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import torch.distributed as dist  # noqa: E402 (the process must be settled first)

from tlcore.recipe import Recipe, recipe_from_dict  # noqa: E402
from tlcore.storage import create_run  # noqa: E402
from tlcore.train.group import agree, process_group, sum_over_ranks  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def recipe_for(changes: dict[str, Any], model: str, storage: str, workers: int) -> Recipe:
    """A small recipe with `changes` laid over its sections. 160 training rows in batches of 24 leave an uneven last batch."""
    base: dict[str, Any] = {
        "name": "restore",
        "task": "text-classification",
        "model": {"source": model},
        "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
        "train": {"epochs": 2, "global_batch_size": 24, "learning_rate": 2e-3},
        "resources": {"workers": workers},
        "storage": storage,
    }
    for section, values in changes.items():
        base[section] = {**base.get(section, {}), **values}
    return recipe_from_dict(base)


def losses(recipe: Recipe, run_url: str, *, until: float, resume: int) -> tuple[list[str], dict[str, float], int]:
    """Global loss of every step, as exact hexadecimal; the last evaluation; the step reached. Saves at the end."""
    session = TrialSession(recipe, run_url, "t000", resume_step=resume)
    seen: list[str] = []
    run = session._stepper.run

    def recorded(step: int) -> Any:
        loss, samples = run(step)
        seen.append((sum_over_ranks(loss.clone()) / dist.get_world_size()).item().hex())
        return loss, samples

    session._stepper.run = recorded  # type: ignore[method-assign]
    report = session.advance(until)
    if resume == 0:
        session.save(wait=True)
    session.close()
    return seen, report.metrics, report.step


def run_case(case: dict[str, Any], model: str, storage: str) -> dict[str, Any]:
    world = dist.get_world_size()
    saving = recipe_for(case["save"], model, storage, world)
    restoring = recipe_for(case.get("restore", case["save"]), model, storage, world)
    now = datetime.now(UTC)
    urls = [
        agree(create_run(storage, "restore", {}, now, f"{case['name']}-{i}").url if dist.get_rank() == 0 else "")
        for i in range(2)
    ]
    whole, whole_metrics, _ = losses(saving, urls[0], until=1.0, resume=0)
    before, _, step = losses(saving, urls[1], until=0.4, resume=0)
    after, after_metrics, _ = losses(restoring, urls[1], until=1.0, resume=step)
    return {
        "name": case["name"],
        "step": step,
        "whole": whole,
        "pieced": before + after,
        "whole_metrics": whole_metrics,
        "pieced_metrics": after_metrics,
        "url": f"{urls[1]}/trials/t000/step-{len(whole):08d}",
    }


def main() -> None:
    cases_file, model, storage, output = sys.argv[1:]
    with process_group():
        results = [run_case(case, model, storage) for case in json.loads(Path(cases_file).read_text())]
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
