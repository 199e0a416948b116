"""What `tlcore validate` and the head of a run say of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tlcore.recipe import load_recipe, recipe_from_dict, resolved_plan

pytestmark = pytest.mark.unit
RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml"))


def rows(**sections: Any) -> dict[str, str]:
    base = {"name": "r", "task": "text-generation", "model": {"source": "m"}, "storage": "s3://bucket/runs"}
    return {row.topic: row.text for row in resolved_plan(recipe_from_dict({**base, **sections}))}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_has_a_plan_without_holes(path: Path) -> None:
    plan = resolved_plan(load_recipe(path))
    assert len(plan) > 10
    assert all(row.topic and row.text and "None" not in row.text for row in plan)


def test_the_columns_that_are_read_are_named() -> None:
    assert "(columns text; " in rows(data={"train": "t.csv", "validation": 0.1, "text": "text"})["train data"]
    assert "(columns turns; " in rows(data={"train": "t.jsonl", "validation": 0.1, "messages": "turns"})["train data"]
    pairs = {"train": "t.json", "validation": 0.1, "text": "ask", "input": "about", "target": "answer"}
    assert "(columns ask, answer, about; " in rows(data=pairs)["train data"]


def test_what_is_frozen_by_name_is_told() -> None:
    found = rows(
        data={"train": "t.csv", "validation": 0.1, "text": "text"},
        transfer={"strategy": "full", "freeze": ["embeddings"]},
    )
    assert found["transfer"] == "full: all weights but embeddings are trained"
