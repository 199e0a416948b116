"""A place of data as what a task's `predict` takes, row by row: files of texts, tables and folders of media, lines of stdin.

Owns which columns of a recipe are a task's input, and how a row becomes one; labels are not looked at. The reading is `data/`'s: a
table of texts is held in memory, as in training, and files of media are opened when they are predicted. Called by `offline.py` and
the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from tlcore.data import MediaRows, read_media, read_split
from tlcore.errors import RequestError
from tlcore.recipe import Recipe

BATCH: Final = 32
"""Rows that are answered together, and then given out."""
_SPLIT: Final = "test"
"""Of a hub dataset that names none."""
_TEXTS: Final = {"text-classification", "summarization", "translation", "masked-language-modeling", "text-generation"}
_PICTURES: Final = {
    "image-classification", "object-detection", "image-segmentation", "image-embedding", "anomaly-detection"
}  # fmt: skip
_SOUNDS: Final = {"speech-recognition", "speech-translation", "audio-classification", "audio-pretraining"}


@dataclass(frozen=True)
class Asked:
    """One input. `row` counts from 1; `columns` are those of the input that hold a plain value; `given` is what `predict` takes."""

    row: int
    columns: dict[str, Any]
    given: Any


def read_inputs(recipe: Recipe, place: str) -> Iterator[Asked]:
    """Every row of a place: whatever `data.train` may be, with the columns that the recipe names, without the labels.

    Raises DataError, StorageError as reading a split does; RequestError for a task whose input is not a row's.
    """
    if recipe.task in _PICTURES | _SOUNDS | {"video-classification", "image-text-to-text"}:
        return _media(recipe, place)
    columns, texts, empty, form = _columns(recipe)
    table = read_split(place, columns, texts=texts, split=_SPLIT, may_be_empty=empty).data.table.select(columns)
    rows = (row for batch in table.to_batches(max_chunksize=BATCH) for row in batch.to_pylist())
    return (Asked(number, _plain(row), form(row)) for number, row in enumerate(rows, 1))


def read_lines(lines: Iterable[str]) -> Iterator[Asked]:
    """One input per line, as the command line takes them; empty ones are left out, and counted."""
    stripped = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1))
    return (Asked(number, {"input": line}, line) for number, line in stripped if line.strip())


_Columns = tuple[list[str], list[str], list[str], Callable[[dict[str, Any]], Any]]


def _columns(recipe: Recipe) -> _Columns:
    """Columns to read, those of them that are texts, that may be empty, and what `predict` takes of a row."""
    data = recipe.data
    if recipe.task == "question-answering":
        pair = [data.question, data.context]
        return pair, pair, [], lambda row: {"question": row[data.question], "context": row[data.context]}
    if recipe.task == "text-classification" and (second := data.text_pair) is not None:
        from tlcore.tasks.text_pairs import pair_of

        both = [data.text, second]
        return both, both, [], lambda row: pair_of(row[data.text], row[second])
    if recipe.task == "token-classification":
        return [data.tokens], [], [], lambda row: row[data.tokens]
    if recipe.task not in _TEXTS:
        raise RequestError(
            f"{recipe.task} takes no file of inputs", hint="give them one by one: tlcore predict RUN INPUT"
        )
    if recipe.task == "text-generation" and (messages := data.messages) is not None:
        return [messages], [], [], lambda row: _question(row[messages])
    if recipe.task == "text-generation" and (more := data.input) is not None:
        from tlcore.tasks.conversations import join_input

        joined = [data.text, more]
        return joined, joined, [more], lambda row: join_input(row[data.text], row[more])
    return [data.text], [data.text], [], lambda row: row[data.text]


def _question(cell: Any) -> list[dict[str, Any]]:
    """A conversation without the answer that it ends with, if it ends with one."""
    from tlcore.tasks.conversations import read_conversation

    turns = read_conversation(cell, "a conversation")
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def _media(recipe: Recipe, place: str) -> Iterator[Asked]:
    data = recipe.data
    if recipe.task in _SOUNDS:
        from tlcore.tasks.sounds import ENDINGS as SOUNDS

        return _opened(read_media(place, [data.audio], SOUNDS, split=_SPLIT), data.audio)
    if recipe.task == "video-classification":
        from tlcore.tasks.video_classification import ENDINGS as VIDEOS

        return _opened(read_media(place, [data.video], VIDEOS, split=_SPLIT), data.video)
    from tlcore.tasks.images import ENDINGS as PICTURES

    column, text = data.image_column, data.text
    if recipe.task == "image-text-to-text":
        rows = read_media(place, [column], PICTURES, others=[text], texts=[text], split=_SPLIT)
        return _opened(rows, column, [text], lambda path, row: {"image": path, "text": rows.cell(text, row)})
    if recipe.task == "object-detection" and PurePosixPath(place).suffix.lower() == ".json":
        from tlcore.tasks.boxes import read_boxes

        return _opened(read_boxes(place, column, data.objects, _SPLIT).rows, column)
    return _opened(read_media(place, [column], PICTURES, split=_SPLIT), column)


def _opened(
    rows: MediaRows,
    column: str,
    others: Sequence[str] = (),
    form: Callable[[Any, int], Any] = lambda content, row: content,
) -> Iterator[Asked]:
    """Rows whose files are named by whole paths, since `predict` knows no folder; bytes inside a table are given as they are."""
    for row in range(len(rows)):
        cell = rows.cell(column, row)
        files = cell if isinstance(cell, list) else [cell]
        content = [rows.opener.path_of(file) or file for file in files]
        named = {column: cell, **{name: rows.cell(name, row) for name in others}}
        yield Asked(row + 1, _plain(named), form(content if isinstance(cell, list) else content[0], row))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is None or isinstance(value, str | int | float)}
