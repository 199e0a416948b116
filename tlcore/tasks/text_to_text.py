"""Summarization and translation, through transformers' sequence-to-sequence models.

Owns the tasks: texts and targets as tokens, collation, loss, produced text and its scores, export. Called through `build_task`; the
two tasks differ in their scores alone.

Loss is the mean over the target tokens of the global batch (`weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split
from tlcore.errors import DataError, ModelError
from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.classes import checked_places
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.generate import generate
from tlcore.tasks.logits import logits_of, mean_cross_entropy
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits
from tlcore.tasks.tokens import TokenStore, tokenize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
_PREDICT_BATCH: Final = 8


@dataclass(frozen=True)
class TextPairs:
    """Texts, and what each is to become, as tokens."""

    texts: TokenStore
    targets: TokenStore

    def __len__(self) -> int:
        return len(self.texts.lengths)


_prepared: Recent[TextPairs] = Recent(_KEPT)


class TextToText(TextTask[TextPairs]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._splits = Splits(recipe.data, self._read)

    def check_data(self) -> None:
        data = self._recipe.data
        for split, place in checked_places(data):
            read_split(place, [data.text, data.target_column], texts=[data.text, data.target_column], split=split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return (chosen.read.texts.lengths + chosen.read.targets.lengths)[chosen.rows]

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        return chosen.read.targets.lengths[chosen.rows].astype(np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        ids, mask = chosen.read.texts.pad(rows, self._text.pad_id)
        labels, told = chosen.read.targets.pad(rows, IGNORED)
        labels[(told == 0) | filler] = IGNORED
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        labels = torch.zeros(samples, self._recipe.data.max_target_length, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(*self._told(model, batch))

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.produced_metrics import ProducedText

        scores = "translation" if self._recipe.task == "translation" else "rouge"
        return ProducedText(scores, self._produce_counted, self._expected, self._told)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        for number, text in enumerate(inputs):
            if not isinstance(text, str):
                raise DataError(f"input {number} is {text!r}, not a text", hint="give one text per input")
        store = self._tokens(inputs)
        produced: list[str] = []
        for start in range(0, len(inputs), _PREDICT_BATCH):
            ids, mask = store.pad(np.arange(start, min(start + _PREDICT_BATCH, len(inputs))), self._text.pad_id)
            batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            produced += self._produce(model, batch, together=False)
        return [{"prediction": text} for text in produced]

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        return plain_examples(data, split, count, data.text, data.target_column)

    def _config(self) -> Any:
        config = self._text.load_config()
        if config.decoder_start_token_id is None:
            raise ModelError(
                f"model source {self._source.name!r}: its configuration names no decoder_start_token_id",
                hint="decoders of sequence-to-sequence models begin with one: add it to config.json",
            )
        return config

    @cached_property
    def _start_id(self) -> int:
        start: int = self._config().decoder_start_token_id
        return start

    def _told(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] in fp32, and the tokens [B, T] that they tell."""
        import torch

        labels = batch["labels"]
        # Not the model's own `labels`: with those it computes a loss over the vocabulary that nobody asks for.
        before = labels.new_full((len(labels), 1), self._start_id)
        shifted = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, self._text.pad_id)
        given = {**batch, "decoder_input_ids": torch.cat([before, shifted], dim=1)}
        logits = logits_of(model, given, use_cache=False)
        return logits, labels.to(logits.device)

    def _produce(self, model: nn.Module, inputs: Batch, *, together: bool) -> list[str]:
        data = self._recipe.data
        ids = generate(model, inputs, together=together, max_new_tokens=data.max_target_length, num_beams=data.beams)
        texts: list[str] = self._text.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _produce_counted(self, model: nn.Module, batch: Batch) -> list[str]:
        """For the samples that count; a filler is produced for as well, since the other ranks wait for that."""
        texts = self._produce(model, {name: batch[name] for name in ("input_ids", "attention_mask")}, together=True)
        return [text for text, labels in zip(texts, batch["labels"], strict=True) if bool((labels != IGNORED).any())]

    def _expected(self, batch: Batch) -> list[str]:
        kept = [labels[labels != IGNORED].tolist() for labels in batch["labels"]]
        return [self._text.tokenizer.decode(ids, skip_special_tokens=True) for ids in kept if ids]

    def _tokens(self, texts: Sequence[str], place: str | None = None) -> TokenStore:
        prefix = self._recipe.data.prefix
        return tokenize(self._text.tokenizer, [prefix + text for text in texts], self._text.max_length, place=place)

    def _read(self, place: str, hub_split: str) -> TextPairs:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, data.text, data.target_column, data.prefix, data.max_target_length)
        return _prepared.get(
            (*key, self._text.max_length, self._source.fingerprint), lambda: self._prepare(place, hub_split)
        )

    def _prepare(self, place: str, hub_split: str) -> TextPairs:
        data = self._recipe.data
        columns = [data.text, data.target_column]
        table = read_split(place, columns, texts=columns, split=hub_split).data.table
        expected = table.column(data.target_column).to_pylist()
        targets = tokenize(self._text.tokenizer, expected, data.max_target_length, as_target=True, place=place)
        return TextPairs(self._tokens(table.column(data.text).to_pylist(), place), targets)
