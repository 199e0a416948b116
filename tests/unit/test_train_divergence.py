"""When a trial's loss ends it: not finite at once, grown by far at three looks in a row, also where it was resumed between them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_text_model import tiny_recipe

from tlcore.errors import Diverged
from tlcore.train.divergence import LossWatch

pytestmark = pytest.mark.unit


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    return tiny_recipe(tmp_path, failures__max_loss_factor=10)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_at_once(tmp_path: Path, recipe: Any, value: float) -> None:
    for each in (recipe, tiny_recipe(tmp_path, failures__max_loss_factor=None)):
        with pytest.raises(Diverged, match=rf"trial t003, step 7: the loss is {value}") as raised:
            LossWatch(each, "t003").look(7, value)
        assert f"{each.train.learning_rate:g}" in str(raised.value.hint)
    with pytest.raises(Diverged, match="step 8: eval_f1 is nan"):
        LossWatch(recipe, "t003").check_finite(8, "eval_f1", math.nan)


def test_a_loss_that_stays_far_above_its_first_ends_the_trial(recipe: Any) -> None:
    watch = LossWatch(recipe, "t000")
    for step, loss in enumerate((0.7, 7.1, 90.0, 6.9, 8.0, 1e6)):  # twice above, once below: it may recover
        watch.look(step, loss)
    with pytest.raises(Diverged, match=r"step 7: the loss is 2e\+04, 28571 times what it began with"):
        watch.look(7, 2e4)


def test_what_it_began_with_goes_with_its_checkpoints(recipe: Any) -> None:
    watch = LossWatch(recipe, "t000")
    watch.look(1, 0.5)
    resumed = LossWatch(recipe, "t000")
    resumed.restore(SimpleNamespace(scalars=watch.facts()))  # type: ignore[arg-type]
    resumed.look(2, 9.0)
    resumed.look(3, 9.0)
    with pytest.raises(Diverged, match="18 times"):
        resumed.look(4, 9.0)
    older = LossWatch(recipe, "t000")
    older.restore(SimpleNamespace(scalars={}))  # type: ignore[arg-type]
    older.look(2, 9.0)
    assert older.facts() == {"first_loss": 9.0}


def test_a_factor_of_null_and_a_first_loss_of_nothing_end_no_trial(tmp_path: Path, recipe: Any) -> None:
    for each, first in ((tiny_recipe(tmp_path, failures__max_loss_factor=None), 0.1), (recipe, 0.0)):
        watch = LossWatch(each, "t000")
        for step, loss in enumerate((first, 1e9, 1e9, 1e9, 1e9)):
            watch.look(step, loss)
