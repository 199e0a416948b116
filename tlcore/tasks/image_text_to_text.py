"""Answers to questions about pictures, through transformers' vision-language models (LLaVA, SmolVLM and the like).

Owns the task: pictures with questions and answers as batches, loss, metrics, answers and export. How the three become tokens is
`picture_prompts.py`'s. Called through `build_task`. A caption is an answer to one question for all pictures.

Loss is the mean over the answers' tokens of the global batch (`weights`); a question and its picture are read, not learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows, bytes_read, fingerprint, read_media
from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.classes import MOST_CHECKED_BYTES
from tlcore.tasks.generate import generate
from tlcore.tasks.images import ENDINGS, as_tensor, held_pictures, picture_examples, pictures_given
from tlcore.tasks.logits import mean_cross_entropy
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.picture_prompts import Asked, PicturePrompts
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits, given_places
from tlcore.tasks.telling import Cut
from tlcore.tasks.told import told_logits, with_most_told, with_told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
_BLANK: Final = (224, 224)
"""Width and height of the picture by which memory is told where no data is read."""


@dataclass(frozen=True)
class AskedPictures:
    """The rows of a place, and of each the question with its answer."""

    rows: MediaRows
    asked: list[Asked]

    def __len__(self) -> int:
        return len(self.asked)


_prepared: Recent[AskedPictures] = Recent(_KEPT)


class ImageTextToText(ModelTask[AskedPictures]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForImageTextToText"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._prompts = PicturePrompts(self._source, recipe.data.max_length)
        self._splits = Splits(recipe.data, self._read)

    def check_data(self) -> None:
        for split, place in given_places(self._recipe.data):
            if bytes_read(place) <= MOST_CHECKED_BYTES:
                self._rows(place, split).check_present(self._recipe.data.image_column)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return np.array([asked.tokens for asked in self._asked(split)], dtype=np.int32)

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        return np.array([asked.learned for asked in self._asked(split)], dtype=np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        chosen, column = self._splits[split], self._recipe.data.image_column
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        asked = [chosen.read.asked[row] for row in rows]
        pictures = held_pictures(chosen.read.rows, column, rows, "as they are", as_tensor)
        batch = self._prompts.batch([each.text for each in asked], pictures)
        labels = batch["input_ids"].clone()
        for row, (each, tokens) in enumerate(zip(asked, batch["attention_mask"].sum(dim=1).tolist(), strict=True)):
            labels[row, : tokens - each.learned] = IGNORED
            labels[row, tokens:] = IGNORED
        if filler:
            labels[:] = IGNORED
        return with_told({**batch, "labels": labels}, ahead=1)

    def largest_batch(self, samples: int) -> Batch:
        """Texts of `max_length` beside pictures of 224 pixels square; a family that cuts larger ones into tiles takes more."""
        import torch
        from torch.utils._mode_utils import no_dispatch

        with no_dispatch():  # a processor computes on real numbers
            shortest = self._prompts.sample("", "", "an estimate")
            made = self._prompts.batch([shortest.text], [torch.zeros(3, *_BLANK, dtype=torch.uint8)])
            more = self._recipe.data.max_length - shortest.tokens
            longer = {"input_ids": self._prompts.pad_id, "attention_mask": 1}
            for name, value in longer.items():
                made[name] = torch.nn.functional.pad(made[name], (0, max(0, more)), value=value)
            whole = {name: torch.cat([tensor] * samples) for name, tensor in made.items()}
        return with_most_told({**whole, "labels": whole["input_ids"]})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(*_told(model, batch))

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.token_counts import TokenCounts

        return TokenCounts(_told)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answer to each {image, text}, given as such or as JSON, greedily."""
        answers = []
        for number, given in enumerate(inputs):
            pair = _picture_and_question(given, number)
            text = self._prompts.question(pair["text"], f"input {number}")
            batch = self._prompts.batch([text], pictures_given([pair["image"]]))
            produced = generate(
                model,
                batch,
                together=False,
                max_new_tokens=self._recipe.data.max_length,
                pad_token_id=self._prompts.pad_id,
            )
            answer = produced[0, batch["input_ids"].shape[1] :]
            answers.append({"prediction": self._prompts.processor.decode(answer, skip_special_tokens=True)})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        if split not in dict(given_places(data)):
            return []
        rows = self._splits[split].read.rows
        asked, answered = (
            picture_examples(rows, data.image_column, count, text) for text in (data.text, data.target_column)
        )
        return [
            ({"image": path, "text": text}, answer) for (path, text), (_, answer) in zip(asked, answered, strict=True)
        ]

    def _processors(self) -> list[Any]:
        return [self._prompts.processor]

    def _asked(self, split: str) -> list[Asked]:
        chosen = self._splits[split]
        return [chosen.read.asked[row] for row in chosen.rows]

    def _rows(self, place: str, split: str) -> MediaRows:
        data = self._recipe.data
        texts = [data.text, data.target_column]
        return read_media(place, [data.image_column], ENDINGS, others=texts, texts=texts, split=split)

    def _read(self, place: str, split: str) -> AskedPictures:
        data = self._recipe.data
        key = (fingerprint(place), split, data.image_column, data.text, data.target_column, data.max_length)
        return _prepared.get((*key, self._source.fingerprint), lambda: self._prepare(place, split))

    def _prepare(self, place: str, split: str) -> AskedPictures:
        rows = self._rows(place, split)
        texts = [
            rows.table.column(name).to_pylist() for name in (self._recipe.data.text, self._recipe.data.target_column)
        ]
        samples = [
            self._prompts.sample(asked, answer, f"{place}, row {row + 1}")
            for row, (asked, answer) in enumerate(zip(*texts, strict=True))
        ]
        Cut.of([sample.whole for sample in samples], self._recipe.data.max_length).tell(place)
        return AskedPictures(rows, samples)


def _told(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [M, V] in fp32 where the next token is learned, and that token [M]."""
    return told_logits(model, batch, ahead=1, use_cache=False)


def _picture_and_question(given: Any, number: int) -> Mapping[str, Any]:
    try:
        pair = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError:
        pair = None
    if not isinstance(pair, Mapping) or not {"image", "text"} <= set(pair) or not isinstance(pair["text"], str):
        raise DataError(
            f"input {number} is {str(given)[:80]!r}, no picture with a question",
            hint='give {"image": "path or URL", "text": "..."}',
        )
    return pair
