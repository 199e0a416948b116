"""One class per text or pair of texts, any number of them, or a number, through transformers' sequence classification models.

Owns the task's data preparation, model class, collation, loss, prediction and export. Called through `build_task`.

Texts are read and tokenized once per process and kept for the next trials of a warm worker; every rank holds all of them, as
tokens (4 bytes each). Padding goes to the longest text of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split
from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.choice import choice_or_number
from tlcore.tasks.classes import assumed_labels, check_labelled
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.logits import logits_of
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.sample_labels import SampleLabels, empty_cells
from tlcore.tasks.splits import Splits, given_places
from tlcore.tasks.text_pairs import TokenizedTexts, asked_columns, largest_texts, pair_of, text_columns, tokenize_texts
from tlcore.tasks.tokens import cells, prepared_texts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_PREDICT_BATCH: Final = 32
_KEPT: Final = 4
"""Places of data kept per process: train, validation and test of one recipe, and one over. 1 million texts of 30 tokens: 128 MB."""


@dataclass(frozen=True)
class LabelledTexts:
    """One place's texts, or pairs of them, as tokens, and their labels as they stand in the data."""

    texts: TokenizedTexts
    labels: SampleLabels

    def __len__(self) -> int:
        return len(self.texts.tokens.lengths)


_prepared: Recent[LabelledTexts] = Recent(_KEPT)


class TextClassification(TextTask[LabelledTexts]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._splits = Splits(recipe.data, self._read)
        self._choice = choice_or_number(recipe, facts, self._splits, lambda read: read.labels)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        data = self._recipe.data
        check_labelled(data, given_places(data), text_columns(data), texts=text_columns(data))

    def _check_split(self, split: str) -> None:
        self._choice.check(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.texts.tokens.lengths[chosen.rows]

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        labels = self._choice.targets(split, rows, filler=filler)
        return {**chosen.read.texts.batch(rows, self._text.pad_id), "labels": labels}

    def largest_batch(self, samples: int) -> Batch:
        pairs = self._recipe.data.text_pair is not None
        return {**largest_texts(self._text, samples, pairs), "labels": self._choice.largest(samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._choice.loss(logits_of(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        return self._choice.counts(logits_of)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        texts = tokenize_texts(self._text, asked_columns(inputs, pairs=self._recipe.data.text_pair is not None))
        for start in range(0, len(inputs), _PREDICT_BATCH):
            rows = np.arange(start, min(start + _PREDICT_BATCH, len(inputs)))
            with torch.no_grad():
                logits = logits_of(model, texts.batch(rows, self._text.pad_id))
            answers.extend(self._choice.answers(self._choice.probabilities(logits)))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        found = plain_examples(data, split, count, data.text, data.label)
        if data.text_pair is None:
            return found
        seconds = plain_examples(data, split, count, data.text_pair, None)
        return [(pair_of(first, second), label) for (first, label), (second, _) in zip(found, seconds, strict=True)]

    def facts(self) -> dict[str, Any]:
        return self._choice.facts()

    def _config(self) -> Any:
        return self._text.load_config(**self._choice.as_config())

    def _read(self, place: str, hub_split: str) -> LabelledTexts:
        data = self._recipe.data
        columns = (*text_columns(data), data.label, data.multi_label)
        key = (fingerprint(place), hub_split, *columns, self._text.max_length, self._source.fingerprint)
        return _prepared.get(key, lambda: self._prepare(place, hub_split))

    def _prepare(self, place: str, hub_split: str) -> LabelledTexts:
        data = self._recipe.data
        empty = empty_cells(data.label, data.multi_label)
        named = text_columns(data)
        table = read_split(place, [*named, data.label], texts=named, split=hub_split, may_be_empty=empty).data.table
        labels = SampleLabels.read(table, data.label, data.multi_label)
        text = self._text
        texts = prepared_texts(
            TokenizedTexts,
            table,
            (hub_split, *named, text.max_length),
            place,
            text.tokenizer,
            lambda: tokenize_texts(text, [cells(table.column(name)) for name in named]),
        )
        texts.cut.tell(place, what="texts" if len(named) == 1 else "pairs of texts")
        return LabelledTexts(texts, labels)
