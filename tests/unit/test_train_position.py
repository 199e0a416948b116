"""What of a checkpoint must be as the recipe says before a trial goes on from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoint_state import State, saved
from memory_store import MemoryStore
from recipe_cases import changed

from tlcore.checkpoint import Manifest, read_manifest
from tlcore.data import Order
from tlcore.errors import CheckpointIncompatible
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.train.position import legs_from, position

pytestmark = pytest.mark.unit

ORDER = Order(40, 32, 0, np.ones(40, np.int32))


def recipe(optimizer: str = "adamw") -> Recipe:
    return recipe_from_dict(changed({"train.optimizer": optimizer, "deepspeed.zero_stage": 0}))


def written_by(optimizer: str, **scalars: Any) -> Manifest:
    """A checkpoint as a trial writes it."""
    store, given = MemoryStore(), recipe(optimizer)
    saved(store, State(), recipe=given.to_dict(), scalars=position(given, ORDER) | scalars)
    return read_manifest(store, "t000", 200)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "adagrad", "muon"])
def test_the_same_optimizer_data_and_order_go_on(optimizer: str) -> None:
    assert legs_from(written_by(optimizer), "t000", recipe(optimizer), ORDER, False) is None


@pytest.mark.parametrize(
    ("there", "here"), [("adamw", "lion"), ("lion", "adamw"), ("adamw", "adam"), ("adam", "adamw")]
)
@pytest.mark.parametrize("inherits", [False, True])
def test_another_optimizer_is_refused_by_name(there: str, here: str, inherits: bool) -> None:
    """Lion took Adam's first moment for its own, and went on."""
    with pytest.raises(CheckpointIncompatible) as caught:
        legs_from(written_by(there), "t003", recipe(here), ORDER, inherits)
    assert str(caught.value) == (
        f"trial t003, step 200: the checkpoint was written with train.optimizer {there}, here it is {here}, "
        "which cannot go on from another one's state\n"
        f"  set train.optimizer to {there}; or start a new run from its weights, with model.source: "
        "<the run's URL>/trials/t000/step-00000200"
    )


def test_a_checkpoint_that_names_no_recipe_goes_on() -> None:
    manifest = written_by("adamw")
    common = {name: value for name, value in manifest.common.items() if name != "recipe"}
    assert legs_from(replace(manifest, common=common), "t000", recipe("lion"), ORDER, False) is None


def test_another_order_is_refused_and_another_batch_where_nothing_was_inherited() -> None:
    with pytest.raises(CheckpointIncompatible, match="was written with seed 3, here it is 0"):
        legs_from(written_by("adamw", seed=3), "t000", recipe(), ORDER, True)
    manifest = written_by("adamw", global_batch_size=8)
    with pytest.raises(CheckpointIncompatible, match="was written with global_batch_size 8, here it is 32"):
        legs_from(manifest, "t000", recipe(), ORDER, False)
    assert legs_from(manifest, "t000", recipe(), ORDER, True) == [(0, 8), (200, 32)]
