"""kill -9 of every part of a running sweep: worker, slot, driver, raylet, store; the sweep must go on and lose nothing.

    python -m jobs.bench.recovery --json                 2 kills of each kind in a sweep of 12 trials
    python -m jobs.bench.recovery --kills 5 --seed 3     5 of each
    python -m jobs.bench.recovery --quick                1 of each in a sweep of 6 short trials, under three minutes

Owns the command, the recipe and the table; `figures.py` says what the figures mean. The sweep is a real one: trials of two
DeepSpeed ranks under ZeRO-2 and ASHA, two at a time on two worker nodes of a Ray cluster that is started here, checkpoints every
INTERVAL steps into a SeaweedFS that is started here. After the driver's kill another process resumes from the store; a killed
store starts again on its data; for a killed raylet's node another one joins.

The exit status is 1 when a trial was lost, a step was skipped, a trial went back behind a committed checkpoint, a kill was never
over, or a process was left behind. More repeated steps than one interval are none of these: where the checkpoint that was due had
not been committed yet, the bound is one interval and what was trained since. Ctrl-C and SIGTERM end it early with nothing left
running.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.bench.recovery.campaign import Campaign, plan
from jobs.bench.recovery.figures import KINDS, summarize
from jobs.bench.recovery.ground import Ground
from jobs.bench.small_ray import ROOT
from tlcore.recipe import Recipe, recipe_from_dict

NAME: Final = "recovery"
STORAGE: Final = "s3://tlcore/runs"
RANKS: Final = 2
BATCH: Final = 8
INTERVAL: Final = 40
VALIDATION: Final = 0.1
GRACE: Final = 0.25
MODEL_S: Final = 300.0
FAULTS: Final = ("lost_trials", "skipped_steps", "behind_commit", "not_recovered", "left_over")
"""Figures that are none in a sweep that lost nothing."""


@dataclass(frozen=True)
class Size:
    """How much: trials, optimizer steps of each, kills of each kind."""

    trials: int
    steps: int
    kills: int

    @property
    def certain_steps(self) -> int:
        """Steps that the sweep does whatever ASHA stops: one trial whole, the others to the first rung."""
        return int(self.steps * (1 + GRACE * (self.trials - 1)))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    size = Size(6, 120, 1) if options.quick else Size(12, 100 * max(2, options.kills), options.kills)
    heed_signals()
    with tempfile.TemporaryDirectory(prefix="tlcore-recovery-", ignore_cleanup_errors=True) as name:
        figures = measure(Path(name), size, options.seed)
    print(json.dumps(figures) if options.json else table(figures))
    return 1 if any(figures[key] for key in FAULTS) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.recovery", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=2, help="of each kind (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills' order, moments and victims")
    parser.add_argument("--quick", action="store_true", help="one of each kind, fewer and shorter trials")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills {options.kills}: at least 1")
    return options


def heed_signals() -> None:
    """Have Ctrl-C and SIGTERM end the bench in order. Called again once the cluster is up: Ray puts a handler of its own in this
    process, which waits 30 s for the nodes to drain and leaves the rest running (seen)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    """At once, but not without stopping what was started; that takes seconds, which no second signal may cut short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def measure(directory: Path, size: Size, seed: int) -> dict[str, Any]:
    """Run the sweep, make the kills, and count."""
    recipe = recipe_of(directory, size)
    with Ground(directory, recipe, cpus=RANKS) as ground:
        heed_signals()
        campaign = Campaign(ground, STORAGE, NAME, seed)
        campaign.run(plan(seed, size.kills, size.certain_steps))
        journal = campaign.journal()
        left_over = ground.left_over()
    figures = summarize(campaign.kills, campaign.log.lines, journal, size.trials, INTERVAL, seed)
    return {**figures, "left_over": len(left_over), "faults": figures["faults"] + left_over}


def recipe_of(directory: Path, size: Size) -> Recipe:
    """The sweep; its data and model are made here."""
    data, model = directory / "samples.csv", directory / "model"
    write_samples(data, size.steps)
    make_model = [sys.executable, "-m", "jobs.bench.tiny_model", str(model)]
    # standard output is for the figures alone, and DeepSpeed's import prints there
    subprocess.run(make_model, cwd=ROOT, stdout=sys.stderr, timeout=MODEL_S, check=True)
    often = 10 * size.kills  # what is proved is that trials go on, not that budgets end
    return recipe_from_dict(
        {
            "name": NAME,
            "task": "text-classification",
            "model": {"source": str(model)},
            "data": {"train": str(data), "validation": VALIDATION, "labels": ["no", "yes"], "max_length": 16},
            "train": {"epochs": 1, "global_batch_size": BATCH},
            "deepspeed": {"zero_stage": 2},
            "checkpoint": {"every_steps": INTERVAL, "keep_last": 2},
            "resources": {"workers": RANKS, "gpus_per_worker": 0, "cpus_per_worker": 1, "placement": "pack"},
            "failures": {"hang_minutes": 1, "max_lost_workers": often, "max_lost_nodes": often, "max_hangs": often},
            "search": {
                "space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
                "trials": size.trials,
                "scheduler": {"asha": {"grace": GRACE, "reduction": 2}},
            },
            "storage": STORAGE,
        }
    )


def write_samples(path: Path, steps: int) -> None:
    """Labelled lines for so many optimizer steps beside the validation part."""
    draw = random.Random(0)
    words = ("good", "bad", "film", "story", "long", "short", "warm", "dull", "bright", "slow")
    rows = round(steps * BATCH / (1 - VALIDATION))
    lines = [f"{' '.join(draw.choices(words, k=8))},{('no', 'yes')[index % 2]}\n" for index in range(rows)]
    path.write_text("text,label\n" + "".join(lines))


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'kill -9 of':12}{'kills':>8}{'repeated steps':>26}{'bound':>8}{'training again after':>30}"]
    for kind in [kind for kind in KINDS if figures["kills"][kind]]:
        steps, seconds = figures["repeated_steps"][kind], figures["recovery_s"][kind]
        again = f"{steps['median']} (most {steps['most']})"
        span = f"{seconds['median']} s ({seconds['least']} to {seconds['most']})"
        lines.append(f"{kind:12}{figures['kills'][kind]:>8}{again:>26}{steps['bound']:>8}{span:>30}")
    lines.append(
        f"{figures['trials']} trials: " + ", ".join(f"{key.replace('_', ' ')} {figures[key]}" for key in FAULTS)
    )
    return "\n".join([*lines, *figures["faults"]])


if __name__ == "__main__":
    sys.exit(main())
