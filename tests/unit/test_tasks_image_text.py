"""Questions about pictures: which tokens are learned, what is cut, what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import images
from tlcore.errors import DataError, ModelError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task, build_without_data
from tlcore.tasks.base import IGNORED

pytestmark = pytest.mark.unit

PICTURE_TOKENS = (images.SIDE // 16) ** 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("llava")
    images.llava(place)
    return place


def task_of(home: Path, train: Path | None = None, model: Path | None = None, **data: Any) -> Task:
    recipe = recipe_from_dict(
        {
            "name": "tiny",
            "task": "image-text-to-text",
            "model": {"source": str(model or home / "model")},
            "data": {"train": str(train or home / "rows.jsonl"), "max_length": 24, **data},
            "storage": str(home / "store"),
        }
    )
    return build_task(recipe)


def rows_with(home: Path, name: str, **changes: str) -> Path:
    """The rows with the third one's texts changed, beside the same pictures."""
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    rows[2] = {**rows[2], **changes}
    (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home / name


def test_the_answer_alone_is_learned_and_the_picture_counts_as_one_token(home: Path) -> None:
    task = task_of(home)
    task.load_data()
    batch = task.collate("train", range(4))
    assert (batch["input_ids"] == 23).sum(dim=1).tolist() == [PICTURE_TOKENS] * 4
    tokens = batch["attention_mask"].sum(dim=1)
    assert (task.lengths("train")[:4] + PICTURE_TOKENS - 1).tolist() == tokens.tolist()
    told = batch["labels"] != IGNORED
    assert task.weights("train")[:4].tolist() == told.sum(dim=1).tolist()
    tokenizer = task._prompts.processor.tokenizer  # type: ignore[attr-defined]
    learned = [tokenizer.decode(ids[row]) for ids, row in zip(batch["labels"], told, strict=True)]
    assert set(learned) <= {"the film is good [SEP]", "a very slow plot was bad [SEP]"}
    assert len(set(learned)) == 2
    assert not told[:, 0].any()
    assert torch.equal(batch["labels"][told], batch["input_ids"][told])
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())


def test_a_filler_learns_nothing(home: Path) -> None:
    assert bool((task_of(home).collate("train", [])["labels"] == IGNORED).all())


def test_the_loss_is_the_mean_over_learned_tokens_whatever_the_padding(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    together = task.loss(model, task.collate("train", range(5)))
    apart = [task.loss(model, task.collate("train", [index])).item() for index in range(5)]
    assert together.item() == pytest.approx(np.average(apart, weights=task.weights("train")[:5]), rel=1e-4)


def test_an_answer_is_cut_at_the_longest_length(home: Path) -> None:
    task = task_of(home, max_length=12)
    lengths = task.lengths("train")
    assert lengths.max() == 12
    batch = task.collate("train", [int(lengths.argmax())])
    assert int((batch["labels"] != IGNORED).sum()) == task.weights("train")[lengths.argmax()] > 0
    assert int(batch["labels"][0, -1]) != 3, "the end of a cut answer is not learned"


def test_a_question_without_room_for_an_answer_names_its_row(home: Path) -> None:
    place = rows_with(home, "long.jsonl", text="film " * 30)
    with pytest.raises(DataError, match=r"long\.jsonl, row 3: the question alone has \d+ tokens"):
        task_of(home, place).load_data()


@pytest.mark.parametrize("column", ["text", "target"])
def test_a_text_with_the_mark_of_a_picture_is_refused(home: Path, column: str) -> None:
    place = rows_with(home, f"mark-{column}.jsonl", **{column: "film <image> good"})
    with pytest.raises(
        DataError, match=rf"mark-{column}\.jsonl, row 3: a text holds <image>, which stands for a picture"
    ):
        task_of(home, place).load_data()


def changed_model(home: Path, target: Path, name: str, content: str | None) -> Path:
    for file in (home / "model").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / name).unlink() if content is None else (target / name).write_text(content)
    return target


def test_a_source_without_a_template_or_processor_is_refused(home: Path, tmp_path: Path) -> None:
    silent = changed_model(home, tmp_path, "chat_template.jinja", None)
    with pytest.raises(ModelError, match="has no chat template, which says where the picture stands"):
        task_of(home, model=silent).load_data()
    text_alone = changed_model(home, tmp_path, "processor_config.json", None)
    with pytest.raises(ModelError, match="processor"):
        task_of(home, model=text_alone).load_data()


def test_a_template_that_rewrites_the_question_is_refused(home: Path, tmp_path: Path) -> None:
    template = "{% if add_generation_prompt %}[CLS] <image> film{% else %}<image> plot{% endif %}"
    odd = changed_model(home, tmp_path, "chat_template.jinja", template)
    with pytest.raises(ModelError, match=r"row 1: the chat template of this processor rewrites the question"):
        task_of(home, model=odd).load_data()


def test_a_picture_is_asked_about_alone_or_as_json(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    given = {"image": str(home / "0.png"), "text": "is the film fine"}
    alone, as_json = task.predict(model, [given, json.dumps(given)])
    assert alone == as_json
    assert isinstance(alone["prediction"], str)


@pytest.mark.parametrize("given", ["is the film fine", {"image": "0.png"}, {"image": "0.png", "text": 3}, "{", 7])
def test_an_input_without_picture_and_question_is_refused(home: Path, given: Any) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    with pytest.raises(DataError, match=r"input 0 is .*, no picture with a question"):
        task.predict(model, [given])


def test_a_question_with_the_mark_of_a_picture_is_refused_in_a_prediction(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    with pytest.raises(DataError, match="input 0: a text holds <image>, which stands for a picture"):
        task.predict(model, [{"image": str(home / "0.png"), "text": "<image> film"}])


def test_a_picture_that_is_not_there_is_found_before_workers_start(home: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl, row 3: column 'image' names .*gone\.png, which is no file"):
        task_of(home, rows_with(home, "absent.jsonl", image="gone.png")).check_data()


def test_an_estimate_needs_no_data_and_no_memory(home: Path) -> None:
    from tlcore.engine.activations import nothing_allocated

    recipe = recipe_from_dict(
        {
            "name": "tiny",
            "task": "image-text-to-text",
            "model": {"source": str(home / "model")},
            "data": {"train": "/not/there.jsonl", "max_length": 20},
            "storage": str(home / "store"),
        }
    )
    with nothing_allocated():
        task = build_without_data(recipe)
        model = task.build_model(from_scratch=True)
        batch = task.largest_batch(3)
        task.loss(model, batch).backward()
    assert batch["input_ids"].shape == (3, 20 + PICTURE_TOKENS - 1)
