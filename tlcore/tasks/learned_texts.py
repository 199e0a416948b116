"""Texts as tokens with what is learned of each, and which of them make a sample.

Owns that grouping, and the holding out of validation samples by rows of the data: a row may give several texts (the turns of a
conversation), and what one of them is judged by must not be learned from another. Called by `text_generation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcore.data import hold_out
from tlcore.tasks.conversations import Encoded
from tlcore.tasks.packing import pack
from tlcore.tasks.splits import Splits
from tlcore.tasks.tokens import TokenStore, store_tokens


@dataclass(frozen=True)
class LearnedTexts:
    """Texts as tokens and, parallel to them, whether a token is learned; each sample is a group of texts. `held`: which samples are
    held out for validation; None where any may be."""

    texts: TokenStore
    learned: npt.NDArray[np.bool_]
    groups: list[npt.NDArray[np.int64]]
    held: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.groups)


class RowSplits(Splits[LearnedTexts]):
    """Splits that hold out whole rows of the data, where a row gives several texts."""

    def _hold_out(self, read: LearnedTexts, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if read.held is None:
            return super()._hold_out(read, share)
        return np.flatnonzero(~read.held), np.flatnonzero(read.held)


def group_texts(rows: Sequence[Sequence[Encoded]], capacity: int | None, share: float | None) -> LearnedTexts:
    """The texts of all rows, each a sample, or packed into samples.

    Of a row with several texts, those of which nothing is learned (the rest was cut) are left out, the first aside.

    Args:
        capacity: tokens of a sample to pack; None packs nothing.
        share: of the rows that are held out for validation; None holds out none.

    Raises DataError: `share` leaves no row on one side.
    """
    useful = [[*row[:1], *(text for text in row[1:] if any(text[1]))] for row in rows]
    texts = [text for row in useful for text in row]
    store = store_tokens([ids for ids, _ in texts])
    learned = np.concatenate([np.asarray(each, dtype=np.bool_) for _, each in texts])
    if share is None or all(len(row) == 1 for row in rows):
        return LearnedTexts(store, learned, _groups(store.lengths, np.arange(len(texts)), capacity))
    row_of_text = np.repeat(np.arange(len(rows)), [len(row) for row in useful])
    sides = [np.flatnonzero(np.isin(row_of_text, side)) for side in hold_out(len(rows), share)]
    kept, held = (_groups(store.lengths, side, capacity) for side in sides)
    return LearnedTexts(store, learned, [*kept, *held], np.arange(len(kept) + len(held)) >= len(kept))


def _groups(
    lengths: npt.NDArray[np.int32], texts: npt.NDArray[np.int64], capacity: int | None
) -> list[npt.NDArray[np.int64]]:
    if capacity is None:
        return [np.array([text]) for text in texts]
    return [texts[group] for group in pack(lengths[texts], capacity)]
