"""A sweep of one trial as its driver tells it: what the tests of trackers feed to them."""

from __future__ import annotations

from typing import Any

from tlcore.recipe import Recipe, recipe_from_dict

BEGAN = "20260102-030405"
POINT = {"train.learning_rate": 1e-3, "transfer.strategy": "head"}


def entry(number: int, kind: str, trial: str | None = "t000", **facts: Any) -> dict[str, Any]:
    return {"number": number, "time": f"2026-01-02T03:04:{5 + number:02d}+00:00", "kind": kind, "trial": trial, **facts}


def result(number: int, step: int, accuracy: float) -> dict[str, Any]:
    metrics = {"eval_accuracy": accuracy, "eval_loss": float("nan")}
    facts = {
        "fraction": step / 8,
        "step": step,
        "metrics": metrics,
        "checkpoint_step": step,
        "loss": 0.5,
        "samples_per_s": 90.0,
    }
    return entry(number, "result", **facts)


WHOLE = [
    entry(0, "suggested", point=POINT, of=1),
    entry(1, "started", slot="s", workers=1),
    result(2, 4, 0.5),
    result(3, 8, 0.75),
    entry(4, "completed"),
]


def recipe(**track: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "task": "text-classification",
        "model": {"source": "here"},
        "data": {"train": "train.csv"},
        "storage": "store",
    }
    return recipe_from_dict({**settings, "track": track})
