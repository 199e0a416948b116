"""Candidates ranked on the target data: a source that knows the classes comes first, a failed one last with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tasks_text_generation import task_of
from tiny_text_model import save_tiny_bert, snippets, tiny_recipe, write_rows

from tlcore.errors import DataError, RequestError
from tlcore.recipe import apply_point
from tlcore.transfer.select import rank_sources

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


def test_a_task_without_one_class_per_sample_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "gpt2/text-generation")
    with pytest.raises(RequestError, match="one class per sample, and this is text-generation"):
        rank_sources(task._recipe, [task._recipe], 10)  # type: ignore[attr-defined]
