"""Classes for words, and answers in a text: preparation, scores, and what bad data gets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_text_generation import task_of

from tlcore.errors import DataError, ModelError
from tlcore.tasks import build_task, token_classification, tokens
from tlcore.tasks.answers import best_span
from tlcore.tasks.base import IGNORED
from tlcore.tasks.entities import spans
from tlcore.tasks.tokens import tokenize_in_pieces

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
    assert best_span(scores, places, context, True) == "good film"
    scores[:, 0] = 4.0
    assert best_span(scores, places, context, True) == ""
    assert best_span(scores, places, context, False) == "good film"


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


def byte_level(task: Any) -> Any:
    """A tokenizer of bytes and two merged words, as RoBERTa's: a space belongs to the word behind it."""
    from tokenizers import pre_tokenizers
    from transformers import RobertaTokenizer

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    parts = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("g", "o"), ("Ġ", "go"), ("Ġ", "f")]
    vocabulary = {token: at for at, token in enumerate([*special, *parts, *("".join(pair) for pair in merges)])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64)
    task._text.__dict__["tokenizer"] = tokenizer
    return tokenizer


def test_words_of_a_byte_level_tokenizer_are_those_of_the_running_text(tmp_path: Path) -> None:
    row = {"tokens": ["go", "go", "fa", "f"], "label": ["O", "B-MOOD", "O", "B-MOOD"]}
    train = tmp_path / "own.jsonl"
    train.write_text(f"{json.dumps(row)}\n" * 8)
    task: Any = task_of(tmp_path / "home", "bert/token-classification", train=str(train))
    tokenizer = byte_level(task)
    batch = task.collate("train", [0])
    assert batch["input_ids"][0].tolist() == tokenizer("go go fa f")["input_ids"]
    said = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert said == ["<s>", "go", "Ġgo", "Ġf", "a", "Ġf", "</s>"]
    labels = [None if label == IGNORED else task.facts()["labels"][label] for label in batch["labels"][0].tolist()]
    assert labels == [None, "O", "B-MOOD", "O", None, "B-MOOD", None]
    asked = []

    class Listens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            asked.append(input_ids[0].tolist())
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 2)})

    for given in (row["tokens"], "go go fa f"):
        [answer] = task.predict(Listens(), [given])
        assert len(answer["labels"]) == 4
    assert asked == [tokenizer("go go fa f")["input_ids"]] * 2


@pytest.mark.parametrize("name", ["bert/token-classification", "bert/question-answering"])
def test_samples_are_the_same_in_whatever_chunks_they_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Any = task_of(tmp_path, name)
    place = str(tmp_path / "rows.jsonl")
    whole = task._prepare(place, "train")
    for module in (tokens, token_classification):
        monkeypatch.setattr(module, "CHUNK_TEXTS", 3)
    parts = task._prepare(place, "train")
    for key in whole.__dataclass_fields__:
        one, other = getattr(whole, key), getattr(parts, key)
        if hasattr(one, "tokens"):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.offsets, other.offsets)
        elif key == "spans":
            assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
        else:
            np.testing.assert_array_equal(one, other)


def test_a_word_that_is_no_text_is_named(tmp_path: Path) -> None:
    train = tmp_path / "own.jsonl"
    train.write_text('{"tokens": [3], "label": ["O"]}\n' * 2)
    with pytest.raises(DataError, match="row 1: word 3 is no text"):
        task_of(tmp_path / "home", "bert/token-classification", train=str(train)).check_data()


def test_a_slow_tokenizer_cannot_say_where_an_answer_is(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    task: Any = task_of(tmp_path, "bert/question-answering", max_length=40)
    task._text.tokenizer = CanineTokenizer()
    with pytest.raises(ModelError, match="is a CanineTokenizer, which does not say which characters") as raised:
        task.load_data()
    assert "tokenizer.json" in str(raised.value.hint)


def test_a_slow_tokenizer_gives_pieces_as_well() -> None:
    from transformers import CanineTokenizer

    tokenizer = CanineTokenizer()
    [(pieces, text_of_piece)] = tokenize_in_pieces(tokenizer, ["abcde", "", "f"], 4)
    assert text_of_piece.tolist() == [0, 0, 0, 1, 2]
    assert pieces == tokenizer(["ab", "cd", "e", "", "f"])["input_ids"]


def answered(tmp_path: Path, *answers: dict[str, Any], **data: Any) -> Any:
    rows = [{"question": "good", "context": "the good film", "answers": each} for each in answers]
    train = tmp_path / "own.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task_of(tmp_path / "home", "bert/question-answering", train=str(train), **data)


GIVEN: dict[str, Any] = {"text": ["good"], "answer_start": [4]}
NONE: dict[str, Any] = {"text": [], "answer_start": []}


@pytest.mark.parametrize(("answers", "said"), [([GIVEN] * 4, "film"), ([GIVEN, GIVEN, GIVEN, NONE], "")])
def test_no_answer_is_said_only_where_training_has_questions_without(
    tmp_path: Path, answers: list[dict[str, Any]], said: str
) -> None:
    task = answered(tmp_path, *answers, validation=0.5)

    class SaysNothing(torch.nn.Module):
        """Points at the first token, and else at the last word."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            scores = torch.zeros(input_ids.shape)
            scores[:, 0], scores[:, -2] = 9.0, 3.0
            return type("Output", (), {"start_logits": scores, "end_logits": scores})

    asked = [{"question": "good", "context": "the good film"}]
    assert task.facts() == {"unanswerable": said == ""}
    for each in (task, build_task(task._recipe, task.facts())):
        assert each.predict(SaysNothing(), asked)[0]["prediction"] == said
    assert build_task(task._recipe, {}).predict(SaysNothing(), asked)[0]["prediction"] == "", "an earlier checkpoint"


@pytest.mark.parametrize(
    "cell",
    [
        "{'text': ['good'], 'answer_start': [4]}",
        json.dumps({"text": ["good"], "answer_start": []}),
        json.dumps({"text": "good", "answer_start": 4}),
        json.dumps({"text": ["good"], "answer_start": ["4"]}),
        "good",
    ],
)
def test_answers_that_are_written_otherwise_are_named_with_their_row(tmp_path: Path, cell: str) -> None:
    train = tmp_path / "own.csv"
    with train.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "context", "answers"], ["good", "the good film", json.dumps(GIVEN)]])
        writer.writerow(["good", "the good film", cell])
    task = task_of(tmp_path / "home", "bert/question-answering", train=str(train))
    with pytest.raises(DataError, match=r"own\.csv, row 2: the answers are") as caught:
        task.check_data()
    assert "json.dumps" in caught.value.hint
