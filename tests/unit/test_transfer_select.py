"""Candidates ranked on the target data: a source that knows the classes comes first, a failed one last with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tasks_text_generation import task_of
from tiny_text_model import save_tiny_bert, snippets, tiny_recipe, write_rows

from tests.families import images
from tlcore.errors import DataError, RequestError
from tlcore.recipe import apply_point, recipe_from_dict
from tlcore.transfer.select import drawn, rank_sources

pytestmark = pytest.mark.unit


@pytest.fixture
def recipe(tmp_path: Path):
    save_tiny_bert(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", snippets(40))
    return tiny_recipe(tmp_path)


def test_each_source_is_scored_and_a_bad_one_says_why(recipe, tmp_path: Path) -> None:
    other = save_tiny_bert(tmp_path / "other", seed=9)
    sources = [recipe.model.source, str(other), str(tmp_path / "nothing")]
    told: list[str] = []
    found = rank_sources(recipe, [apply_point(recipe, {"model.source": each}) for each in sources], 1000, told.append)
    assert told == sources
    assert sorted(each.rank for each in found[:2]) == [1, 2]
    assert all(each.features == 16 and each.parameters > 0 for each in found[:2])
    assert found[2].source == sources[2] and "does not exist" in found[2].error
    assert found[2].rank is None


def test_data_that_no_source_could_use_are_no_fault_of_each(recipe, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        rank_sources(recipe, [recipe, recipe], 10)


def test_sorted_data_are_looked_at_all_over(recipe, tmp_path: Path) -> None:
    rows = sorted(snippets(40), key=lambda row: row["label"])
    write_rows(tmp_path / "train.jsonl", rows)
    (found,) = rank_sources(recipe, [recipe], 12)
    assert found.error == "" and found.probe is not None
    write_rows(tmp_path / "train.jsonl", [*rows[:19], rows[-1]])
    with pytest.raises(DataError, match=r"the 2 samples drawn from .*train.jsonl are all of one class"):
        rank_sources(recipe, [recipe], 2)


def test_the_samples_are_drawn_by_the_seed_and_read_in_order() -> None:
    first = drawn(1000, 100, 0)
    assert list(first) == sorted(set(first)) and len(first) == 100
    assert first.min() < 100 and first.max() > 900
    assert list(drawn(1000, 100, 0)) == list(first) != list(drawn(1000, 100, 1))
    assert list(drawn(5, 100, 0)) == list(range(5))


def test_pictures_are_not_varied(tmp_path: Path) -> None:
    made = images.MAKERS["vit/image-classification"](tmp_path)
    whole = {"name": "seen", "task": "image-classification", "storage": str(tmp_path / "store")}
    recipe = recipe_from_dict({**whole, "model": made["model"], "data": {**made["data"], "image_size": "auto"}})
    plain = apply_point(recipe, {"data.augment": False})
    assert recipe.data.augment
    assert rank_sources(recipe, [recipe], 8) == rank_sources(plain, [plain], 8)


def test_a_task_without_one_class_per_sample_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "gpt2/text-generation")
    with pytest.raises(RequestError, match="one class per sample, and this is text-generation"):
        rank_sources(task._recipe, [task._recipe], 10)  # type: ignore[attr-defined]
