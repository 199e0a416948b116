"""Masked-language-model pre-training continued on domain text, through transformers' masked language models.

Owns the task: texts as tokens, masking, collation, loss, metrics, filling in, export. Called through `build_task`.

Of the chosen tokens 80 % become the mask, 10 % another token, 10 % stay (Devlin et al. 2018); which, is drawn anew at every step of
training, and by the sample alone in evaluations, so that these can be compared with each other. How many of a sample are chosen is
not drawn: `data.mask_probability` of its words, rounded, as the paper's own code has it. So every rank knows it ahead (`weights`),
and the loss is the mean over all hidden tokens of the global batch, whatever the micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import GrowingArray, fingerprint, hold_out, read_split
from tlcore.errors import DataError, ModelError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.classes import checked_places
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.logits import logits_of, mean_cross_entropy
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import RowSplits, held_share
from tlcore.tasks.tokens import TokenBuilder, TokenStore, cells, prepared_texts, tokenize_in_pieces
from tlcore.tasks.told import told_logits, with_most_told, with_told

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Generator, Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
_MASKED, _REPLACED = 0.8, 0.1


@dataclass(frozen=True)
class Texts:
    """One place's texts as tokens, those longer than a sample in several pieces. `held`: which pieces are held out for validation;
    None where any may be. `words`: how many tokens of each piece may be hidden."""

    store: TokenStore
    words: npt.NDArray[np.int64]
    held: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.store.lengths)


_prepared: Recent[Texts] = Recent(_KEPT)


class MaskedLanguageModeling(TextTask[Texts]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForMaskedLM"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._splits = RowSplits(recipe.data, self._read)

    def check_data(self) -> None:
        data = self._recipe.data
        for split, place in checked_places(data):
            read_split(place, [data.text], texts=[data.text], split=split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.store.lengths[chosen.rows]

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        return self._counts(chosen.read, chosen.rows).astype(np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        ids, mask = (torch.from_numpy(array) for array in chosen.read.store.pad(rows, self._text.pad_id))
        counts = torch.from_numpy(self._counts(chosen.read, rows))[:, None]
        if split == "train":
            hidden, told = self._hide(ids, mask, counts, draws)
        else:
            seeds = [torch.Generator().manual_seed(int(row)) for row in rows]
            one = [slice(at, at + 1) for at in range(len(rows))]
            parts = [self._hide(ids[at], mask[at], counts[at], seed) for at, seed in zip(one, seeds, strict=True)]
            hidden, told = (torch.cat(each) for each in zip(*parts, strict=True))
        labels = torch.where(told & (not filler), ids, IGNORED)
        return with_told({"input_ids": hidden, "attention_mask": mask, "labels": labels})

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}
        return with_most_told(batch, self._recipe.data.mask_probability)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(*told_logits(model, batch))

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.token_counts import TokenCounts

        return TokenCounts(told_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The text with each of its mask tokens filled in."""
        import torch

        tokenizer = self._text.tokenizer
        answers = []
        for number, text in enumerate(inputs):
            if not isinstance(text, str) or tokenizer.mask_token not in text:
                raise DataError(
                    f"input {number} is {text!r}, a text without {tokenizer.mask_token}",
                    hint=f"put {tokenizer.mask_token} where a word is to be filled in",
                )
            ids = torch.tensor([tokenizer(text, truncation=True, max_length=self._text.max_length)["input_ids"]])
            with torch.no_grad():
                logits = logits_of(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).cpu()
            filled = torch.where(ids == tokenizer.mask_token_id, logits.argmax(dim=-1), ids)
            answers.append({"prediction": tokenizer.decode(filled[0], skip_special_tokens=True)})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        """Texts whose last word is hidden."""
        found = plain_examples(self._recipe.data, split, count, self._recipe.data.text, None)
        halves = [text.rsplit(" ", 1) for text, _ in found]
        mask = self._text.tokenizer.mask_token
        return [(f"{half[0]} {mask}", half[1]) for half in halves if len(half) == 2]

    def _counts(self, read: Texts, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many tokens of each of these pieces are hidden: at least one of a piece that has a word."""
        words = read.words[rows]
        share = np.rint(words * self._recipe.data.mask_probability).astype(np.int64)
        counts: npt.NDArray[np.int64] = np.minimum(words, np.maximum(1, share))
        return counts

    def _hide(self, ids: Tensor, mask: Tensor, counts: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """The tokens [B, T] with as many of each row hidden as `counts` [B, 1] says, and which."""
        import torch

        tokenizer = self._text.tokenizer
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of model source {self._source.name!r} has no mask token",
                hint="masked language modelling needs a model that was trained by it, such as BERT",
            )
        may = mask.bool() & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        # Token by token, so that what a sample gets does not depend on how wide its batch is.
        order, kind, other = torch.rand((*ids.shape, 3), generator=generator).unbind(dim=-1)
        told = order.masked_fill(~may, 2.0).argsort(dim=1).argsort(dim=1) < counts
        other = (other * len(tokenizer)).long()
        hidden = torch.where(told & (kind < _MASKED), tokenizer.mask_token_id, ids)
        return torch.where(told & (kind >= _MASKED) & (kind < _MASKED + _REPLACED), other, hidden), told

    def _read(self, place: str, hub_split: str) -> Texts:
        data = self._recipe.data
        share = held_share(data, place)
        key = (fingerprint(place), hub_split, data.text, share, self._text.max_length, self._source.fingerprint)
        return _prepared.get(key, lambda: self._prepare(place, hub_split, share))

    def _prepare(self, place: str, hub_split: str, share: float | None) -> Texts:
        data = self._recipe.data
        table = read_split(place, [data.text], texts=[data.text], split=hub_split).data.table
        tokenizer, given = self._text.tokenizer, (hub_split, data.text, share, self._text.max_length)
        return prepared_texts(
            Texts, table, given, place, tokenizer, lambda: self._pieces(table.column(data.text), share)
        )

    def _pieces(self, column: pa.ChunkedArray, share: float | None) -> Texts:
        tokenizer, builder = self._text.tokenizer, TokenBuilder()
        words, held = GrowingArray(np.int64), GrowingArray(np.bool_)
        is_held = np.zeros(len(column), dtype=np.bool_)
        if share is not None:
            is_held[hold_out(len(column), share)[1]] = True
        for pieces, row_of_piece in tokenize_in_pieces(tokenizer, cells(column), self._text.max_length):
            part = builder.append(pieces)
            may = ~np.isin(part.tokens, tokenizer.all_special_ids)
            piece_of_token = np.repeat(np.arange(len(pieces)), part.lengths)
            words.append(np.bincount(piece_of_token[may], minlength=len(pieces)))
            held.append(is_held[row_of_piece])
        return Texts(builder.store(), words.array(), None if share is None else held.array())
