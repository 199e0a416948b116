"""What is said of texts that are cut: how many, of which place, once; the same from every kind of tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from test_tasks_text_generation import task_of
from tiny_text_model import snippets, tiny_recipe, write_rows

from tests.families import text
from tlcore.data import hold_out
from tlcore.models.families.elmo_tokens import ElmoTokenizer
from tlcore.tasks import build_task, telling
from tlcore.tasks.telling import Cut, tell_once
from tlcore.tasks.tokens import tokenize, whole_lengths

pytestmark = pytest.mark.unit

TEXTS = ["good bad film a the very not plot slow", "good", "fine is was", "long dull kind sharp"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_TOLD", set())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == telling.__name__]


# snippets have 5 to 9 tokens in turn
CUT = {
    "bert/text-classification": ["24 of 40 texts of {place} are longer than data.max_length=6 tokens"],
    "bert/masked-language-modeling": [],  # in pieces
    "gpt2/text-generation": [],
    "bert/token-classification": ["24 of 40 texts of {place} are longer than data.max_length=6 tokens"],
    "t5/summarization": [
        "40 of 40 targets of {place} are longer than data.max_target_length=3 tokens",
        "24 of 40 texts of {place} are longer than data.max_length=6 tokens",
    ],
}
LONGEST = {"t5/summarization": [4, 9]}


@pytest.mark.parametrize("family", CUT)
def test_cut_texts_are_counted_once_for_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    targets = {"max_target_length": 3} if family.endswith("summarization") else {}
    for _ in range(2):  # a second trial of the same process
        task = task_of(tmp_path, family, max_length=6, validation=0.25, **targets)
        with caplog.at_level(logging.WARNING):
            task.load_data()
    lines = [line.format(place=tmp_path / "rows.jsonl") for line in CUT[family]]
    longest = LONGEST.get(family, [9] * len(lines))
    assert said(caplog) == [
        f"{line} and were cut (longest has {most})" for line, most in zip(lines, longest, strict=True)
    ]


def test_what_fits_is_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task_of(tmp_path, "bert/text-classification").load_data()
    assert not said(caplog)


def test_the_count_is_that_of_tokenizing_without_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = text.save_tokenizer(tmp_path)
    encoded = tokenizer(TEXTS, truncation=True, max_length=4)
    whole = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert whole_lengths(encoded, 4, lambda rows: pytest.fail("asked a fast tokenizer again")) == whole == [11, 3, 5, 6]
    store, cut = tokenize(tokenizer, TEXTS, 4)
    assert store.lengths.tolist() == [4, 3, 4, 4]
    cut.tell("here")
    assert said(caplog) == [
        "3 of 4 texts of here are longer than data.max_length=4 tokens and were cut (longest has 11)"
    ]


def test_a_slow_tokenizer_is_asked_again_for_the_full_ones_alone() -> None:
    tokenizer = ElmoTokenizer(model_max_length=9)
    asked: list[int] = []

    def uncut(rows: Any) -> Any:
        asked.extend(rows)
        return tokenizer([TEXTS[row] for row in rows], truncation=False)

    encoded = tokenizer(TEXTS, truncation=True, max_length=3)
    assert whole_lengths(encoded, 3, uncut) == [9, 1, 3, 4]
    assert asked == [0, 2, 3]


def unseen(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in said(caplog) if "classes that no training sample has" in line]


def rare(home: Path) -> str:
    """Two rows of a class that both are held out."""
    _, held = hold_out(40, 0.25)
    rows = [{**row, "label": "rare" if number in held[:2] else row["label"]} for number, row in enumerate(snippets(40))]
    return str(write_rows(home / "rare.jsonl", rows))


def test_a_class_that_training_has_not_is_named_with_its_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = rare(tmp_path)
    build_task(tiny_recipe(tmp_path, data__train=train)).load_data()
    assert unseen(caplog) == [f"validation samples of {train} have classes that no training sample has: 'rare' (2)"]
    caplog.clear()
    build_task(tiny_recipe(tmp_path, data__train=train)).load_data()  # once per process
    build_task(tiny_recipe(tmp_path)).load_data()  # every class on both sides
    assert not unseen(caplog)


def test_a_class_of_test_data_that_training_has_not_is_named_before_workers_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = rare(tmp_path)
    labels = ["neg", "pos", "rare"]
    task = build_task(tiny_recipe(tmp_path, data__test=test, data__labels=labels))
    task.check_data()
    assert unseen(caplog) == [f"test samples of {test} have classes that no training sample has: 'rare' (2)"]
    many = build_task(tiny_recipe(tmp_path, data__test=test, data__labels=labels, data__multi_label=True))
    caplog.clear()
    many.check_data()
    many.load_data()
    assert not unseen(caplog)


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(telling, "is_rank_0", lambda: False)
    Cut.of([9], 4).tell("here")
    tell_once("a line")
    assert not said(caplog)
