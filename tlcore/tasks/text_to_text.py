"""Summarization and translation, through transformers' sequence-to-sequence models.

Owns the tasks: texts and targets as tokens, collation, loss, produced text and its scores, export. Called through `build_task`; the
two tasks differ in their scores, and in that a translation is from one language into another.

A model of many languages (NLLB, mBART, M2M100) tells them by tokens of their own, which its tokenizer puts around a text once it
knows the language. It is made to produce the target's as it was trained to: as the first token, or, where that token ends a target
(mBART of 25 languages), in place of the token that a decoder starts from.

Loss is the mean over the target tokens of the global batch (`weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split
from tlcore.errors import DataError, Fault, ModelError, RecipeError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.classes import checked_places
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.generate import generate
from tlcore.tasks.logits import mean_cross_entropy
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits
from tlcore.tasks.telling import Cut
from tlcore.tasks.tokens import TokenStore, cells, prepared_texts, tokenize
from tlcore.tasks.told import told_logits, with_most_told, with_told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe
    from tlcore.recipe.data_schema import DataSection

_KEPT: Final = 4
_PREDICT_BATCH: Final = 8
_SHOWN: Final = 12
"""Codes of languages in a message."""


@dataclass(frozen=True)
class TextPairs:
    """Texts, and what each is to become, as tokens; and how many of each were cut."""

    texts: TokenStore
    targets: TokenStore
    texts_cut: Cut
    targets_cut: Cut

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

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        ids, mask = chosen.read.texts.pad(rows, self._text.pad_id)
        labels, told = chosen.read.targets.pad(rows, IGNORED)
        labels[(told == 0) | filler] = IGNORED
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return with_told({name: torch.from_numpy(array) for name, array in arrays.items()})

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        labels = torch.zeros(samples, self._recipe.data.max_target_length, dtype=torch.int64)
        return with_most_told({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})

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
        store, _ = self._tokens(inputs)
        produced: list[str] = []
        for start in range(0, len(inputs), _PREDICT_BATCH):
            ids, mask = store.pad(np.arange(start, min(start + _PREDICT_BATCH, len(inputs))), self._text.pad_id)
            batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            produced += self._produce(model, batch, together=False)
        return [{"prediction": text} for text in produced]

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        return plain_examples(data, split, count, data.text, data.target_column)

    def build_model(self, from_scratch: bool) -> nn.Module:
        """As `ModelTask` says; one of many languages then produces texts in the target's."""
        model = super().build_model(from_scratch)
        if self._language_id is not None:
            settings: Any = model.generation_config
            settings.decoder_start_token_id = self._start_id
            settings.forced_bos_token_id = self._language_id if self._is_language_first else None
        return model

    def _processors(self) -> list[Any]:
        return [self._tokenizer]

    @cached_property
    def _tokenizer(self) -> Any:
        """The source's, with the recipe's languages. Raises RecipeError where it knows others, none, or is told none."""
        tokenizer, data = self._text.tokenizer, self._recipe.data
        if self._recipe.task == "translation":
            _check_languages(tokenizer, data, self._source.name)
        if data.target_language is not None:
            tokenizer.src_lang, tokenizer.tgt_lang = data.source_language, data.target_language
        return tokenizer

    @cached_property
    def _language_id(self) -> int | None:
        """The token of the target's language, where the recipe names one."""
        given = self._recipe.data.target_language
        return None if given is None else _languages(self._tokenizer)[given]

    @property
    def _is_language_first(self) -> bool:
        return bool(self._tokenizer(text_target="a")["input_ids"][0] == self._language_id)

    def _config(self) -> Any:
        config = self._text.load_config()
        if self._language_id is not None and not self._is_language_first:
            config.decoder_start_token_id = self._language_id
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
        """Logits [M, V] in fp32 where the target has a token, and that token [M]."""
        import torch

        labels = batch["labels"]
        # Not the model's own `labels`: with those it computes a loss over the vocabulary that nobody asks for.
        before = labels.new_full((len(labels), 1), self._start_id)
        shifted = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, self._text.pad_id)
        given = {**batch, "decoder_input_ids": torch.cat([before, shifted], dim=1)}
        return told_logits(model, given, use_cache=False)

    def _produce(self, model: nn.Module, inputs: Batch, *, together: bool) -> list[str]:
        data = self._recipe.data
        ids = generate(model, inputs, together=together, max_new_tokens=data.max_target_length, num_beams=data.beams)
        return self._decode(ids.tolist())

    def _produce_counted(self, model: nn.Module, batch: Batch) -> list[str]:
        """For the samples that count; a filler is produced for as well, since the other ranks wait for that."""
        texts = self._produce(model, {name: batch[name] for name in ("input_ids", "attention_mask")}, together=True)
        return [text for text, labels in zip(texts, batch["labels"], strict=True) if bool((labels != IGNORED).any())]

    def _expected(self, batch: Batch) -> list[str]:
        kept = [labels[labels != IGNORED].tolist() for labels in batch["labels"]]
        return self._decode([ids for ids in kept if ids])

    def _decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """Texts of tokens, without those that stand for no word; M2M100's tokenizer need not count its languages' among them."""
        words = [[token for token in ids if token != self._language_id] for ids in texts]
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in words]

    def _tokens(self, texts: Iterable[str]) -> tuple[TokenStore, Cut]:
        prefix = self._recipe.data.prefix
        return tokenize(self._tokenizer, (prefix + text for text in texts), self._text.max_length)

    def _read(self, place: str, hub_split: str) -> TextPairs:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, data.text, data.target_column, data.prefix, data.max_target_length)
        languages = data.source_language, data.target_language
        return _prepared.get(
            (*key, *languages, self._text.max_length, self._source.fingerprint), lambda: self._prepare(place, hub_split)
        )

    def _prepare(self, place: str, hub_split: str) -> TextPairs:
        data = self._recipe.data
        columns = [data.text, data.target_column]
        table = read_split(place, columns, texts=columns, split=hub_split).data.table
        lengths, languages = (
            (self._text.max_length, data.max_target_length),
            (data.source_language, data.target_language),
        )

        def make() -> TextPairs:
            expected = cells(table.column(data.target_column))
            targets, targets_cut = tokenize(self._tokenizer, expected, data.max_target_length, as_target=True)
            texts, texts_cut = self._tokens(cells(table.column(data.text)))
            return TextPairs(texts, targets, texts_cut, targets_cut)

        given = (hub_split, *columns, data.prefix, *lengths, *languages)
        found = prepared_texts(TextPairs, table, given, place, self._tokenizer, make)
        found.targets_cut.tell(place, "data.max_target_length", "targets")
        found.texts_cut.tell(place)
        return found


def _languages(tokenizer: Any) -> dict[str, int]:
    """The token of each language that a tokenizer tells apart; none where it is not asked for any."""
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    # NLLB's has no table: its languages are the special tokens beside the named ones
    known: dict[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    return known or {str(code): tokenizer.convert_tokens_to_ids(str(code)) for code in tokenizer.extra_special_tokens}


def _check_languages(tokenizer: Any, data: DataSection, source: str) -> None:
    known, faults = sorted(_languages(tokenizer)), []
    codes = f"such as {', '.join(known[:_SHOWN])}" + (f" (it has {len(known)})" if len(known) > _SHOWN else "")
    for key in ("source_language", "target_language"):
        given = getattr(data, key)
        if given is None and known:
            text = f"is null, but model {source!r} knows many languages; give a code of its tokenizer, {codes}"
        elif given is not None and not known:
            text = f"is {given!r}, but model {source!r} is told no languages; take it out"
        elif given is not None and given not in known:
            text = f"is {given!r}, which model {source!r} does not know; give a code of its tokenizer, {codes}"
        else:
            continue
        faults.append(Fault(f"data.{key}", text))
    if faults:
        raise RecipeError(faults)
