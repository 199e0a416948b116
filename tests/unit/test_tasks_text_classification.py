"""The first task against the protocol: preparation, batches, loss, metrics over ranks, prediction, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text_model import save_tiny_bert, snippets, tiny_recipe, write_rows

from tlcore.errors import DataError, ModelError, RecipeError
from tlcore.recipe.fields import literal_values
from tlcore.recipe.task_table import TASK_TABLE
from tlcore.tasks import TASKS, Task, build_task, text_classification
from tlcore.tasks.classification_metrics import ClassificationCounts
from tlcore.tasks.recent import Recent

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny_bert(directory / "model")
    write_rows(directory / "test.jsonl", snippets(9))
    return directory


def task_of(home: Path, **changes: Any) -> Task:
    return build_task(tiny_recipe(home, **changes))


def test_splits_have_their_samples_and_share_none(home: Path) -> None:
    task = task_of(home, data__test=str(home / "test.jsonl"))
    assert task.load_data(("train", "validation", "test")) == {"train": 30, "validation": 10, "test": 9}
    rows = np.concatenate([task._splits["train"].rows, task._splits["validation"].rows])
    assert sorted(rows) == list(range(40))
    assert task.facts() == {"labels": ["neg", "pos"]}


def test_test_data_is_not_touched_before_it_is_asked_for(home: Path) -> None:
    task = task_of(home, data__test=str(home / "not-there.jsonl"))
    task.load_data()
    with pytest.raises(DataError, match="no data at"):
        task.load_data(("test",))


def test_no_test_data_is_said(home: Path) -> None:
    with pytest.raises(DataError, match="the recipe names no test data"):
        task_of(home).load_data(("test",))


def test_a_batch_is_padded_to_its_own_longest_and_cut_at_max_length(home: Path) -> None:
    write_rows(home / "three.jsonl", [{"text": text, "label": label} for text, label in THREE])
    task = task_of(home, data__test=str(home / "three.jsonl"), data__max_length=5)
    assert task.lengths("test").tolist() == [3, 4, 5]
    batch = task.collate("test", [1, 0])
    assert batch["input_ids"].tolist() == [[2, 4, 6, 3], [2, 5, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert task.collate("test", np.array([2]))["input_ids"].tolist() == [[2, 4, 4, 4, 3]]


THREE = (("bad", "neg"), ("good film", "pos"), ("good good good good good good", "pos"))


def test_the_loss_is_the_mean_whatever_the_padding(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    together = task.loss(model, task.collate("train", range(6)))
    apart = [task.loss(model, task.collate("train", [index])) for index in range(6)]
    assert together.dtype == torch.float32
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), abs=1e-6)


def test_a_filler_batch_costs_nothing_and_reaches_every_parameter(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False)
    loss = task.loss(model, task.collate("train", []))
    loss.backward()
    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    counts = task.metrics()
    counts.update(model, task.collate("train", []))
    with pytest.raises(DataError, match="no sample was evaluated"):
        counts.compute()


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_over_uneven_ranks_equal_those_of_kept_libraries(classes: int) -> None:
    from sklearn.metrics import accuracy_score
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(23, classes, generator=generator)
    labels = torch.randint(0, classes - (classes > 2), (23,), generator=generator)
    logits[:, -1] -= 3.0 * (classes > 2)
    shares = [slice(0, 8), slice(8, 11), slice(11, 11), slice(11, 23)]  # the third rank has nothing
    ranks = []
    for share in shares:
        counts = ClassificationCounts(classes, lambda model, batch: batch["logits"])
        if share.stop > share.start:
            counts.update(torch.nn.Identity(), {"logits": logits[share], "labels": labels[share]})
        ranks.append(counts)
    sent: list[torch.Tensor] = []
    for counts in ranks:
        counts.merge(lambda tensor: sent.append(tensor.clone()) or tensor)
    total = torch.stack(sent).sum(dim=0)
    results = []
    for counts in ranks:
        counts.merge(lambda tensor: total)
        results.append(counts.compute())
    assert all(result == results[0] for result in results)
    assert results[0]["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert results[0]["accuracy"] == pytest.approx(multiclass_accuracy(logits, labels, classes, average="micro").item())
    assert results[0]["f1"] == pytest.approx(multiclass_f1_score(logits, labels, classes, average="macro").item())
    assert results[0]["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_a_text_may_have_any_number_of_classes(home: Path) -> None:
    cells: list[list[str]] = [["sad", "long"], [], ["long"], ["sad"]] * 10
    texts = [row["text"] for row in snippets(40)]
    write_rows(home / "lists.jsonl", [{"text": text, "label": cell} for text, cell in zip(texts, cells, strict=True)])
    for name, nothing in (("cells.csv", "|"), ("empty.csv", "")):
        lines = [f"{text},{'|'.join(cell) or nothing}" for text, cell in zip(texts, cells, strict=True)]
        (home / name).write_text("\n".join(["text,label", *lines]) + "\n")
    for name in ("lists.jsonl", "cells.csv", "empty.csv"):
        task = task_of(home, data__train=str(home / name), data__multi_label=True)
        task.check_data()
        sizes = task.load_data()
        assert task.facts() == {"labels": ["long", "sad"]}
        labels = torch.cat([task.collate(split, range(size))["labels"] for split, size in sizes.items()])
        assert labels.sum(dim=0).tolist() == [20, 20] and labels.shape == (40, 2)
        model = task.build_model(from_scratch=False).eval()
        batch = task.collate("train", range(5))
        reference = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"].float()
        )
        assert model.config.problem_type == "multi_label_classification"
        assert task.loss(model, batch).item() == pytest.approx(reference.loss.item(), rel=1e-6)
        assert task.loss(model, task.collate("train", [])).item() == 0
        counts = task.metrics()
        counts.update(model, batch)
        assert set(counts.compute()) == {"accuracy", "f1", "loss"}
        (answer,) = task.predict(model, [texts[0]])
        assert answer["labels"] == [label for label, score in answer["scores"].items() if score >= 0.5]
    assert task.largest_batch(3)["labels"].shape == (3, 2)


def test_an_empty_cell_is_no_set_of_texts_nor_a_single_label(home: Path) -> None:
    (home / "gaps.csv").write_text("text,label\na film,sad\n,long\n")
    with pytest.raises(DataError, match=r"column 'text' is empty in 1 of 2 rows, first in row 2"):
        task_of(home, data__train=str(home / "gaps.csv"), data__multi_label=True).check_data()
    (home / "gaps.csv").write_text("text,label\na film,sad\na plot,\n")
    with pytest.raises(DataError, match=r"column 'label' is empty in 1 of 2 rows, first in row 2"):
        task_of(home, data__train=str(home / "gaps.csv")).check_data()


def test_the_next_trial_of_a_process_does_not_tokenize_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = text_classification.tokenize_texts
    monkeypatch.setattr(text_classification, "_prepared", Recent(4))
    counted = lambda *given, **more: calls.append(1) or real(*given, **more)  # noqa: E731
    monkeypatch.setattr(text_classification, "tokenize_texts", counted)
    task_of(home).load_data()
    task_of(home, train__seed=4).load_data()
    assert len(calls) == 1
    task_of(home, data__max_length=6).load_data()
    assert len(calls) == 2
    write_rows(home / "own.jsonl", snippets(20))
    task_of(home, data__train=str(home / "own.jsonl")).load_data()
    write_rows(home / "own.jsonl", snippets(24))
    assert task_of(home, data__train=str(home / "own.jsonl")).load_data() == {"train": 18, "validation": 6}


def test_only_so_much_is_kept() -> None:
    recent: Recent[int] = Recent(2)
    made: list[str] = []
    for key in ("a", "b", "a", "c", "a", "b"):
        recent.get(key, lambda key=key: made.append(key) or 0)
    assert made == ["a", "b", "c", "b"]


def test_every_trial_is_judged_on_the_same_samples(home: Path) -> None:
    one, other = task_of(home), task_of(home, train__seed=9)
    assert one._splits["validation"].rows.tolist() == other._splits["validation"].rows.tolist()


def test_a_label_unknown_to_the_training_data_is_said(home: Path) -> None:
    write_rows(home / "other.jsonl", [{"text": "good", "label": "poss"}])
    with pytest.raises(DataError, match="'poss' is none of the 2 classes of the training data"):
        task_of(home, data__test=str(home / "other.jsonl")).load_data(("test",))


def test_a_length_beyond_the_model_is_said(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.max_length: is 99, but model .* takes at most 16 tokens"):
        task_of(home, data__max_length=99).load_data()


def test_a_tokenizer_of_another_model_is_said(home: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = save_tiny_bert(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ModelError, match="its tokenizer has 15 tokens, the model only 14"):
        task_of(tmp_path).build_model(from_scratch=False)


def test_facts_stand_in_for_the_training_data(home: Path) -> None:
    recipe = tiny_recipe(home, data__train=str(home / "gone.jsonl"))
    task = build_task(recipe, {"labels": ["a", "b", "c"]})
    model = task.build_model(from_scratch=False).eval()
    answers = task.predict(model, ["good film", "bad"])
    assert [set(answer["scores"]) for answer in answers] == [{"a", "b", "c"}] * 2
    assert all(
        answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]] for answer in answers
    )
    assert all(sum(answer["scores"].values()) == pytest.approx(1.0) for answer in answers)


def test_prediction_does_not_depend_on_its_company(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    alone = task.predict(model, ["good film"])[0]["score"]
    texts = ["good film", *(["the very slow plot a bad film"] * 40)]
    assert task.predict(model, texts)[0]["score"] == pytest.approx(alone, abs=1e-6)
    assert len(task.predict(model, texts)) == 41
    with pytest.raises(DataError, match="input 1 is 7, not a text"):
        task.predict(model, ["good", 7])


def test_the_export_loads_in_plain_transformers_with_equal_answers(home: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    task.export_extras(tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.id2label == {0: "neg", 1: "pos"}
    inputs = AutoTokenizer.from_pretrained(tmp_path)(["good film"], return_tensors="pt")
    scores = again(**inputs).logits.softmax(-1)[0].tolist()
    assert scores == pytest.approx(list(task.predict(model, ["good film"])[0]["scores"].values()))


def test_every_task_of_a_recipe_has_its_row_and_its_class() -> None:
    assert set(TASKS) == set(TASK_TABLE) == set(literal_values("task"))
