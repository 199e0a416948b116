"""Classes for words, hidden words, and answers in a text: preparation, scores, and what bad data gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_text_generation import task_of

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED
from tlcore.tasks.entities import spans
from tlcore.tasks.question_answering import best_span

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", {("PER", 1, 2)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("I-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),
        ("S-PER B-LOC I-LOC E-LOC", {("PER", 0, 0), ("LOC", 1, 3)}),
        ("O O", set()),
        ("NOUN NOUN VERB", {("NOUN", 0, 1), ("VERB", 2, 2)}),
    ],
)
def test_entities_in_tags(tags: str, found: set[Any]) -> None:
    assert spans(tags.split()) == found


def test_each_word_is_labelled_on_its_first_token(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/token-classification")
    task.load_data()
    batch = task.collate("train", [0, 1, 2])
    names = task.facts()["labels"]
    tokenizer = task._text.tokenizer  # type: ignore[attr-defined]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for token, label in zip(tokenizer.convert_ids_to_tokens(ids), labels.tolist(), strict=True):
            expected = {"good": "B-MOOD", "bad": "B-MOOD", "[CLS]": None, "[SEP]": None, "[PAD]": None}.get(token, "O")
            assert (None if label == IGNORED else names[label]) == expected
    assert task.weights("train")[:3].sum() == (batch["labels"] != IGNORED).sum().item()


def test_entity_scores_over_uneven_ranks(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/token-classification")
    task.load_data()

    class Echo(torch.nn.Module):
        """Says what is right, but for one entity."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            mood = (input_ids == 5) | (input_ids == 6)
            mood[0, 0] = False
            scores = torch.zeros(*input_ids.shape, 2)
            scores[..., 0] = mood.float()
            scores[..., 1] = (~mood).float()
            return type("Output", (), {"logits": scores})

    ranks = [task.metrics() for _ in range(3)]
    for metrics, share in zip(ranks, ([0, 1, 2], [3], []), strict=True):
        metrics.update(Echo(), task.collate("validation", share))
    sums = torch.stack([metrics._sums for metrics in ranks]).sum(dim=0)  # type: ignore[attr-defined]
    for metrics in ranks:
        metrics.merge(lambda own: sums)
        found = metrics.compute()
        assert found["f1"] == found["precision"] == found["recall"] == found["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["good", "film"], "label": ["O"]}, "row 1: 2 words and 1 labels"),
        ({"tokens": [], "label": []}, "row 1: 0 words and 0 labels"),
    ],
)
def test_words_and_labels_that_do_not_match(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    task = task_of(tmp_path, "bert/token-classification")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"tokens": ["a"], "label": ["O"]}) + "\n")
    with pytest.raises(DataError, match=said):
        task.check_data()


def test_hidden_words_are_drawn_anew_in_training_and_fixed_in_evaluations(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/masked-language-modeling")
    task.load_data()
    torch.manual_seed(1)
    one, other = task.collate("train", range(20)), task.collate("train", range(20))
    assert not torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(
        task.collate("validation", [1, 0])["labels"], task.collate("validation", [1, 0])["labels"]
    )
    together, alone = task.collate("validation", [0, 1]), task.collate("validation", [1])
    width = alone["labels"].shape[1]
    assert torch.equal(together["labels"][1, :width], alone["labels"][0]), "whatever else is in the batch"
    told = (one["labels"] != IGNORED).sum(dim=1)
    assert (told >= 1).all()
    special = torch.isin(one["labels"], torch.tensor([0, 1, 2, 3, 4]))
    assert not special.any()


def test_an_answer_is_found_in_every_window_that_holds_it(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/question-answering")
    task.load_data()
    read = task._splits["train"].read  # type: ignore[attr-defined]
    assert len(read.sample) > len(read), "some texts take several windows"
    tokenizer = task._text.tokenizer  # type: ignore[attr-defined]
    seen = set()
    for window, sample in enumerate(read.sample.tolist()):
        start, end = read.starts[window], read.ends[window]
        tokens = read.tokens.tokens[read.tokens.offsets[window] :][: read.tokens.lengths[window]]
        if start:
            seen.add(sample)
            assert tokenizer.decode(tokens[start : end + 1]) == read.answers[sample][0]
            assert read.spans[window][start, 0] >= 0
    assert seen == set(range(len(read)))
    assert task.weights("train").sum() == len(read.windows_of(task._splits["train"].rows))  # type: ignore[attr-defined]


def test_the_best_span_over_windows_or_none() -> None:
    context = "the good film"
    places = [np.array([[-1, -1], [0, 3], [4, 8], [-1, -1]]), np.array([[-1, -1], [4, 8], [9, 13], [-1, -1]])]
    scores = torch.zeros(2, 4, 2)
    scores[1, 1, 0], scores[1, 2, 1] = 3.0, 2.0
    assert best_span(scores, places, context) == "good film"
    scores[:, 0] = 4.0
    assert best_span(scores, places, context) == ""


def test_an_answer_that_stands_elsewhere_is_named(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/question-answering")
    row = {"question": "good", "context": "the good film", "answers": {"text": ["good"], "answer_start": [3]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        DataError, match="answer 'good' does not stand at character 3 of the text, where there is ' goo'"
    ):
        task.check_data()


def test_right_answers_score_one(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/question-answering")
    task.load_data()

    class Oracle(torch.nn.Module):
        """Points where the data says."""

        def __init__(self, batch: dict[str, torch.Tensor]) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.batch = batch

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            places = {
                name: torch.nn.functional.one_hot(self.batch[name], input_ids.shape[1]) for name in ("starts", "ends")
            }
            return type("Output", (), {"start_logits": 9.0 * places["starts"], "end_logits": 9.0 * places["ends"]})

    batch = task.collate("validation", range(4))
    metrics = task.metrics()
    metrics.update(Oracle(batch), batch)
    found = metrics.compute()
    assert found["exact"] == found["f1"] == 1.0


def test_labels_stay_with_their_words_where_a_word_has_no_token(tmp_path: Path) -> None:
    row = {"tokens": ["the", " ", "good", "film"], "label": ["O", "O", "B-MOOD", "O"]}
    task = task_of(tmp_path, "bert/token-classification")
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    task.load_data()
    batch = task.collate("train", [0])
    labels = task.facts()["labels"]
    said = {
        token: labels[label]
        for token, label in zip(
            task._text.tokenizer.convert_ids_to_tokens(batch["input_ids"][0]),  # type: ignore[attr-defined]
            batch["labels"][0].tolist(),
            strict=True,
        )
        if label != IGNORED
    }
    assert said == {"the": "O", "good": "B-MOOD", "film": "O"}

    class Knows(torch.nn.Module):
        """Says of each token what is right."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            right = torch.where(input_ids == batch["input_ids"][0][2], labels.index("B-MOOD"), labels.index("O"))
            return type("Output", (), {"logits": torch.nn.functional.one_hot(right, len(labels)).float()})

    [answer] = task.predict(Knows(), [["the", " ", "good", "film", " "]])
    assert answer["labels"] == ["O", "O", "B-MOOD", "O", "O"] and answer["prediction"] == "good/B-MOOD"


def test_a_question_that_leaves_its_text_no_room_is_named(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/question-answering")
    context = "the good film " * 20
    row = {"question": "good " * 40, "context": context, "answers": {"text": ["good"], "answer_start": [4]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        DataError, match=r"rows\.jsonl, row 1: the question has 40 tokens, and data\.max_length \d+ leaves"
    ):
        task.load_data()
    model = task.build_model(from_scratch=False)
    with pytest.raises(DataError, match=r"input 0: the question has 40 tokens"):
        task.predict(model, [row])


def test_question_and_text_are_told_apart_where_the_model_learned_to(tmp_path: Path) -> None:
    from tokenizers import processors

    task = task_of(tmp_path, "bert/question-answering")
    tokenizer = task._text.tokenizer  # type: ignore[attr-defined]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    told = task._prepare(str(tmp_path / "rows.jsonl"), "train")  # type: ignore[attr-defined]
    segments = told.segments.tokens[: told.tokens.lengths[0]]
    of_text = np.flatnonzero(told.spans[0][:, 0] >= 0)
    assert (segments[of_text] == 1).all() and segments[: of_text[0]].max() == 0
    batch = task.collate("train", [0, 1])
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    model = task.build_model(from_scratch=False)
    with torch.no_grad():
        kinds = segments_of(batch)
        apart, alike = (task.loss(model, {**batch, "token_type_ids": each}) for each in (kinds, 0 * kinds))
    assert apart != alike, "the model is told"


def segments_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 behind the first separator."""
    separators = batch["input_ids"] == 3
    return ((separators.cumsum(dim=1) - separators.long()) > 0).long()
