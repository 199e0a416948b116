"""When parts join a gradual training, and what trains then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import BLOCKS, tiny_recipe
from torch import nn

from tlcore.errors import RecipeError
from tlcore.tasks import build_task
from tlcore.transfer import apply_strategy, joining, parameter_groups

pytestmark = pytest.mark.unit

PARTS = ["head", "2", "1", "0", "embeddings"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def prepared(home: Path, **changes: Any) -> tuple[nn.Module, Any]:
    recipe = tiny_recipe(
        home, transfer__strategy="gradual", **{f"transfer__{key}": value for key, value in changes.items()}
    )
    return build_task(recipe).build_model(from_scratch=False), recipe


def parts(names: Any) -> set[str]:
    found = set()
    for name in names:
        words = name.split(".")
        found.add(words[3] if "layer" in words else "embeddings" if "embeddings" in words else "head")
    return found


@pytest.mark.parametrize(
    ("schedule", "fractions"),
    [
        ("auto", (0.125, 0.25, 0.375, 0.5)),
        (0.8, (0.2, 0.4, 0.6, 0.8)),
        ([0.1, 0.1, 0.7], (0.1, 0.1, 0.7)),
    ],
)
def test_parts_join_evenly_or_where_the_recipe_says(home: Path, schedule: Any, fractions: tuple[float, ...]) -> None:
    model, recipe = prepared(home, schedule=schedule)
    assert joining(model, recipe) == pytest.approx(fractions)


@pytest.mark.parametrize("joined", range(BLOCKS + 2))
def test_what_has_joined_trains_and_nothing_else(home: Path, joined: int) -> None:
    model, recipe = prepared(home)
    apply_strategy(model, recipe, joined)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert parts(trained) == set(PARTS[: joined + 1])
    assert not any(module.training for module in model.bert.embeddings.modules()) or joined == BLOCKS + 1


def test_an_estimate_counts_all_that_ever_joins(home: Path) -> None:
    for schedule, expected in {"auto": set(PARTS), (0.1, 0.2): set(PARTS[:3])}.items():
        model, recipe = prepared(home, schedule=schedule)
        apply_strategy(model, recipe)
        assert parts(name for name, parameter in model.named_parameters() if parameter.requires_grad) == expected


def test_every_part_has_groups_of_its_own(home: Path) -> None:
    """A part's optimizer state begins when it joins, and so does its count of steps."""
    model, recipe = prepared(home)
    apply_strategy(model, recipe)
    groups = parameter_groups(model, recipe)
    assert all(len(parts(group["names"])) == 1 for group in groups)
    assert {group["rate"] for group in groups} == {1.0}


def test_other_strategies_have_nothing_to_join(home: Path) -> None:
    model, _ = prepared(home)
    assert joining(model, tiny_recipe(home, transfer__strategy="head")) == ()


def test_more_fractions_than_parts_are_said(home: Path) -> None:
    model, recipe = prepared(home, schedule=[0.1, 0.2, 0.3, 0.4, 0.5])
    with pytest.raises(
        RecipeError, match=r"transfer\.schedule: has 5 fractions, but Bert.* has 4 parts .*\(3 blocks\)"
    ):
        joining(model, recipe)


def test_a_model_without_blocks_is_said(home: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"transfer\.strategy: is 'gradual', but Sequential has no list of like blocks"
    ):
        joining(nn.Sequential(nn.Linear(2, 2)), tiny_recipe(home, transfer__strategy="gradual"))
