"""When a budget is used up, and what is said of it."""

from __future__ import annotations

import pytest
from recipe_cases import changed

from tlcore.recipe import recipe_from_dict, resolved_plan
from tlcore.storage.account import Usage
from tlcore.train.budget import exhausted

pytestmark = pytest.mark.unit


def limit(used, **budget):
    return exhausted(recipe_from_dict(changed({f"budget.{key}": value for key, value in budget.items()})), used)


def test_there_is_room_below_a_limit_and_none_at_it():
    assert limit(Usage(1.99, 7, None), hours=2) is None
    assert limit(Usage(2, 0, None), hours=2).setting == "budget.hours"
    assert limit(Usage(1, 8, None), hours=2, worker_hours=8).setting == "budget.worker_hours"


def test_without_limits_nothing_is_ever_used_up():
    assert limit(Usage(1e6, 1e6, 1e6)) is None
    assert limit(Usage(1e6, 1e6, 1e6), price_per_worker_hour=2) is None


def test_it_says_which_how_much_and_how_to_go_on():
    found = limit(Usage(1, 8.12345, None), worker_hours=8)
    assert str(found) == "budget.worker_hours=8 is used up (8.123 used)"
    assert found.hint == "to go on: --resume with --set budget.worker_hours=<more than 8.123>"


def test_the_plan_tells_the_budget():
    settings = {"budget.hours": 1.5, "budget.worker_hours": 1, "budget.price_per_worker_hour": 2.5}
    rows = {row.topic: row.text for row in resolved_plan(recipe_from_dict(changed(settings)))}
    assert rows["budget"] == "1.5 hours and 1 worker-hour over all drivers; then it stops, resumable"
    assert rows["price"] == "2.5 per worker-hour"
    assert not {"budget", "price"} & {row.topic for row in resolved_plan(recipe_from_dict(changed({})))}
