"""Blocks passed over with their output given, and the features of samples put back into any batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_text_model import tiny_recipe
from torch import nn

from tlcore.errors import RecipeError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import build_task
from tlcore.train import features
from tlcore.train.features import with_features
from tlcore.transfer import apply_strategy
from tlcore.transfer.cut import BlocksCut

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def head_only(home: Path) -> tuple[Any, Any]:
    recipe = tiny_recipe(home, transfer__strategy="head", transfer__cache_features=True)
    task = build_task(recipe)
    model = task.build_model(from_scratch=False)
    apply_strategy(model, recipe)
    return task, model.eval()


def test_with_its_output_given_no_block_runs_and_the_loss_is_the_same(home: Path) -> None:
    task, model = head_only(home)
    batch = task.collate("train", range(6))
    cut = BlocksCut(model)
    with torch.no_grad(), cut.watched() as newest:
        whole = task.loss(model, batch)
        cut.given = newest()
        for parameter in model.bert.encoder.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(task.loss(model, batch), whole)
        cut.given = None
        assert task.loss(model, batch).isnan()


def test_samples_of_tokens_keep_their_rows_whatever_they_are_padded_to(home: Path) -> None:
    task, _ = head_only(home)
    lengths = task.lengths("train")
    full = torch.randn(len(lengths), int(lengths.max()), 5)
    batch = task.collate("train", range(len(lengths)))
    rows = features._rows_of(full, batch)
    halves = [range(0, len(lengths), 2), range(1, len(lengths), 2)]
    parts = [
        {
            "index": torch.tensor(list(half)),
            "count": torch.tensor([len(rows[each]) for each in half]),
            "rows": torch.cat([rows[each] for each in half]),
        }
        for half in halves
    ]
    kept = features._Rows.joined(parts)
    short = [int(each) for each in np.argsort(lengths)[:3]]
    smaller = task.collate("train", short)
    placed = kept.placed(smaller, short)
    mask = smaller["attention_mask"].bool()
    assert placed.shape == (*mask.shape, 5) and mask.shape[1] < full.shape[1]
    assert torch.equal(placed[mask], torch.cat([rows[each] for each in short]))
    assert placed[~mask].abs().sum() == 0
    filler = task.collate("train", short[:0])
    assert kept.placed(filler, short[:0]).shape == (*filler["attention_mask"].shape, 5)


def test_samples_of_one_shape_are_kept_whole() -> None:
    images = torch.randn(3, 4, 2, 2)
    rows = features._rows_of(images, {"pixel_values": images})
    part = {"index": torch.tensor([2, 0, 1]), "count": torch.ones(3, dtype=torch.int64), "rows": torch.cat(rows)}
    kept = features._Rows.joined([part])
    assert torch.equal(kept.placed({}, [2]), images[:1])
    assert kept.placed({}, []).shape == (1, 4, 2, 2)


def test_a_model_without_blocks_and_one_that_hands_on_more_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"transfer\.cache_features: is true, but Sequential has no list of like blocks"
    ):
        BlocksCut(nn.Sequential(nn.Linear(2, 2)))
    model = nn.Module()
    model.layers = nn.ModuleList([Pair(), Pair()])
    BlocksCut(model)
    with pytest.raises(RecipeError, match="hand on more than one tensor"):
        model.layers[0](torch.zeros(1))


def test_features_are_known_by_the_seed_and_by_the_state_of_a_hub_dataset(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    model: Any = SimpleNamespace(precision="fp32")
    settings = {"transfer__strategy": "head", "transfer__cache_features": True}
    first, same, other = (
        features._digest(tiny_recipe(home, **settings, train__seed=seed), model) for seed in (0, 0, 1)
    )
    assert first == same != other
    commit = ["one"]
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *named: SimpleNamespace(hash=f"{named} {commit[0]}"))
    recipe = tiny_recipe(home, **settings, data__train="stanfordnlp/imdb:train", data__validation=0.1)
    before, again = features._digest(recipe, model), features._digest(recipe, model)
    commit[0] = "two"
    assert before == again != features._digest(recipe, model)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_features_that_do_not_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LARGEST_BYTES", 1000)
    hidden, lengths = torch.zeros(2, 3, 10), np.array([3, 2, 30], np.int32)
    with pytest.raises(RecipeError, match=r"the features take 0\.0 GB in each worker"):
        features._check_size(hidden, {"attention_mask": torch.ones(2, 3)}, lengths)
    features._check_size(hidden, {"attention_mask": torch.ones(2, 3)}, lengths[:2])


def test_without_the_setting_and_with_anothers_state_the_task_stays_itself(home: Path) -> None:
    task, _ = head_only(home)
    recipe = tiny_recipe(home, transfer__strategy="head", transfer__cache_features=True)
    plain = recipe_from_dict({**recipe.to_dict(), "transfer": {"strategy": "head"}})
    nothing: Any = None
    assert with_features(task, nothing, nothing, plain) is task
    assert with_features(task, nothing, nothing, recipe, inherits=True) is task


def test_an_input_that_is_not_of_the_run_is_answered_without_the_features_laid_ready_last(home: Path) -> None:
    task, model = head_only(home)
    task.load_data(("train",))
    plain = task.predict(model, ["good film", "bad plot"])
    cached = features._CachedTask(task, cast(Any, SimpleNamespace()), BlocksCut(model))
    cached.lay_ready({"features": torch.zeros(2, 4, 16)})
    assert cached.predict(model, ["good film", "bad plot"]) == plain
