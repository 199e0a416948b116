"""State handed from one engine to the next: every byte arrives where it is wanted, however both are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_peers import together

from tlcore.checkpoint import Piece, Row
from tlcore.checkpoint.device import HostMemory
from tlcore.engine import carry
from tlcore.engine.carry import CarriedState

pytestmark = pytest.mark.unit

SIZES = {"embed": 31, "block.weight": 64, "block.bias": 1, "head": 7}
STATES = ("fp32", "exp_avg")


def table() -> dict[str, Any]:
    return {
        name: {"shape": [size], "dtype": "float32", "trained": True, "tied_to": None} for name, size in SIZES.items()
    }


def values(name: str, state: str) -> np.ndarray[Any, Any]:
    seed = [*SIZES].index(name) * 10 + STATES.index(state)
    return np.random.default_rng(seed).random(SIZES[name], np.float32)


def cut_rows(cuts: list[int], world: int) -> list[list[Row]]:
    """Every state of every parameter, cut at these fractions (of 100) and dealt out to the ranks in turn."""
    ranks: list[list[Row]] = [[] for _ in range(world)]
    for name, size in SIZES.items():
        edges = sorted({0, size, *(cut * size // 100 for cut in cuts)})
        for number, (start, end) in enumerate(pairwise(edges)):
            ranks[number % world] += [Row(name, state, start, end, "float32") for state in STATES]
    return ranks


def piece(row: Row, *, filled: bool) -> Piece:
    whole = values(row.parameter, row.state)[row.start : row.end]
    return Piece(row, (whole if filled else np.zeros_like(whole)).copy().view(np.uint8))


CUTS = st.lists(st.integers(0, 100), max_size=4)


@settings(max_examples=60, deadline=None)
@given(CUTS, CUTS, st.integers(1, 3), st.sampled_from([1, 200, 1 << 20]))
def test_every_interval_arrives_whole(before: list[int], after: list[int], world: int, window_bytes: int) -> None:
    held, wanted = cut_rows(before, world), cut_rows(after, world)
    pieces = [[piece(row, filled=False) for row in rows] for rows in wanted]

    def work(rank: int, peers: Any) -> None:
        mine = [piece(row, filled=True) for row in held[rank]]
        carried = CarriedState.of(mine, HostMemory(), table(), {"optimizer_steps": 3})
        for each in mine:
            each.data[:] = 0  # the engine's memory is gone by then
        carried.read_into(pieces[rank], peers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry, "WINDOW_BYTES", window_bytes)
        assert together(world, work) == [None] * world
    for each in (each for rank in pieces for each in rank):
        assert np.array_equal(each.data, piece(each.row, filled=True).data), each.row


def test_one_rank_alone_needs_no_peers_and_frozen_weights_are_not_copied() -> None:
    frozen = Piece(Row("head", "frozen", 0, 7, "float32"), values("head", "fp32").view(np.uint8), immutable=True)
    carried = CarriedState.of([frozen], HostMemory(), table(), {})
    assert carried.pieces[0] is frozen
    target = Piece(Row("head", "frozen", 2, 5, "float32"), np.zeros(12, np.uint8))
    carried.read_into([target])
    assert np.array_equal(target.data.view(np.float32), values("head", "fp32")[2:5])
    assert carried.parameters["head"].shape == (7,)
