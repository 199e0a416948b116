"""Language modelling and chat, through transformers' causal language models.

Owns the task: texts, prompts with their answers, or conversations; collation, loss, metrics, generation and export. Called through
`build_task`. How a conversation becomes tokens is `conversations.py`'s, which texts make a sample is `learned_texts.py`'s.

Loss is the mean over all learned tokens of the global batch (`weights`), as the field has it: independent of micro-batches and
ranks. A packed sample has position ids that begin anew with every text and no attention mask: that is how transformers' masks know
that texts must not see each other. A model of which that is not true is refused (`packing.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split, read_text
from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.classes import checked_places
from tlcore.tasks.conversations import (
    Encoded,
    check_learnable,
    encode_conversation,
    encode_pair,
    encode_prompt,
    encode_question,
    join_input,
    read_conversation,
    template_of,
)
from tlcore.tasks.generate import generate
from tlcore.tasks.learned_texts import EncodedTexts, LearnedTexts, group_texts
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.packing import check_keeps_apart, is_flash
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import RowSplits, given_places, held_share
from tlcore.tasks.tokens import TokenBuilder, TokenStore, cells, chunks, prepared_texts
from tlcore.tasks.told import TOLD, told_logits, told_loss, with_most_told, with_told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
_LOOKED_AT: Final = 100
"""First conversations of a place that are looked at before workers start."""
_AT_ONCE: Final = 1024
"""Rows of conversations or pairs that are Python objects at one time."""
_TEMPLATE: Final = "chat_template"
"""Name among a checkpoint's facts: the file that the recipe names may be gone when a model is exported."""

_prepared: Recent[LearnedTexts] = Recent(_KEPT)


class TextGeneration(TextTask[LearnedTexts]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._template = (facts or {}).get(_TEMPLATE)
        self._splits = RowSplits(recipe.data, self._read)

    def check_data(self) -> None:
        data = self._recipe.data
        if data.chat_template not in (None, "chatml"):
            read_text(data.chat_template)
        for split, place in checked_places(data):
            rows = self._rows(place, split)
            if data.messages is not None:
                for number, cell in enumerate(rows.column(data.messages)[:_LOOKED_AT].to_pylist(), start=1):
                    where = f"{place}, row {number}"
                    check_learnable(read_conversation(cell, where), where)

    def facts(self) -> dict[str, Any]:
        """The chat template, where the recipe names one."""
        return {} if self._recipe.data.chat_template is None else {_TEMPLATE: self._tokenizer.chat_template}

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.lengths[chosen.rows].astype(np.int32)

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        return chosen.read.told[chosen.rows].astype(np.float64)

    def build_model(self, from_scratch: bool) -> nn.Module:
        """Raises RecipeError as well: `data.packing` with a model that would let packed texts see each other."""
        model = super().build_model(from_scratch)
        if self._recipe.data.packing:
            check_keeps_apart(model)
        return model

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        samples = [self._sample(chosen.read, row) for row in chosen.rows_of([0] if filler else indices)]
        width = max(len(ids) for ids, _, _ in samples)
        shape = len(samples), width
        ids = np.full(shape, self._text.pad_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        # Padding is a text of its own behind the others, so that it needs no mask.
        positions = np.tile(np.arange(width, dtype=np.int64), (len(samples), 1))
        for row, (tokens, told, places) in enumerate(samples):
            count = len(tokens)
            ids[row, :count], positions[row, :count] = tokens, places
            positions[row, count:] = np.arange(width - count)
            if not filler:
                labels[row, :count] = np.where(told, tokens, IGNORED)
        arrays = {"input_ids": ids, "labels": labels}
        if self._recipe.data.packing:
            arrays["position_ids"] = positions
        else:
            ends = np.array([[len(tokens)] for tokens, _, _ in samples])
            arrays["attention_mask"] = (np.arange(width) < ends).astype(np.int64)
        return with_told({name: torch.from_numpy(array) for name, array in arrays.items()}, ahead=1)

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        batch = with_most_told({"input_ids": tokens, "labels": tokens.clone()})
        return batch if self._recipe.data.packing else {**batch, "attention_mask": torch.ones_like(tokens)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return told_loss(model, _for_attention(model, batch), use_cache=False)

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.token_counts import TokenCounts

        return TokenCounts(_told)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Go on from each text, or answer each prompt or conversation (a list of messages, or one user turn), greedily."""
        import torch

        answers = []
        tokenizer = self._tokenizer
        for number, given in enumerate(inputs):
            prompt, room = self._fitted(self._prompt(given, number))
            ids = torch.tensor([prompt])
            produced = generate(
                model,
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                together=False,
                max_new_tokens=room,
                pad_token_id=self._text.pad_id,
            )
            answers.append({"prediction": tokenizer.decode(produced[0, len(prompt) :], skip_special_tokens=True)})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        place = dict(given_places(data)).get(split)
        shown = [] if place is None else self._rows(place, split)[:count].to_pylist()
        if data.messages is not None:
            return [_question(row[data.messages]) for row in shown]
        return [(self._asked(row), row[data.target] if data.target else None) for row in shown]

    def _sample(
        self, read: LearnedTexts, row: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Tokens of a sample, which of them are told, and each one's position in its own text."""
        spans = [(int(read.texts.offsets[text]), int(read.texts.offsets[text + 1])) for text in read.texts_of(row)]
        tokens = np.concatenate([read.texts.tokens[start:end] for start, end in spans])
        places = np.concatenate([np.arange(end - start) for start, end in spans])
        told = np.concatenate([read.learned[start:end] for start, end in spans]) & (places > 0)
        return tokens, told, places

    @cached_property
    def _positions(self) -> int | None:
        found: int | None = getattr(self._text.load_config(), "max_position_embeddings", None)
        return found

    def _fitted(self, prompt: list[int]) -> tuple[list[int], int]:
        """A prompt that the model has positions for, and how many tokens may follow: `data.max_length` of them, or what is left.
        Of a longer prompt the end is kept, which is what is gone on from, so that half of the positions are free."""
        most = self._text.max_length
        positions = self._positions
        if positions is None:
            return prompt, most
        kept = prompt[-(positions - min(most, positions // 2)) :]
        return kept, min(most, positions - len(kept))

    def _prompt(self, given: Any, number: int) -> list[int]:
        data, where = self._recipe.data, f"input {number}"
        if data.messages is not None:
            messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
            return encode_prompt(self._tokenizer, messages, where)
        if not isinstance(given, str) or not given:
            raise DataError(f"{where} is {given!r}, not a text", hint="give one text per input")
        if data.target is not None:
            return encode_question(self._tokenizer, given, where)
        return list(self._tokenizer(given)["input_ids"])

    @cached_property
    def _tokenizer(self) -> Any:
        """The source's, with the recipe's chat template."""
        tokenizer, given = self._text.tokenizer, self._recipe.data.chat_template
        if given is not None:
            tokenizer.chat_template = self._template or template_of(given, tokenizer)
        return tokenizer

    def _processors(self) -> list[Any]:
        return [self._tokenizer]

    def _rows(self, place: str, hub_split: str) -> Any:
        """The columns that are learned from, as an Arrow table."""
        data = self._recipe.data
        if data.messages is not None:
            return read_split(place, [data.messages], split=hub_split).data.table
        columns = [name for name in (data.text, data.target, data.input) if name is not None]
        may_be_empty = [] if data.input is None else [data.input]
        return read_split(place, columns, texts=columns, split=hub_split, may_be_empty=may_be_empty).data.table

    def _read(self, place: str, hub_split: str) -> LearnedTexts:
        data = self._recipe.data
        share = held_share(data, place)
        template = None if data.chat_template is None else self._tokenizer.chat_template
        columns = data.text, data.target, data.input, data.messages, template
        key = (fingerprint(place), hub_split, columns, share, data.packing, self._text.max_length)
        return _prepared.get((*key, self._source.fingerprint), lambda: self._prepare(place, hub_split, share))

    def _prepare(self, place: str, hub_split: str, share: float | None) -> LearnedTexts:
        data, most, table = self._recipe.data, self._text.max_length, self._rows(place, hub_split)

        def make() -> LearnedTexts:
            if data.messages is None and data.target is None:
                encoded = EncodedTexts.in_pieces(self._encode_texts(cells(table.column(data.text))), most)
            else:
                encoded = EncodedTexts.cut_at(most, self._encode_rows(table, place))
            return group_texts(encoded, most if data.packing else None, share)

        given = (hub_split, data.text, data.target, data.input, data.messages, share, data.packing, most)
        found = prepared_texts(LearnedTexts, table, given, place, self._tokenizer, make)
        found.cut.tell(place)
        if not found.told.any():
            raise DataError(
                f"{place}: nothing is left to be learned of any row, once each is cut at {most} tokens",
                hint="raise data.max_length: what is learned stands at the end",
            )
        return found

    def _encode_rows(self, table: Any, place: str) -> Iterator[list[Encoded]]:
        """Conversations, or prompts with their answers, row by row."""
        data = self._recipe.data
        rows = (row for batch in table.to_batches(max_chunksize=_AT_ONCE) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            where = f"{place}, row {number}"
            if data.messages is not None:
                yield encode_conversation(self._tokenizer, row[data.messages], where)
            else:
                yield encode_pair(self._tokenizer, self._asked(row), row[data.target], where)

    def _asked(self, row: Mapping[str, Any]) -> str:
        """The text of a row, with what it is about below it."""
        data = self._recipe.data
        return join_input(row[data.text], None if data.input is None else row[data.input])

    def _encode_texts(self, texts: Iterable[str]) -> TokenStore:
        """Whole texts, each with the token that ends it, which is what tells the model to stop."""
        end, builder = self._tokenizer.eos_token_id, TokenBuilder()
        for chunk in chunks(texts):
            encoded = self._tokenizer(chunk, verbose=False)["input_ids"]
            builder.append([ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in encoded])
        return builder.store()


def _told(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [M, V] in fp32 where the next token is learned, and that token [M]."""
    # Without a cache: with one, transformers takes position ids for those of a longer text instead of several texts.
    return told_logits(model, _for_attention(model, batch), ahead=1, use_cache=False)


def _for_attention(model: Any, batch: Batch) -> Batch:
    """The batch; under FlashAttention the samples of a packed one in a single row, since transformers looks for several texts in
    one row alone there. The first token of a text is told nothing, so no label's place changes."""
    if "position_ids" not in batch or not is_flash(model):
        return batch
    return {name: each if name == TOLD else each.reshape(1, -1) for name, each in batch.items()}


def _question(messages: Any) -> tuple[Any, Any]:
    """A conversation up to its last assistant turn, and that turn."""
    turns = read_conversation(messages, "example")
    last = max(at for at, turn in enumerate(turns) if turn["role"] == "assistant")
    return turns[:last], turns[last]["content"]
