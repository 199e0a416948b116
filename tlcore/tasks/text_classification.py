"""One class per text, through transformers' sequence classification models.

Owns the task's data preparation, model class, collation, loss, prediction and export. Called through `build_task`.

Texts are read and tokenized once per process and kept for the next trials of a warm worker; every rank holds all of them, as
tokens (4 bytes each). Padding goes to the longest text of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import (
    encode_labels,
    find_files,
    find_label_names,
    fingerprint,
    hold_out,
    hub_dataset,
    read_split,
)
from tlcore.errors import DataError, Fault, ModelError, RecipeError
from tlcore.models import build_pretrained, build_scratch, quiet, resolve_source
from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.recent import Recent
from tlcore.tasks.tokens import TokenStore, tokenize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_PREDICT_BATCH: Final = 32
_MOST_CHECKED_BYTES: Final = 256 << 20
"""Largest place that `check_data` reads; what is larger, and hub datasets, the workers find faults in."""
_KEPT: Final = 4
"""Places of data kept per process: train, validation and test of one recipe, and one over. 1 million texts of 30 tokens: 128 MB."""


@dataclass(frozen=True)
class LabelledTexts:
    """One place's texts as tokens, and each text's label as an index into `values`, the distinct ones as they stand in the data."""

    texts: TokenStore
    label_of: npt.NDArray[np.int64]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Split:
    """The samples of a place that belong to one split, with class indices over all samples of that place."""

    texts: TokenStore
    classes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


_prepared: Recent[LabelledTexts] = Recent(_KEPT)


class TextClassification:
    """Implements `Task`; see there for what each method promises."""

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        self._recipe = recipe
        self._source = resolve_source(recipe.model.source, recipe.model.revision, recipe.model.trust_remote_code)
        self._known_labels = None if facts is None else tuple(facts["labels"])
        self._splits: dict[str, Split] = {}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        if self._known_labels is not None:
            return self._known_labels
        data = self._recipe.data
        values = () if data.labels is not None else self._read(data.train, "train").values
        return find_label_names(values, data.labels, f"{data.train}, column {data.label!r}")

    def check_data(self) -> None:
        data = self._recipe.data
        given = data.labels is not None
        names = data.labels
        for split, place in (("train", data.train), ("validation", data.validation), ("test", data.test)):
            if not isinstance(place, str) or _size_bytes(place) > _MOST_CHECKED_BYTES:
                continue
            table = read_split(place, [data.text, data.label], texts=[data.text], split=split).data.table
            values = tuple(table.column(data.label).combine_chunks().unique().to_pylist())
            where = f"{place}, column {data.label!r}"
            if names is None or split == "train":
                names = find_label_names(values, data.labels, where)
            encode_labels(values, names, given, where)

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        return {name: len(self._split(name).rows) for name in splits}

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._split(split)
        return chosen.texts.lengths[chosen.rows]

    def build_model(self, from_scratch: bool) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        build = build_scratch if from_scratch else build_pretrained
        return build(AutoModelForSequenceClassification, self._source, self._config(), self._recipe.train.seed)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        import torch

        chosen = self._split(split)
        filler = len(indices) == 0
        rows = chosen.rows[np.asarray([0] if filler else indices, dtype=np.int64)]
        ids, mask = chosen.texts.pad(rows, self._tokenizer.pad_token_id)
        classes = np.array([IGNORED]) if filler else chosen.classes[rows]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": classes}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._max_length, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens[:, 0]}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        logits = _logits(model, batch)
        labels = batch["labels"].to(logits.device)
        # Not reduction="mean": that is 0/0 for a filler batch, which must give a zero with a gradient.
        return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / (labels != IGNORED).sum().clamp(
            min=1
        )

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.classification_metrics import ClassificationCounts

        return ClassificationCounts(len(self.labels), _logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        for number, text in enumerate(inputs):
            if not isinstance(text, str):
                raise DataError(f"input {number} is {text!r}, not a text", hint="give one text per input")
        answers: list[dict[str, Any]] = []
        store = tokenize(self._tokenizer, inputs, self._max_length)
        for start in range(0, len(inputs), _PREDICT_BATCH):
            rows = np.arange(start, min(start + _PREDICT_BATCH, len(inputs)))
            ids, mask = store.pad(rows, self._tokenizer.pad_token_id)
            with torch.no_grad():
                logits = _logits(model, {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
            answers.extend(self._answer(scores) for scores in logits.softmax(dim=-1).tolist())
        return answers

    def facts(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def export_extras(self, directory: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        config = self._config()
        config.architectures = [AutoModelForSequenceClassification._model_mapping[type(config)].__name__]
        with quiet():
            config.save_pretrained(directory)
            self._tokenizer.save_pretrained(directory)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._source.load_processor()

    @cached_property
    def _max_length(self) -> int:
        """The recipe's, if the model has that many positions."""
        wanted = self._recipe.data.max_length
        # The tokenizer knows best: RoBERTa has 514 position rows and takes 512 tokens. Unknown is a huge number there.
        most = min(
            self._tokenizer.model_max_length, getattr(self._source.load_config(), "max_position_embeddings", wanted)
        )
        if wanted > most:
            text = f"is {wanted}, but model {self._source.name!r} takes at most {most} tokens"
            raise RecipeError([Fault("data.max_length", f"{text}; set it to {most} or less")])
        return wanted

    def _config(self) -> Any:
        names = self.labels
        config = self._source.load_config(
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        config.pad_token_id = self._tokenizer.pad_token_id
        if len(self._tokenizer) > config.vocab_size:
            raise ModelError(
                f"model source {self._source.name!r}: its tokenizer has {len(self._tokenizer)} tokens, "
                f"the model only {config.vocab_size}",
                hint="tokenizer and weights do not belong together",
            )
        return config

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            self._splits[name] = self._make_split(name)
        return self._splits[name]

    def _make_split(self, name: str) -> Split:
        data = self._recipe.data
        held_out = isinstance(data.validation, float)
        place = {"train": data.train, "validation": data.train if held_out else data.validation, "test": data.test}[
            name
        ]
        if place is None:
            raise DataError(f"the recipe names no {name} data", hint=f"set data.{name}")
        known = self._read(str(place), "train" if held_out and name == "validation" else name)
        rows = np.arange(len(known.label_of), dtype=np.int64)
        if isinstance(data.validation, float) and name != "test":
            kept, held = hold_out(len(rows), data.validation)
            rows = kept if name == "train" else held
        given = data.labels is not None
        classes = encode_labels(known.values, self.labels, given, f"{place}, column {data.label!r}")
        return Split(known.texts, classes[known.label_of], rows)

    def _read(self, place: str, hub_split: str) -> LabelledTexts:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, data.text, data.label, self._max_length, self._source.fingerprint)
        return _prepared.get(key, lambda: self._prepare(place, hub_split))

    def _prepare(self, place: str, hub_split: str) -> LabelledTexts:
        data = self._recipe.data
        table = read_split(place, [data.text, data.label], texts=[data.text], split=hub_split).data.table
        labels = table.column(data.label).combine_chunks().dictionary_encode()
        texts = tokenize(self._tokenizer, table.column(data.text).to_pylist(), self._max_length)
        return LabelledTexts(texts, labels.indices.to_numpy().astype(np.int64), tuple(labels.dictionary.to_pylist()))

    def _answer(self, scores: Sequence[float]) -> dict[str, Any]:
        by_name = dict(zip(self.labels, scores, strict=True))
        label = max(by_name, key=by_name.__getitem__)
        return {"label": label, "score": by_name[label], "scores": by_name}


def _size_bytes(place: str) -> float:
    return float("inf") if hub_dataset(place) else sum(file.size_bytes for file in find_files(place))


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """[B, C] in fp32 whatever the model computes in, on the model's device."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()
