"""Language modelling and chat, through transformers' causal language models.

Owns the task: texts or conversations as tokens with what is learned of them, packing, collation, loss, metrics, generation and
export. Called through `build_task`. How a conversation becomes tokens is `conversations.py`'s.

Loss is the mean over all learned tokens of the global batch (`weights`), as the field has it: independent of micro-batches and
ranks. A packed sample has position ids that begin anew with every text and no attention mask: that is how transformers' masks know
that texts must not see each other, in every family whose attention takes position ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split
from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.classes import checked_places
from tlcore.tasks.conversations import encode_conversation, encode_prompt
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.generate import generate
from tlcore.tasks.logits import logits_of, mean_cross_entropy
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.packing import pack
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits
from tlcore.tasks.tokens import TokenStore, store_tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4


@dataclass(frozen=True)
class LearnedTexts:
    """Texts as tokens and, parallel to them, whether a token is learned; each sample is a group of texts."""

    texts: TokenStore
    learned: npt.NDArray[np.bool_]
    groups: list[npt.NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.groups)


_prepared: Recent[LearnedTexts] = Recent(_KEPT)


class TextGeneration(TextTask[LearnedTexts]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._splits = Splits(recipe.data, self._read)

    def check_data(self) -> None:
        data = self._recipe.data
        column = data.messages or data.text
        for split, place in checked_places(data):
            read_split(place, [column], texts=[] if data.messages else [column], split=split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return _sums(chosen.read.texts.lengths, [chosen.read.groups[row] for row in chosen.rows]).astype(np.int32)

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        read = chosen.read
        # The first token of a text follows nothing and is not told.
        told = read.learned.copy()
        told[read.texts.offsets[:-1][read.texts.lengths > 0]] = False
        sums = np.concatenate([[0], np.cumsum(told)])
        each = sums[read.texts.offsets[1:]] - sums[read.texts.offsets[:-1]]
        return _sums(each, [read.groups[row] for row in chosen.rows]).astype(np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
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
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        batch = {"input_ids": tokens, "labels": tokens.clone()}
        return batch if self._recipe.data.packing else {**batch, "attention_mask": torch.ones_like(tokens)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(*_told(model, batch))

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.token_counts import TokenCounts

        return TokenCounts(_told)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Go on from each text, or answer each conversation (a list of messages, or one user turn), greedily."""
        import torch

        answers = []
        tokenizer = self._text.tokenizer
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
        if data.messages is None:
            return [(given, None) for given, _ in plain_examples(data, split, count, data.text, None)]
        found = plain_examples(data, split, count, data.messages, None, texts=False)
        return [_question(messages) for messages, _ in found]

    def _sample(
        self, read: LearnedTexts, row: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Tokens of a sample, which of them are told, and each one's position in its own text."""
        spans = [(int(read.texts.offsets[text]), int(read.texts.offsets[text + 1])) for text in read.groups[row]]
        tokens = np.concatenate([read.texts.tokens[start:end] for start, end in spans])
        places = np.concatenate([np.arange(end - start) for start, end in spans])
        told = np.concatenate([read.learned[start:end] for start, end in spans]) & (places > 0)
        return tokens, told, places

    def _fitted(self, prompt: list[int]) -> tuple[list[int], int]:
        """A prompt that the model has positions for, and how many tokens may follow: `data.max_length` of them, or what is left.
        Of a longer prompt the end is kept, which is what is gone on from, so that half of the positions are free."""
        most = self._text.max_length
        positions = getattr(self._text.load_config(), "max_position_embeddings", None)
        if positions is None:
            return prompt, most
        kept = prompt[-(positions - min(most, positions // 2)) :]
        return kept, min(most, positions - len(kept))

    def _prompt(self, given: Any, number: int) -> list[int]:
        tokenizer = self._text.tokenizer
        if self._recipe.data.messages is None:
            if not isinstance(given, str) or not given:
                raise DataError(f"input {number} is {given!r}, not a text", hint="give one text per input")
            return list(tokenizer(given)["input_ids"])
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return encode_prompt(tokenizer, messages)

    def _read(self, place: str, hub_split: str) -> LearnedTexts:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, data.text, data.messages, data.packing, self._text.max_length)
        return _prepared.get((*key, self._source.fingerprint), lambda: self._prepare(place, hub_split))

    def _prepare(self, place: str, hub_split: str) -> LearnedTexts:
        data = self._recipe.data
        column = data.messages or data.text
        texts = [] if data.messages else [column]
        cells = read_split(place, [column], texts=texts, split=hub_split).data.table.column(column).to_pylist()
        encode = self._encode_messages if data.messages else self._encode_text
        encoded = [encode(cell, f"{place}, row {row + 1}") for row, cell in enumerate(cells)]
        store = store_tokens([ids for ids, _ in encoded])
        learned = np.concatenate([np.asarray(each, dtype=np.bool_) for _, each in encoded])
        alone = [np.array([text]) for text in range(len(encoded))]
        return LearnedTexts(store, learned, pack(store.lengths, self._text.max_length) if data.packing else alone)

    def _encode_text(self, text: str, where: str) -> tuple[list[int], list[bool]]:
        """The text and the token that ends it, which is what tells the model to stop."""
        most, end = self._text.max_length, self._text.tokenizer.eos_token_id
        ids = self._text.tokenizer(text)["input_ids"]
        ids = [*ids, *([end] if end is not None and ids[-1:] != [end] else [])][:most]
        return ids, [True] * len(ids)

    def _encode_messages(self, cell: Any, where: str) -> tuple[list[int], list[bool]]:
        messages = json.loads(cell) if isinstance(cell, str) else cell
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
        ids, learned = encode_conversation(self._text.tokenizer, messages, where)
        return ids[: self._text.max_length], learned[: self._text.max_length]


def _told(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [B, T - 1, V] in fp32, and the token that each of them tells."""
    # Without a cache: with one, transformers takes position ids for those of a longer text instead of several texts.
    logits = logits_of(model, batch, use_cache=False)
    return logits[:, :-1], batch["labels"][:, 1:].to(logits.device)


def _sums(values: npt.NDArray[Any], groups: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
    """The sum of `values` over each group."""
    if not groups:
        return np.zeros(0)
    starts = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return np.add.reduceat(values[np.concatenate(groups)], starts)


def _question(messages: Any) -> tuple[Any, Any]:
    """A conversation up to its last assistant turn, and that turn."""
    turns = json.loads(messages) if isinstance(messages, str) else list(messages)
    last = max(at for at, turn in enumerate(turns) if turn["role"] == "assistant")
    return turns[:last], turns[last]["content"]
