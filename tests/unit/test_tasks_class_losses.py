"""What changes the loss of one class per sample and no metric: `data.class_weights` and `train.label_smoothing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text_model import snippets, tiny_recipe, write_rows
from torch.nn.functional import cross_entropy

from tlcore.errors import RecipeError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import build_task
from tlcore.tasks.logits import logits_of

pytestmark = pytest.mark.unit

LABELS = ("pos", "pos", "neg", "pos", "odd", "pos", "pos", "neg")


def task_of(home: Path, **changes: Any) -> Any:
    write_rows(home / "train.jsonl", [{**row, "label": LABELS[at % 8]} for at, row in enumerate(snippets(40))])
    return build_task(tiny_recipe(home, **changes))


def test_balanced_classes_weigh_as_scikit_learn_says(tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task, plain = task_of(tmp_path, data__class_weights="balanced"), task_of(tmp_path)
    sizes = task.load_data()
    labels = task.collate("train", range(sizes["train"]))["labels"]
    expected = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())).float()
    model = task.build_model(from_scratch=False).eval()
    for own in (range(8), [3], range(sizes["train"])):
        batch = task.collate("train", own)
        each = cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
        loss = task.loss(model, batch)
        assert loss.item() == pytest.approx((each * expected[batch["labels"]]).mean().item(), rel=1e-6)
    assert expected[labels].mean().item() == pytest.approx(1.0), "the learning rate means what it did"
    nothing = task.loss(model, task.collate("train", []))
    assert nothing.item() == 0.0 and nothing.requires_grad
    found = []
    for one in (task, plain):
        counts = one.metrics()
        counts.update(model, one.collate("validation", range(sizes["validation"])))
        found.append(counts.compute())
    assert found[0] == found[1]


def test_a_class_that_is_not_in_training_makes_no_loss_infinite(tmp_path: Path) -> None:
    task = task_of(tmp_path, data__class_weights="balanced", data__labels=["pos", "neg", "odd", "none"])
    task.load_data()
    model = task.build_model(from_scratch=False).eval()
    batch = task.collate("train", range(8))
    assert task.loss(model, batch).isfinite()
    assert task.loss(model, {**batch, "labels": torch.full((8,), 3)}).isfinite()


def test_an_estimate_reads_no_data_for_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, data__class_weights="balanced", data__train=str(tmp_path / "gone.jsonl"))
    task = build_task(recipe, {"labels": ["a", "b"]})
    assert task.loss(task.build_model(from_scratch=False).eval(), task.largest_batch(2)).isfinite()


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_a_smoothed_target_is_torchs(tmp_path: Path, weights: str | None) -> None:
    task = task_of(tmp_path, data__class_weights=weights, train__label_smoothing=0.2)
    task.load_data()
    model = task.build_model(from_scratch=False).eval()
    batch = task.collate("train", range(9))
    each = cross_entropy(logits_of(model, batch), batch["labels"], reduction="none", label_smoothing=0.2)
    if weights is not None:
        counts = torch.bincount(task.collate("train", range(30))["labels"])
        each = each * (30 / 3 / counts)[batch["labels"]]
    assert task.loss(model, batch).item() == pytest.approx(each.mean().item(), rel=1e-6)
    plain, counts = task_of(tmp_path).metrics(), task.metrics()
    for one in (plain, counts):
        one.update(model, task.collate("validation", range(10)))
    assert counts.compute() == plain.compute()
    assert task.loss(model, task.collate("train", [])).item() == 0.0


@pytest.mark.parametrize(
    ("task", "data", "train", "said"),
    [
        ("text-classification", {"class_weights": "equal"}, {}, "data.class_weights: got 'equal'"),
        (
            "token-classification",
            {"class_weights": "balanced"},
            {},
            "data.class_weights: got 'balanced' with task token-",
        ),
        (
            "image-classification",
            {"class_weights": "balanced", "multi_label": True},
            {},
            "data.class_weights: got 'balanced' with data.multi_label; it weighs examples of one class each, so take it out",
        ),
        ("text-classification", {}, {"label_smoothing": 1.0}, "train.label_smoothing: got 1.0"),
        (
            "text-classification",
            {"multi_label": True},
            {"label_smoothing": 0.1},
            "train.label_smoothing: got 0.1 with data.multi_label; text-classification, image-classification, "
            "video-classification and audio-classification take it, with one class per example, so set it to 0",
        ),
        (
            "translation",
            {},
            {"label_smoothing": 0.1},
            "train.label_smoothing: got 0.1 with task translation; text-class",
        ),
    ],
)
def test_other_losses_take_neither(task: str, data: dict[str, Any], train: dict[str, Any], said: str) -> None:
    sections = {"model": {"source": "x"}, "data": {"train": "t.csv", **data}, "train": train, "storage": "s"}
    with pytest.raises(RecipeError) as raised:
        recipe_from_dict({"name": "x", "task": task, **sections})
    assert said in str(raised.value)
