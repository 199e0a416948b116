"""One class per word (names, parts of speech), through transformers' token classification models.

Owns the task: words as tokens with the class of each word on its first token, collation, loss, entity metrics, prediction, export.
Called through `build_task`.

Loss is the mean over the labelled words of the global batch (`weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import GrowingArray, class_names, fingerprint, read_split
from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator, SumOverRanks
from tlcore.tasks.classes import Classes, assumed_labels, checked_places
from tlcore.tasks.entities import spans
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.logits import logits_of, mean_cross_entropy
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits
from tlcore.tasks.telling import Cut
from tlcore.tasks.tokens import CHUNK_TEXTS, TokenBuilder, TokenStore, whole_lengths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4


@dataclass(frozen=True)
class LabelledWords:
    """Texts as tokens; parallel to them the index into `values` of a word's label on its first token, -1 on all others. `names` as
    in `Labels`."""

    texts: TokenStore
    label_of: npt.NDArray[np.int64]
    values: tuple[Any, ...]
    names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.texts.lengths)


_prepared: Recent[LabelledWords] = Recent(_KEPT)


class TokenClassification(TextTask[LabelledWords]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForTokenClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._splits = Splits(recipe.data, self._read)
        self._classes = Classes(recipe.data, facts, self._training_labels)
        self._class_of: dict[str, npt.NDArray[np.int64]] = {}

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        data = self._recipe.data
        for split, place in checked_places(data):
            table = read_split(place, [data.tokens, data.label], split=split).data.table
            labels = table.column(data.label).to_pylist()
            _check_words(table.column(data.tokens).to_pylist(), labels, place)
            if split == "train" and data.labels is None and class_names(table, data.label) is None:
                _check_tags(chain.from_iterable(labels), place)

    def _check_split(self, split: str) -> None:
        self._classes_of(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.texts.lengths[chosen.rows]

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        words = np.concatenate([[0], np.cumsum(chosen.read.label_of >= 0)])
        each = words[chosen.read.texts.offsets[1:]] - words[chosen.read.texts.offsets[:-1]]
        weights: npt.NDArray[np.float64] = each[chosen.rows].astype(np.float64)
        return weights

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        ids, mask = chosen.read.texts.pad(rows, self._text.pad_id)
        labels = np.full(ids.shape, IGNORED, dtype=np.int64)
        if not filler:
            classes, offsets = self._classes_of(split), chosen.read.texts.offsets
            labels[mask == 1] = np.concatenate([classes[offsets[row] : offsets[row + 1]] for row in rows])
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(logits_of(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        return EntityCounts(self._classes.names)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """A label for each word of a text, split at spaces, or of a list of words."""
        import torch

        answers = []
        for number, given in enumerate(inputs):
            words = given.split() if isinstance(given, str) else list(given)
            if not words:
                raise DataError(f"input {number} has no word", hint="give a text, or a list of words")
            encoded = self._encode([words], truncation=True, max_length=self._text.max_length)
            ids = torch.tensor(encoded["input_ids"])
            with torch.no_grad():
                chosen = logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0].argmax(-1)
            word_of = encoded.word_ids(0)
            first = _first_tokens(word_of)
            names = {word_of[at]: self._classes.names[int(chosen[at])] for at in first}
            # Words that a long text is cut before have no label; one that the tokenizer drops whole has the one of nothing.
            cut = ids.shape[1] >= self._text.max_length
            labels = [names.get(at, "O") for at in range(max(names, default=-1) + 1 if cut else len(words))]
            said = [f"{word}/{label}" for word, label in zip(words, labels, strict=False) if label != "O"]
            answers.append({"prediction": " ".join(said) or "no entity", "labels": labels})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        return plain_examples(data, split, count, data.tokens, data.label, texts=False)

    def facts(self) -> dict[str, Any]:
        return self._classes.facts()

    def _config(self) -> Any:
        return self._text.load_config(**self._classes.as_config())

    def _classes_of(self, split: str) -> npt.NDArray[np.int64]:
        """Class index of every token of the split's place; IGNORED where there is none."""
        if split not in self._class_of:
            chosen = self._splits[split]
            encoded = np.append(self._classes.encode(chosen.read, chosen.place), IGNORED)
            self._class_of[split] = encoded[chosen.read.label_of]
        return self._class_of[split]

    def _training_labels(self) -> LabelledWords:
        """Raises DataError: tags that are numbers of nothing known."""
        found = self._splits.read_training_place()
        if found.names is None:
            _check_tags(found.values, self._recipe.data.train)
        return found

    def _read(self, place: str, hub_split: str) -> LabelledWords:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, data.tokens, data.label, self._text.max_length, self._source.fingerprint)
        return _prepared.get(key, lambda: self._prepare(place, hub_split))

    def _prepare(self, place: str, hub_split: str) -> LabelledWords:
        data = self._recipe.data
        table = read_split(place, [data.tokens, data.label], split=hub_split).data.table
        index_of: dict[Any, int] = {}
        most, builder, label_of = self._text.max_length, TokenBuilder(), GrowingArray(np.int64)
        cut = Cut(most)
        for start in range(0, table.num_rows, CHUNK_TEXTS):
            chunk = table.slice(start, CHUNK_TEXTS)
            words, labels = chunk.column(data.tokens).to_pylist(), chunk.column(data.label).to_pylist()
            _check_words(words, labels, place, start)
            encoded = self._encode(words, truncation=True, max_length=most)
            cut += Cut.of(whole_lengths(encoded, most, partial(self._uncut, words)), most)
            builder.append(encoded["input_ids"])
            for row, given in enumerate(labels):
                label_of.append(_labelled(encoded, row, given, index_of))
        cut.tell(place)
        names = class_names(table, data.label)
        return LabelledWords(builder.store(), label_of.array(), tuple(index_of), names)

    def _encode(self, words: Sequence[Sequence[str]], **settings: Any) -> Any:
        """Texts of words as tokens that know their words: the tokens of the running texts."""
        texts = [[*some[:1], *(f"{self._gap}{word}" for word in some[1:])] for some in words]
        return self._text.tokenizer(texts, is_split_into_words=True, **settings)

    @cached_property
    def _gap(self) -> str:
        """What stands before a word that follows another. A byte-level tokenizer has the space as a part of the word, and would
        take each word given alone for the rest of the one before; others mark where words begin themselves."""
        tokenizer = self._text.tokenizer
        apart = tokenizer(["a", "a"], is_split_into_words=True)["input_ids"]
        return "" if apart == tokenizer("a a")["input_ids"] else " "

    def _uncut(self, words: Sequence[Sequence[str]], rows: Sequence[int]) -> Any:
        return self._encode([words[row] for row in rows], truncation=False, verbose=False)


class EntityCounts:
    """Right, told and present entities, right and all words, and summed loss; a MetricAccumulator.

    Args:
        names: class names in index order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        import torch

        self._names = names
        self._sums = torch.zeros(6, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; ignored tokens count nowhere."""
        import torch
        from torch.nn.functional import cross_entropy

        with torch.no_grad():
            logits = logits_of(model, batch)
            labels = batch["labels"].to(logits.device)
            loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        right = told = present = 0
        counted = labels != IGNORED
        for chosen, expected, kept in zip(logits.argmax(-1), labels, counted, strict=True):
            said = spans([self._names[index] for index in chosen[kept].tolist()])
            true = spans([self._names[index] for index in expected[kept].tolist()])
            right, told, present = right + len(said & true), told + len(said), present + len(true)
        words_right = ((logits.argmax(-1) == labels) & counted).sum().item()
        counts = [right, told, present, words_right, counted.sum().item(), loss.item()]
        self._sums += torch.tensor(counts, dtype=torch.float64)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        self._sums = sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        """f1, precision and recall over entities, accuracy and loss over words. Raises DataError when no word was counted."""
        right, told, present, words_right, words, loss = self._sums.tolist()
        if words == 0:
            raise DataError("no word was evaluated", hint="the split is empty")
        precision, recall = right / max(told, 1), right / max(present, 1)
        f1 = 2 * right / max(told + present, 1)
        accuracy = words_right / words
        return {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy, "loss": loss / words}


def _first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """Where each word begins."""
    return [at for at, word in enumerate(word_ids) if word is not None and (at == 0 or word_ids[at - 1] != word)]


def _labelled(encoded: Any, row: int, labels: Sequence[Any], index_of: dict[Any, int]) -> npt.NDArray[np.int64]:
    """The label of each token of an encoded row, by its number, which a new label gets here; -1 but for first tokens of words."""
    numbers = [index_of.setdefault(label, len(index_of)) for label in labels]
    word_of = encoded.word_ids(row)
    found = np.full(len(word_of), -1, dtype=np.int64)
    first = _first_tokens(word_of)
    # by word, not by count: a word that the tokenizer drops whole (a zero-width space) has no token
    found[first] = [numbers[word_of[at]] for at in first]
    return found


def _check_words(words: Sequence[Any], labels: Sequence[Any], place: str, first: int = 0) -> None:
    """Raise DataError where a row's words and labels are no lists of the same length. `first`: the row that they begin with."""
    for row, (some, given) in enumerate(zip(words, labels, strict=True), start=first):
        if not isinstance(some, list) or not isinstance(given, list) or len(some) != len(given) or not some:
            counts = (
                f"{len(some)} words and {len(given)} labels"
                if isinstance(some, list) and isinstance(given, list)
                else "no lists"
            )
            raise DataError(
                f"{place}, row {row + 1}: {counts}", hint="data.tokens and data.label name lists of the same length"
            )
        if other := [word for word in some if not isinstance(word, str)]:
            raise DataError(
                f"{place}, row {row + 1}: word {other[0]!r} is no text", hint="data.tokens names lists of texts"
            )


def _check_tags(tags: Iterable[Any], place: str) -> None:
    """Tags without names are no numbers: which of them is `O`, outside of every entity, nobody could tell."""
    number = next((tag for tag in tags if isinstance(tag, int)), None)
    if number is not None:
        raise DataError(
            f"{place}: the tags are numbers, such as {number}, and nothing says what they stand for; 0 would count as an entity",
            hint="name them in data.labels, in the order of their numbers, such as [O, B-PER, I-PER]",
        )
