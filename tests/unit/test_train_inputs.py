"""`predict --file`, `evaluate --data` and runs named in place of checkpoints, on tiny models that were trained or made."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_text_model import snippets, tiny_recipe, write_rows
from typed_commands import run, settle, store_untrained

from tests.families import images
from tests.stored_model import store_model
from tlcore.errors import DataError
from tlcore.recipe import recipe_from_dict
from tlcore.storage import create_run
from tlcore.storage.journal import Journal
from tlcore.tasks import build_task
from tlcore.train.inputs import BATCH, read_inputs, read_lines

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 26, tzinfo=UTC)
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return store_untrained(tmp_path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_of_a_file_is_answered_as_it_is_when_asked_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
) -> None:
    """More rows than a batch, without labels; a column that is no input does not matter."""
    texts = [each["text"] for each in snippets(2 * BATCH + 3)]
    file = write_rows(tmp_path / "new.jsonl", [{"text": text, "id": 7} for text in texts])
    code, out, err = run(capsys, "predict", url, "--file", file)
    assert (code, err) == (0, "")
    found = lines(out)
    assert [(each["row"], each["text"]) for each in found] == list(enumerate(texts, 1))
    alone = json.loads(run(capsys, "predict", url, texts[0], texts[-1], "--json")[1])
    for one, many in zip(alone, (found[0], found[-1]), strict=True):
        assert one["label"] == many["label"]
        assert one["score"] == pytest.approx(many["score"], abs=1e-5)

    (tmp_path / "new.csv").write_text("".join(f'"{text}"\n' for text in ("text", *texts)))
    code, out, err = run(capsys, "predict", url, "--file", tmp_path / "new.csv", "--out", tmp_path / "said.jsonl")
    assert (code, out, err) == (0, "", "")
    assert lines((tmp_path / "said.jsonl").read_text()) == found
    code, _, err = run(capsys, "predict", url, "--file", tmp_path / "new.csv", "--out", tmp_path / "said.jsonl")
    assert code == 2 and "said.jsonl exists" in err


def test_lines_of_stdin_are_inputs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\n\nbad\r\n"))
    code, out, err = run(capsys, "predict", url, "--file", "-")
    assert (code, err) == (0, "")
    assert [(each["row"], each["input"]) for each in lines(out)] == [(1, "good film"), (3, "bad")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "there is no INPUT"),
        (["good", "--file", "x.csv"], "--file x.csv and INPUT exclude each other"),
        (["good", "--out", "x.jsonl"], "--out x.jsonl is for what --file gives"),
        (["--file", "x.csv", "--out", "/no/such/x.jsonl"], "--out /no/such/x.jsonl lies in no directory"),
        (["--file", "no/such/place.csv"], "no data at no/such/place.csv"),
    ],
)
def test_what_says_nothing_to_predict_for_is_refused(
    capsys: pytest.CaptureFixture[str], url: str, words: list[str], expected: str
) -> None:
    code, out, err = run(capsys, "predict", url, *words)
    assert (code, out) == (2, "")
    assert expected in err and "Traceback" not in err


def test_a_row_that_cannot_be_used_is_told_by_its_place(tmp_path: Path, url: str) -> None:
    from tlcore.train.offline import TrainedModel

    rows = [*read_lines(["good"] * BATCH), *read_lines(["bad"])]
    rows[-1] = replace(rows[-1], given=7)
    given = TrainedModel(url).predict_rows(rows, "x.csv")
    assert len([next(given) for _ in range(BATCH)]) == BATCH, "what is before it is answered"
    with pytest.raises(DataError, match=r"x\.csv, rows 1 to 1, .*input 0 is 7, not a text"):
        next(given)


def test_evaluate_takes_other_data_with_the_recipes_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, url: str
) -> None:
    train = tiny_recipe(tmp_path).data.train
    code, out, err = run(capsys, "evaluate", url, "--data", train, "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)) >= {"test_accuracy", "test_loss"}
    (tmp_path / "other.csv").write_text("words,label\ngood,pos\n")
    code, _, err = run(capsys, "evaluate", url, "--data", tmp_path / "other.csv")
    assert code == 2 and "other.csv has no column 'text'" in err
    code, _, err = run(capsys, "evaluate", url)
    assert code == 2 and "the recipe names no test data" in err
    code, _, err = run(capsys, "evaluate", url, "--data", train, "--split", "validation")
    assert code == 2 and "--data stands in place of the test split" in err


def test_a_run_stands_for_its_best_trials_best_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    made = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict()}, NOW, "one")
    journal = Journal(made.open(), lambda: NOW)
    model = build_task(recipe).build_model(from_scratch=False)
    journal.append("suggested", "t000", point={}, of=1)
    for step, accuracy in ((5, 0.75), (10, 0.5)):
        metrics = {"eval_accuracy": accuracy}
        store_model(made.open(), model, recipe, step=step, metrics=metrics)
        journal.append("result", "t000", step=step, fraction=step / 10, metrics=metrics, checkpoint_step=step)
    there = ("--storage", recipe.storage)
    said = f"checkpoint: {made.url}/trials/t000/step-00000005\n"
    for word in ("tiny", f"tiny/{made.run_id}", "tiny/t000"):
        code, out, err = run(capsys, "predict", word, "good", *there)
        assert (code, err) == (0, said), word
        assert out.startswith("'good' -> ")
    assert run(capsys, "evaluate", made.url, "--split", "validation")[::2] == (0, said)
    assert run(capsys, "export", "tiny", tmp_path / "out", *there) == (0, f"{tmp_path / 'out'}\n", said)
    code, _, err = run(capsys, "export", "tiny/t007", tmp_path / "out2", *there)
    assert code == 1 and "no checkpoint of trial 't007'" in err and "trials with any: t000" in err


def test_pictures_of_a_folder_and_of_a_table_are_predicted_by_their_places(tmp_path: Path) -> None:
    sections = images.MAKERS["vit/image-classification"](tmp_path)
    recipe = recipe_from_dict({"name": "x", "task": "image-classification", **sections, "train": {}, "storage": "s"})
    task = build_task(recipe, {"labels": ["a", "b"]})
    model = task.build_model(from_scratch=False).eval()
    folder = list(read_inputs(recipe, recipe.data.train))
    assert len(folder) > 2
    assert [each.row for each in folder] == list(range(1, len(folder) + 1))
    assert all(Path(each.given).is_absolute() and each.given.endswith(each.columns["image"]) for each in folder)
    table = write_rows(Path(recipe.data.train) / "all.jsonl", [each.columns for each in folder])
    assert list(read_inputs(recipe, str(table))) == folder
    assert len(task.predict(model, [each.given for each in folder])) == len(folder)


@pytest.mark.parametrize(
    ("task", "data", "row", "given", "columns"),
    [
        ("token-classification", {}, {"tokens": ["a", "b"]}, ["a", "b"], {}),
        (
            "question-answering",
            {},
            {"question": "q", "context": "c"},
            {"question": "q", "context": "c"},
            {"question": "q", "context": "c"},
        ),
        ("text-generation", {"messages": "m"}, {"m": MESSAGES}, MESSAGES[:1], {}),
        ("text-generation", {"messages": "m"}, {"m": MESSAGES[:1]}, MESSAGES[:1], {}),
        ("text-generation", {"input": "i", "target": "t"}, {"text": "a", "i": "b"}, "a\n\nb", {"text": "a", "i": "b"}),
        ("translation", {"text": "en"}, {"en": "a"}, "a", {"en": "a"}),
    ],
)
def test_each_task_is_asked_in_its_own_way(
    tmp_path: Path, task: str, data: dict[str, str], row: dict[str, Any], given: Any, columns: dict[str, Any]
) -> None:
    file = str(write_rows(tmp_path / "rows.jsonl", [row]))
    sections = {"model": {"source": str(tmp_path)}, "data": {"train": file, **data}, "train": {}, "storage": "s"}
    [asked] = read_inputs(recipe_from_dict({"name": "x", "task": task, **sections}), file)
    assert (asked.row, asked.given, asked.columns) == (1, given, columns)
