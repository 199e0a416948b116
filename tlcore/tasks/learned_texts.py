"""Texts as tokens with what is learned of each, and which of them make a sample.

Owns that grouping, and the holding out of validation samples by rows of the data: a row may give several texts (the pieces of a
long one, the turns of a conversation). Called by `text_generation.py`.

All of it is flat arrays, so that it may lie on the node's disk; what is computed of tokens is computed block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tlcore.data import GrowingArray, hold_out
from tlcore.tasks.conversations import Encoded
from tlcore.tasks.packing import pack
from tlcore.tasks.telling import Cut
from tlcore.tasks.tokens import TokenBuilder, TokenStore

_BLOCK_TOKENS: Final = 8 << 20


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as tokens and, parallel to them, whether a token is learned. `rows`: which row of the data each is of, ascending.
    `cut`: how many texts were."""

    texts: TokenStore
    learned: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    cut: Cut

    @classmethod
    def cut_at(cls, most: int, rows: Iterable[Sequence[Encoded]]) -> EncodedTexts:
        """The texts of all rows, each cut at `most` tokens."""
        builder, learned, owners, cut = TokenBuilder(), GrowingArray(np.bool_), GrowingArray(np.int64), Cut(most)
        for row, texts in enumerate(rows):
            builder.append([ids[:most] for ids, _ in texts])
            for _, each in texts:
                learned.append(np.array(each[:most], dtype=np.bool_))
            owners.append(np.full(len(texts), row))
            cut += Cut.of([len(ids) for ids, _ in texts], most)
        return cls(builder.store(), learned.array(), owners.array(), cut)

    @classmethod
    def in_pieces(cls, texts: TokenStore, most: int) -> EncodedTexts:
        """One text of each row, learned whole: in pieces of at most `most` tokens after one another."""
        pieces = -(-np.maximum(texts.lengths, 1) // most)
        rows = np.repeat(np.arange(len(pieces)), pieces)
        number_in_row = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        offsets = np.append(texts.offsets[rows] + number_in_row * most, len(texts.tokens))
        learned = np.broadcast_to(np.True_, len(texts.tokens))
        return cls(TokenStore(texts.tokens, offsets), learned, rows, Cut(most))


@dataclass(frozen=True)
class LearnedTexts:
    """Texts as tokens and, parallel to them, whether a token is learned; each sample is a group of texts.

    `grouped`: the texts of all samples, one sample's after another's; those of sample i are `grouped[starts[i]:starts[i + 1]]`.
    `told`: tokens of each sample that are told. `held`: which samples are held out for validation; None where any may be. `cut`:
    how many texts were."""

    texts: TokenStore
    learned: npt.NDArray[np.bool_]
    grouped: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    told: npt.NDArray[np.int64]
    cut: Cut
    held: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.told)

    def texts_of(self, sample: int) -> npt.NDArray[np.int64]:
        """The texts of one sample, by their numbers."""
        return self.grouped[self.starts[sample] : self.starts[sample + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample."""
        return _sums(self.texts.lengths[self.grouped], self.starts)


def told_counts(texts: TokenStore, learned: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Tokens of each text that are told: learned, and not its first, which follows nothing."""
    counts = np.zeros(len(texts.offsets) - 1, dtype=np.int64)
    starts, ends = texts.offsets[:-1], texts.offsets[1:]
    edges = np.searchsorted(starts, np.arange(0, len(texts.tokens) + _BLOCK_TOKENS, _BLOCK_TOKENS))
    for first, last in zip(edges, [*edges[1:], len(counts)], strict=True):
        if first == last:
            continue
        begin = int(starts[first])
        told = np.array(learned[begin : int(ends[last - 1])])
        told[(starts[first:last] - begin)[ends[first:last] > starts[first:last]]] = False
        sums = np.append(0, np.cumsum(told, dtype=np.int64))
        counts[first:last] = sums[ends[first:last] - begin] - sums[starts[first:last] - begin]
    return counts


def group_texts(encoded: EncodedTexts, capacity: int | None, share: float | None) -> LearnedTexts:
    """The useful texts of all rows, each a sample, or packed into samples. Of no use are those of which nothing is told (the rest
    was cut, or the one token left follows none), but for the first text of each row.

    Args:
        capacity: tokens of a sample to pack; None packs nothing.
        share: of the rows that are held out for validation; None holds out none.

    Raises DataError: `share` leaves no row on one side.
    """
    rows = encoded.rows
    told = told_counts(encoded.texts, encoded.learned)
    useful = np.flatnonzero((told > 0) | np.append(True, rows[1:] != rows[:-1]))
    of_rows, held = int(rows[-1]) + 1, None
    if share is None or len(useful) == of_rows:
        grouped, counts = _groups(encoded.texts.lengths, useful, capacity)
    else:
        is_held = np.zeros(of_rows, dtype=np.bool_)
        is_held[hold_out(of_rows, share)[1]] = True
        held_texts = is_held[rows[useful]]
        sides = [_groups(encoded.texts.lengths, useful[side], capacity) for side in (~held_texts, held_texts)]
        grouped, counts = (np.concatenate(each) for each in zip(*sides, strict=True))
        held = np.arange(len(counts)) >= len(sides[0][1])
    starts = np.append(0, np.cumsum(counts, dtype=np.int64))
    return LearnedTexts(
        encoded.texts, encoded.learned, grouped, starts, _sums(told[grouped], starts), encoded.cut, held
    )


def _groups(
    lengths: npt.NDArray[np.int32], texts: npt.NDArray[np.int64], capacity: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The texts, sample after sample, and how many each sample has."""
    if capacity is None:
        return texts, np.ones(len(texts), dtype=np.int64)
    packed = pack(lengths[texts], capacity)
    return texts[np.concatenate(packed)], np.array([len(group) for group in packed], dtype=np.int64)


def _sums(
    values: npt.NDArray[np.int64] | npt.NDArray[np.int32], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The sum of `values` over each sample; every one has a text."""
    if len(starts) == 1:
        return np.zeros(0, dtype=np.int64)
    sums: npt.NDArray[np.int64] = np.add.reduceat(values, starts[:-1], dtype=np.int64)
    return sums
