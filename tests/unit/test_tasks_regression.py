"""`data.regression`: a number per sample, its loss, metrics over ranks, answers, export, and what says that it cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text_model import save_tiny_bert, snippets, tiny_recipe, write_rows

from tests.families import images, speech
from tlcore.errors import DataError, RecipeError, RequestError
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.recipe.task_table import NUMBER_METRICS
from tlcore.tasks import build_task
from tlcore.tasks.regression import numbers_of
from tlcore.tasks.regression_metrics import NumberErrors
from tlcore.tasks.sample_labels import SampleLabels
from tlcore.transfer.select import rank_sources

pytestmark = pytest.mark.unit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_tiny_bert(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", [{**row, "label": at / 4 - 3} for at, row in enumerate(snippets(40))])
    return tmp_path


def task_of(home: Path, **changes: Any) -> Any:
    return build_task(tiny_recipe(home, data__regression=True, **changes))


def counted(ranks: list[NumberErrors]) -> list[dict[str, float]]:
    """The metrics of each rank, after sums over all of them like those of a process group."""
    results: list[dict[str, float]] = []
    steps: list[list[torch.Tensor]] = []

    def summed(accumulator: NumberErrors, known: int) -> None:
        calls = iter(range(known + 1))

        def over_ranks(tensor: torch.Tensor) -> torch.Tensor:
            call = next(calls)
            if call < len(steps) and len(steps[call]) == len(ranks):
                return torch.stack(steps[call]).sum(dim=0)
            steps.extend([] for _ in range(call + 1 - len(steps)))
            steps[call].append(tensor.clone())
            raise InterruptedError

        try:
            accumulator.merge(over_ranks)
        except InterruptedError:
            return
        results.append(accumulator.compute())

    for known in range(3):  # two sums: how many samples there are, then their rows
        for accumulator in ranks:
            summed(accumulator, known)
    return results


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_over_uneven_ranks_equal_those_of_torchmetrics(ties: bool) -> None:
    from torchmetrics.functional.regression import (
        mean_absolute_error,
        mean_squared_error,
        pearson_corrcoef,
        spearman_corrcoef,
    )

    generator = torch.Generator().manual_seed(3)
    told, right = torch.randn(2, 23, generator=generator)
    told = (told + right).round() if ties else told + right
    right = right.round() if ties else right
    order = torch.randperm(23, generator=generator)  # ranks get samples by length, not in the split's order
    ranks = []
    for share in (order[:8], order[8:11], order[11:11], order[11:]):  # the third rank has nothing
        errors = NumberErrors(lambda model, batch: batch["logits"])
        if len(share):
            labels = torch.stack([right[share].double(), share.double()], dim=1)
            errors.update(torch.nn.Identity(), {"logits": told[share, None], "labels": labels})
        filler = torch.tensor([[math.nan, -1.0]], dtype=torch.float64)
        errors.update(torch.nn.Identity(), {"logits": torch.ones(1, 1), "labels": filler})
        ranks.append(errors)
    results = counted(ranks)
    assert len(results) == 4 and all(result == results[0] for result in results)
    expected = {
        "mse": mean_squared_error(told, right),
        "mae": mean_absolute_error(told, right),
        "pearson": pearson_corrcoef(told.double(), right.double()),
        "spearman": spearman_corrcoef(told, right),
        "loss": mean_squared_error(told, right),
    }
    assert results[0] == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


def test_a_side_without_spread_correlates_with_nothing() -> None:
    errors = NumberErrors(lambda model, batch: torch.full((3, 1), 0.1))
    labels = torch.tensor([[1.0, 0], [2.0, 1], [3.0, 2]], dtype=torch.float64)
    errors.update(torch.nn.Identity(), {"labels": labels})
    errors.merge(lambda tensor: tensor)
    found = errors.compute()
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert found["mae"] == pytest.approx(1.9)


def test_the_loss_is_that_of_transformers_and_a_filler_costs_nothing(home: Path) -> None:
    task = task_of(home)
    assert task.load_data() == {"train": 30, "validation": 10}
    model = task.build_model(from_scratch=False)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    model.eval()
    batch = task.collate("train", range(6))
    numbers = batch["labels"][:, 0]
    assert numbers.tolist() == [row / 4 - 3 for row in task._splits["train"].rows[:6]]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model(**inputs, labels=numbers.float()).loss
    loss = task.loss(model, batch)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = task.loss(model, task.collate("train", []))
    nothing.backward()
    assert nothing.item() == 0.0
    assert all(each.grad is not None and not each.grad.any() for each in model.parameters())
    assert task.loss(model, task.largest_batch(2)).isfinite()


def test_every_sample_of_a_split_is_counted_once(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    errors, right = task.metrics(), []
    with pytest.raises(DataError, match="no sample was evaluated"):
        errors.compute()
    for own in ([4, 1, 9], [], [0, 2, 3, 5, 6, 7, 8]):
        batch = task.collate("validation", own)
        errors.update(model, batch)
        right += batch["labels"][: len(own), 0].tolist()
    errors.merge(lambda tensor: tensor)
    texts = [snippets(40)[row]["text"] for row in task._splits["validation"].rows[[4, 1, 9, 0, 2, 3, 5, 6, 7, 8]]]
    told = [answer["prediction"] for answer in task.predict(model, texts)]
    assert errors.compute()["mse"] == pytest.approx(np.square(np.subtract(told, right)).mean(), rel=1e-5)
    assert {f"eval_{name}" for name in errors.compute()} == set(NUMBER_METRICS)


def test_the_answer_is_a_number_and_the_export_gives_the_same(home: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    [answer] = task.predict(model, ["good film"])
    assert answer.keys() == {"prediction"}
    task.export_extras(tmp_path / "out")
    save_file(model.state_dict(), tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert (again.config.num_labels, again.config.problem_type) == (1, "regression")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(["good film"], return_tensors="pt")
    assert again(**inputs).logits.item() == pytest.approx(answer["prediction"], abs=1e-6)


def test_a_checkpoint_needs_no_training_data(home: Path) -> None:
    facts = task_of(home).facts()
    task = build_task(tiny_recipe(home, data__regression=True, data__train=str(home / "gone.jsonl")), facts)
    model = task.build_model(from_scratch=False).eval()
    assert len(task.predict(model, ["good", "bad"])) == 2
    assert type(task).assumed_facts(tiny_recipe(home, data__regression=True)) == facts == {}


def test_a_model_of_one_output_keeps_its_head(home: Path) -> None:
    save_tiny_bert(home / "scorer", classes=1)
    from transformers import AutoModelForSequenceClassification

    own = AutoModelForSequenceClassification.from_pretrained(home / "scorer").classifier.weight
    task = task_of(home, model__source=str(home / "scorer"))
    assert torch.equal(task.build_model(from_scratch=False).classifier.weight, own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\na,1.5\nb,much\n", r"data\.csv, row 2: 'label' is 'much', no number"),
        ("text,label\na,1.5\nb,3\nc,nan\nd,nan\n", r"data\.csv, row 3: 'label' is 'nan', no number"),
        ("text,label\na,True\nb,False\n", r"data\.csv, row 1: 'label' is 'True', no number"),
    ],
)
def test_a_label_that_is_no_number_is_told_by_its_row(home: Path, content: str, said: str) -> None:
    (home / "data.csv").write_text(content)
    for use in (lambda task: task.check_data(), lambda task: task.load_data()):
        with pytest.raises(DataError, match=said):
            use(task_of(home, data__train=str(home / "data.csv"), data__validation=str(home / "train.jsonl")))
    with pytest.raises(DataError, match=said):
        task_of(home, data__test=str(home / "data.csv")).check_data()


def test_numbers_may_be_whole_or_written_as_text(home: Path) -> None:
    (home / "data.csv").write_text("text,label\na,7\nb,-2\nc,+.5\n")
    write_rows(home / "whole.jsonl", [{"text": "a", "label": 7}, {"text": "b", "label": -2}])
    for name, numbers in (("data.csv", [7, -2, 0.5]), ("whole.jsonl", [7, -2])):
        task = task_of(home, data__test=str(home / name))
        task.check_data()
        assert task.collate("test", range(len(numbers)))["labels"][:, 0].tolist() == numbers
    write_rows(home / "flags.jsonl", [{"text": "a", "label": True}])
    with pytest.raises(DataError, match=r"flags\.jsonl, row 1: 'label' is 'True', no number"):
        task_of(home, data__test=str(home / "flags.jsonl")).check_data()


def recipe_of(home: Path, data: dict[str, Any], **others: Any) -> Recipe:
    sections = {"model": {"source": "x"}, "data": {"train": "t.csv", **data}, "train": {}, "storage": "s"}
    return recipe_from_dict({"name": "x", "task": "text-classification", **sections, **others})


def test_the_search_follows_the_error_where_the_recipe_names_no_metric(tmp_path: Path) -> None:
    search = recipe_of(tmp_path, {"regression": True}).search
    assert (search.metric, search.mode) == ("eval_mse", "min")
    search = recipe_of(tmp_path, {"regression": True}, search={"metric": "eval_spearman"}).search
    assert (search.metric, search.mode) == ("eval_spearman", "max")
    assert recipe_of(tmp_path, {"regression": False}).search.metric == "eval_accuracy"


@pytest.mark.parametrize(
    ("data", "others", "said"),
    [
        ({"multi_label": True}, {}, "data.multi_label: got true with data.regression, whose labels are numbers"),
        ({"labels": ["a", "b"]}, {}, 'data.labels: got ["a", "b"] with data.regression, whose labels are numbers'),
        ({}, {"search": {"metric": "eval_accuracy"}}, "text-classification with data.regression reports eval_mse, "),
        ({}, {"task": "token-classification"}, "data.regression: got true with task token-classification; only text-"),
        ({"class_weights": "balanced"}, {}, "data.class_weights: got 'balanced' with data.regression; it weighs"),
        ({}, {"train": {"label_smoothing": 0.1}}, "train.label_smoothing: got 0.1 with data.regression; text-class"),
    ],
)
def test_what_goes_with_classes_alone_is_refused(
    tmp_path: Path, data: dict[str, Any], others: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe_of(tmp_path, {"regression": True, **data}, **others)
    assert said in str(raised.value)


def test_sources_are_not_ranked_by_numbers(home: Path) -> None:
    recipe = tiny_recipe(home, data__regression=True)
    with pytest.raises(RequestError, match=r"this is text-classification with data\.regression"):
        rank_sources(recipe, [recipe], 10)


def test_pictures_and_sounds_have_numbers_too(tmp_path: Path) -> None:
    for name, makers, column in (
        ("vit/image-classification", images.MAKERS, "image"),
        ("wav2vec2/audio-classification", speech.MAKERS, "audio"),
    ):
        home = tmp_path / column
        home.mkdir()
        sections = makers[name](home)
        task_name = name.partition("/")[2]
        given = {
            "name": "x",
            "task": task_name,
            "model": sections["model"],
            "data": sections["data"],
            "train": {},
            "storage": "s",
        }
        rows = build_task(recipe_from_dict(given))._splits["train"].read.rows  # type: ignore[attr-defined]
        paths = [rows.opener.path_of(rows.cell(column, row)) for row in range(len(rows))]
        table = write_rows(home / "all.jsonl", [{column: path, "label": at / 2} for at, path in enumerate(paths)])
        data = {**sections["data"], "train": str(table), "regression": True}
        task = build_task(recipe_from_dict({**given, "data": data}))
        task.check_data()
        sizes = task.load_data()
        model = task.build_model(from_scratch=False).eval()
        assert model.config.problem_type == "regression"
        numbers = [task.collate(split, range(size))["labels"][:, 0] for split, size in sizes.items()]
        assert sorted(torch.cat(numbers).tolist()) == [at / 2 for at in range(len(paths))]
        errors = task.metrics()
        errors.update(model, task.collate("validation", range(sizes["validation"])))
        errors.merge(lambda tensor: tensor)
        assert {f"eval_{each}" for each in errors.compute()} == set(NUMBER_METRICS)
        [answer] = task.predict(model, paths[:1])
        assert isinstance(answer["prediction"], float)


def test_a_row_is_that_of_the_file_where_samples_were_left_out() -> None:
    import pyarrow as pa

    table = pa.table({"label": ["1", "2", "much", "3", "much"]})
    labels = SampleLabels.read(table, "label", False, np.array([3, 1, 4]))
    with pytest.raises(DataError, match=r"here, row 5: 'label' is 'much', no number"):
        numbers_of(labels, "here", "label")
