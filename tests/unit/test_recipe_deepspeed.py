"""What a recipe may say to DeepSpeed: keys that it reads, and a number format that its stage has."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_cases import assert_faults, changed

from tlcore.recipe import recipe_from_dict
from tlcore.recipe.owned import FREE, OWNED

pytestmark = pytest.mark.unit

MESH = {"data_parallel_size", "sequence_parallel_size"}
"""Read by `deepspeed.initialize`, before the configuration is made."""
ASIDE = "at which checkpoints do not reach DeepSpeed's 16-bit training"
MEND = "set deepspeed.zero_stage to 1 (the same memory on one worker, less on several), or this to auto or fp32"


class Watched(dict[str, Any]):
    """A configuration that notes which of its keys are asked for."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: set[str] = set()

    def __copy__(self) -> Watched:
        return self

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_the_keys_are_those_that_deepspeed_asks_for() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    given = Watched({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8})
    DeepSpeedConfig(given)
    ours = {key for key in OWNED if "." not in key}
    assert given.asked - MESH == (set(FREE) | ours) - MESH
    assert set(FREE) >= MESH
    assert not set(FREE) & ours


def test_every_free_key_is_accepted() -> None:
    extra = {key: {} if key == "zero_optimization" else 1 for key in FREE}
    assert recipe_from_dict(changed({"deepspeed.extra": extra})).deepspeed.extra == extra


CASES = {
    "misspelt": (
        {"deepspeed.extra": {"wall_clock_brakedown": True}},
        [
            "deepspeed.extra.wall_clock_brakedown: is no key of DeepSpeed's configuration, which would ignore it; "
            "did you mean wall_clock_breakdown?"
        ],
    ),
    "a section's key at the top": (
        {"deepspeed.extra": {"zero_optimisation": {"overlap_comm": True}}},
        [
            "deepspeed.extra.zero_optimisation: is no key of DeepSpeed's configuration, which would ignore it; "
            "did you mean zero_optimization?"
        ],
    ),
    "like nothing": (
        {"deepspeed.extra": {"qqq": 1}},
        [
            "deepspeed.extra.qqq: is no key of DeepSpeed's configuration, which would ignore it; "
            "see DeepSpeed's documentation, or take it out"
        ],
    ),
    "16 bits at stage 0": (
        {"train.precision": "bf16", "deepspeed.zero_stage": 0},
        [f"train.precision: got bf16 with zero_stage 0, {ASIDE}: {MEND}"],
    ),
    "16 bits at a stage of the space": (
        {"train.precision": "fp16", "search.space": {"deepspeed.zero_stage": {"choice": [2, 0]}}},
        [
            "search.space: can give {deepspeed.zero_stage: 0}, which cannot be used: "
            f"train.precision: got fp16 with zero_stage 0, {ASIDE}: {MEND}"
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_recipe_says_what_is_wrong(name: str) -> None:
    assert_faults(*CASES[name])
