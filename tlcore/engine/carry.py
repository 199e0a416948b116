"""The state of one engine, held in host memory until the next one takes it.

Owns the hand-over inside a trial that goes on with other parameters trained: DeepSpeed cuts its partitions once, when an engine is
made, and has no call to add a parameter to them or take one out. So the engine is made anew, and state goes the way of a
checkpoint, without the store: intervals of flattened parameters, handed to whichever rank needs them. Called by `sharded.py`.

Trained state is copied to the host, a rank's part of it, so that the old engine's memory is free before the new one takes its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tlcore.checkpoint import Peers, Piece, Row
from tlcore.checkpoint.device import Device, StatePiece
from tlcore.checkpoint.exchange import Alone
from tlcore.checkpoint.intervals import ParameterFacts, intersect

WINDOW_BYTES = 64 << 20
"""Most of all ranks' state that is exchanged at a time, if one parameter is not more."""


class StateSource(Protocol):
    """What state is read from: a checkpoint, or an engine's that was closed."""

    def read_into(
        self, pieces: Sequence[Piece], peers: Peers | None, first: AbstractSet[str], then: Callable[[], None]
    ) -> object:
        """Fill the pieces; together with `peers`, all ranks at once. `then` is called once the states in `first` are there."""


@dataclass(frozen=True)
class CarriedState:
    """This rank's part of an engine's state, with what describes the whole: facts on every parameter, and the scalars."""

    parameters: Mapping[str, ParameterFacts]
    scalars: Mapping[str, Any]
    pieces: tuple[Piece, ...]

    @classmethod
    def of(
        cls,
        pieces: Sequence[StatePiece],
        memory: Device,
        table: Mapping[str, Mapping[str, Any]],
        scalars: Mapping[str, Any],
    ) -> CarriedState:
        """Copies of an engine's `pieces`, which lie in `memory` or the host's; frozen weights in the host's stay where they are,
        since nobody changes them."""
        facts = {
            name: ParameterFacts(tuple(each["shape"]), each["dtype"], each["trained"], each["tied_to"])
            for name, each in table.items()
        }
        memory.begin()
        held = tuple(_held(piece) for piece in pieces)
        memory.mark()()
        return cls(facts, dict(scalars), held)

    def read_into(
        self,
        pieces: Sequence[Piece],
        peers: Peers | None = None,
        first: AbstractSet[str] = frozenset(),
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Fill this rank's `pieces` from what all ranks hold, then call `then`. Collective."""
        group = peers or Alone()
        held = _everywhere([piece.row for piece in self.pieces], group)
        wanted = _everywhere([piece.row for piece in pieces], group)
        give = [_moves(held[group.rank], rows) for rows in wanted]
        take = [_moves(rows, wanted[group.rank]) for rows in held]
        for window in _windows(held):
            out = [[move for name in window for move in moves.get(name, ())] for moves in give]
            into = [[move for name in window for move in moves.get(name, ())] for moves in take]
            self._exchange(pieces, out, into, group)
        then()

    def _exchange(
        self, pieces: Sequence[Piece], give: Sequence[list[_Move]], take: Sequence[list[_Move]], peers: Peers
    ) -> None:
        """Hand on what each rank is given, and put in place what this one gets; moves by rank."""
        given = [self.pieces[move.held].data[move.of] for moves in give for move in moves]
        sizes = [[sum(move.size_bytes for move in moves) for moves in side] for side in (give, take)]
        got = peers.exchange(np.concatenate([np.empty(0, np.uint8), *given]), sizes[0], sizes[1])
        for moves, part in zip(take, got, strict=True):
            at = 0
            for move in moves:
                pieces[move.wanted].data[move.to] = part[at : at + move.size_bytes]
                at += move.size_bytes


@dataclass(frozen=True, slots=True)
class _Move:
    """Bytes `of` the piece number `held` of one rank are bytes `to` of the piece number `wanted` of another."""

    held: int
    wanted: int
    of: slice
    to: slice

    @property
    def size_bytes(self) -> int:
        size: int = self.to.stop - self.to.start
        return size


def _held(piece: StatePiece) -> Piece:
    if isinstance(piece, Piece) and piece.immutable:
        return piece
    copy = np.empty(piece.row.size_bytes, np.uint8)
    piece.copy_into(0, copy)
    return Piece(piece.row, copy)


def _moves(held: Sequence[Row], wanted: Sequence[Row]) -> dict[str, list[_Move]]:
    """Where rows of two ranks meet, by parameter: the same on both of them."""
    by_key: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(wanted):
        by_key.setdefault((row.parameter, row.state), []).append(number)
    found: dict[str, list[_Move]] = {}
    for number, row in enumerate(held):
        for other in by_key.get((row.parameter, row.state), ()):
            common = intersect(wanted[other], row)
            if common is not None:
                of, to = (
                    slice(*((each - start) * row.item_bytes for each in common))
                    for start in (row.start, wanted[other].start)
                )
                found.setdefault(row.parameter, []).append(_Move(number, other, of, to))
    return found


def _windows(held: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """Parameters to exchange together: the same on every rank."""
    sizes: dict[str, int] = {}
    for row in (row for rows in held for row in rows):
        sizes[row.parameter] = sizes.get(row.parameter, 0) + row.size_bytes
    window: list[str] = []
    total = 0
    for name in sorted(sizes):
        if window and total + sizes[name] > WINDOW_BYTES:
            yield window
            window, total = [], 0
        window.append(name)
        total += sizes[name]
    if window:
        yield window


def _everywhere(rows: Sequence[Row], peers: Peers) -> list[list[Row]]:
    own = json.dumps([[row.parameter, row.state, row.start, row.end, row.dtype] for row in rows]).encode()
    return [[Row(*each) for each in json.loads(data)] for data in peers.gather(own)]
