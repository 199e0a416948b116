"""Loops in processes of their own, timed in blocks in turn, and what their rates say of each other.

Owns what both step benches share: settings of a rank, sample texts, the turns, the ratios. Called by `step.py` (one model, one and
two ranks) and `step_all.py` (a row of families).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench.intervals import Ratio, paired_ratio
from jobs.bench.ranks import RankGroup
from tlcore.storage import create_run

WORKER = "jobs.bench.step_worker"
WARM_UP_STEPS = 3
RATIOS = {
    "bare": "ratio_bare",
    "trainer": "ratio_hf",
    "plain": "ratio_plain",
    "bare_kept": "ratio_bare_kept",
    "plain_kept": "ratio_plain_kept",
}
"""Loop -> the key of tlcore's rate over its own."""
WORDS = (
    "the",
    "of",
    "film",
    "story",
    "is",
    "great",
    "dull",
    "moving",
    "never",
    "her",
    "plot",
    "scene",
    "best",
    "worst",
)
Answers = dict[str, list[dict[str, Any]]]
"""Loop -> one answer per round: `seconds`, `steps`, `tokens` and `cpu_s`."""


@dataclass(frozen=True)
class Loop:
    """One loop to be timed. `kept`: with tlcore's allocator setting, which a peer does not have of itself."""

    kind: str
    ranks: int
    threads: int
    kept: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}_kept" if self.kept else self.kind


def write_samples(path: Path, count: int, seed: int = 0) -> None:
    """Labelled texts of 5 to 60 words and a target of 5 to 20, as jsonl."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for index in range(count):
            text, target = (" ".join(draw.choices(WORDS, k=draw.randint(5, most))) for most in (60, 20))
            file.write(json.dumps({"text": text, "label": index % 2, "target": target}) + "\n")


def rank_settings(directory: Path, recipe: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What every loop's ranks are told: the recipe, and a run of it below `directory` for tlcore's own loop."""
    run = create_run(str(recipe["storage"]), str(recipe["name"]), {}, datetime.now(UTC), "bench")
    return {"recipe": recipe, "run_url": run.url, "scratch": str(directory / "scratch"), **more}


def measure_in_turn(
    directory: Path, settings: Mapping[str, Any], loops: list[Loop], rounds: int, steps: int
) -> Answers:
    """Start every loop's ranks, warm them up, and time blocks of `steps` steps of each in turn."""
    answers: Answers = {loop.name: [] for loop in loops}
    with ExitStack() as stack:
        groups: dict[str, RankGroup] = {}
        for loop in loops:
            sent = {**settings, "loop": loop.kind, "allocator": "kept" if loop.kept else "default"}
            log = directory / f"{loop.name}-{loop.ranks}.log"
            groups[loop.name] = stack.enter_context(RankGroup(WORKER, sent, loop.ranks, loop.threads, log))
        for group in groups.values():
            group.block(WARM_UP_STEPS)
        for turn in range(rounds):
            # Every other round backwards, so that a drift of the machine falls on both sides of each pair.
            for name in list(groups)[:: 1 if turn % 2 == 0 else -1]:
                answers[name].append(groups[name].block(steps))
    return answers


def compare(answers: Answers) -> dict[str, Ratio]:
    """tlcore's rate over each other loop's."""
    rates = {name: [block["tokens"] / block["seconds"] for block in blocks] for name, blocks in answers.items()}
    return {key: paired_ratio(rates["tlcore"], rates[name]) for name, key in RATIOS.items() if name in rates}


def over_blocks(answers: Answers, of: str, per: str, digits: int) -> dict[str, float]:
    """Loop -> its sum of one figure over its sum of another."""
    return {
        name: round(sum(block[of] for block in blocks) / sum(block[per] for block in blocks), digits)
        for name, blocks in answers.items()
    }
