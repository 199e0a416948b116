"""`python -m jobs.bench.step --all`: tlcore's loop over its peers', family by family, on one rank with one thread.

    python -m jobs.bench.step --all --json                      every family; about 15 minutes on two cores
    python -m jobs.bench.step --all --families bert,whisper     these alone

Owns what is compared and what is said of it. Each family's loops stand in processes of their own, with the same random model
(`step_families.py`), samples, order, optimizer and DeepSpeed configuration, and take blocks of steps in turn:

    tlcore    `TrialSession.train_step`: batch, the task's loss, backward, update, and the report of progress
    bare      forward, backward and step of a DeepSpeed engine, as its documentation shows; the model's own loss
    trainer   Hugging Face Trainer on a DeepSpeed engine, which the worker checks at every step; the model's own loss

All three make their batches while they are timed, by the same code, since sounds and pictures are opened then: the peers in the
loop, without workers, tlcore as always in a thread beside it (`tlcore/train/ahead.py`), for which this machine has a second core.
Peers keep the system allocator's defaults. tlcore's own families have no row under Trainer.

`min_ratio_bare` and `min_ratio_hf` are the lowest upper ends of 95 % intervals over all families: as long as they are not below
0.98 and 1.0, no family is shown to be slower than its peers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobs.bench.intervals import Ratio
from jobs.bench.step_blocks import WARM_UP_STEPS, Answers, Loop, compare, measure_in_turn, over_blocks, rank_settings
from jobs.bench.step_families import FAMILIES, Family

TARGETS: Final = {"min_ratio_bare": 0.98, "min_ratio_hf": 1.0}
_VALIDATION: Final = 0.1


def choose(wanted: str | None) -> list[Family]:
    """The families that a list with commas names, by whole name or by the part before the slash; all of them without one.

    Raises ValueError for a name that no family has.
    """
    if wanted is None:
        return list(FAMILIES)
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if not any(_is_named(family, name) for family in FAMILIES):
            known = ", ".join(family.name for family in FAMILIES)
            raise ValueError(f"no family is named {name!r}; there are {known}")
    return [family for family in FAMILIES if any(_is_named(family, name) for name in names)]


def _is_named(family: Family, name: str) -> bool:
    return name in (family.name, family.name.partition("/")[0])


def measure(families: Sequence[Family], stage: int, rounds: int, steps: int, tell: bool) -> dict[str, Any]:
    """The figures of each family and over all. With `tell` each is printed when it is there, else a line on standard error."""
    settle()
    began, found = time.monotonic(), {}
    for family in families:
        with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as scratch:
            answers = measure_family(family, Path(scratch), stage, rounds, steps)
        found[family.name] = figures(answers)
        line = ", ".join(f"{key} {ratio}" for key, ratio in compare(answers).items())
        print(f"{family.name}: {line}", file=sys.stdout if tell else sys.stderr, flush=True)
    facts = {"zero_stage": stage, "rounds": rounds, "steps": steps, "wall_s": round(time.monotonic() - began)}
    return {**lowest(found), **facts, "families": found}


def settle() -> None:
    """What makes sources here: without a device, and without bars of progress."""
    from tlcore.engine.process import prepare_process

    prepare_process()
    import transformers

    transformers.utils.logging.disable_progress_bar()


def measure_family(family: Family, directory: Path, stage: int, rounds: int, steps: int) -> Answers:
    """Blocks of its loops in turn."""
    settings = rank_settings(
        directory, recipe(family, directory, stage, WARM_UP_STEPS + rounds * steps), collate="within"
    )
    kinds = ("tlcore", "bare", "trainer") if family.trainer else ("tlcore", "bare")
    return measure_in_turn(directory, settings, [Loop(kind, 1, 1) for kind in kinds], rounds, steps)


def recipe(family: Family, directory: Path, stage: int, steps: int) -> dict[str, Any]:
    """With samples for `steps` steps of one epoch: after it, tlcore's order is a new one and the peers' is not."""
    samples = round((steps + 1) * family.batch / (1 - _VALIDATION)) + 2
    return {
        "name": "bench-step",
        "task": family.task,
        "train": {"epochs": 2, "global_batch_size": family.batch, "precision": "fp32", "learning_rate": 1e-4},
        "deepspeed": {"zero_stage": stage},
        "resources": {"workers": 1},
        "storage": f"file://{directory}/store",
        **family.make(directory, samples),
    }


def figures(answers: Answers) -> dict[str, Any]:
    """What is said of one family."""
    said: dict[str, Any] = {}
    for key, ratio in compare(answers).items():
        said |= {key: round(ratio.value, 4), f"{key}_interval": _interval(ratio)}
    return {**said, "step_s": over_blocks(answers, "seconds", "steps", 4), "blocks": len(answers["tlcore"])}


def _interval(ratio: Ratio) -> list[float]:
    return [round(ratio.low, 4), round(ratio.high, 4)]


def lowest(families: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The lowest upper end of each ratio's interval over the families that have it, its target and the family; None without one."""
    said: dict[str, Any] = {}
    for key, target in TARGETS.items():
        interval = f"{key.removeprefix('min_')}_interval"
        ends = {name: each[interval][1] for name, each in families.items() if interval in each}
        worst = min(ends, key=ends.__getitem__) if ends else None
        said |= {key: None if worst is None else ends[worst], f"{key}_target": target, f"{key}_family": worst}
    return said
