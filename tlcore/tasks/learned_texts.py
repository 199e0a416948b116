"""Texts as tokens with what is learned of each, and which of them make a sample.

Owns that grouping, and the holding out of validation samples by rows of the data: a row may give several texts (the pieces of a
long one, the turns of a conversation). Called by `text_generation.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcore.data import hold_out
from tlcore.tasks.conversations import Encoded
from tlcore.tasks.packing import pack
from tlcore.tasks.telling import tell_cut
from tlcore.tasks.tokens import TokenStore, join_stores, store_tokens


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as tokens and, parallel to them, whether a token is learned. `rows`: which row of the data each is of, ascending."""

    texts: TokenStore
    learned: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]

    @classmethod
    def cut(cls, rows: Iterable[Sequence[Encoded]], most: int, place: str) -> EncodedTexts:
        """The texts of all rows, each cut at `most` tokens. `place`: where they are from; how many were cut is then said."""
        stores: list[TokenStore] = []
        learned: list[npt.NDArray[np.bool_]] = []
        owners: list[int] = []
        whole: list[int] = []
        for row, texts in enumerate(rows):
            stores.append(store_tokens([ids[:most] for ids, _ in texts]))
            learned += [np.array(each[:most], dtype=np.bool_) for _, each in texts]
            owners += [row] * len(texts)
            whole += [len(ids) for ids, _ in texts]
        tell_cut(place, whole, most)
        return cls(join_stores(stores), np.concatenate(learned), np.array(owners, dtype=np.int64))

    @classmethod
    def in_pieces(cls, texts: TokenStore, most: int) -> EncodedTexts:
        """One text of each row, learned whole: in pieces of at most `most` tokens after one another."""
        pieces = -(-np.maximum(texts.lengths, 1) // most)
        rows = np.repeat(np.arange(len(pieces)), pieces)
        number_in_row = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offsets = np.append(texts.offsets[rows] + number_in_row * most, len(texts.tokens))
        return cls(TokenStore(texts.tokens, offsets), np.ones(len(texts.tokens), dtype=np.bool_), rows)

    def useful(self) -> EncodedTexts:
        """Without those of which nothing is told (the rest was cut, or the one token left follows none), but for the first text of
        each row."""
        told = told_counts(self.texts, self.learned)
        kept = (told > 0) | np.append(True, self.rows[1:] != self.rows[:-1])
        tokens = np.repeat(kept, self.texts.lengths)
        offsets = np.append(0, np.cumsum(self.texts.lengths[kept], dtype=np.int64))
        return EncodedTexts(TokenStore(self.texts.tokens[tokens], offsets), self.learned[tokens], self.rows[kept])


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


def told_counts(texts: TokenStore, learned: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Tokens of each text that are told: learned, and not its first, which follows nothing."""
    told = learned.copy()
    told[texts.offsets[:-1][texts.lengths > 0]] = False
    sums = np.append(0, np.cumsum(told, dtype=np.int64))
    counts: npt.NDArray[np.int64] = sums[texts.offsets[1:]] - sums[texts.offsets[:-1]]
    return counts


def group_texts(encoded: EncodedTexts, capacity: int | None, share: float | None) -> LearnedTexts:
    """The useful texts of all rows, each a sample, or packed into samples.

    Args:
        capacity: tokens of a sample to pack; None packs nothing.
        share: of the rows that are held out for validation; None holds out none.

    Raises DataError: `share` leaves no row on one side.
    """
    rows = int(encoded.rows[-1]) + 1
    encoded = encoded.useful()
    store, learned = encoded.texts, encoded.learned
    if share is None or len(encoded.rows) == rows:
        return LearnedTexts(store, learned, _groups(store.lengths, np.arange(len(encoded.rows)), capacity))
    sides = [np.flatnonzero(np.isin(encoded.rows, side)) for side in hold_out(rows, share)]
    kept, held = (_groups(store.lengths, side, capacity) for side in sides)
    return LearnedTexts(store, learned, [*kept, *held], np.arange(len(kept) + len(held)) >= len(kept))


def _groups(
    lengths: npt.NDArray[np.int32], texts: npt.NDArray[np.int64], capacity: int | None
) -> list[npt.NDArray[np.int64]]:
    if capacity is None:
        return [np.array([text]) for text in texts]
    return [texts[group] for group in pack(lengths[texts], capacity)]
