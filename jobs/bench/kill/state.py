"""The state that ranks save in the kill bench: every byte follows from (trial, life, step, parameter, state).

Owns the made-up parameters, their bytes, and how ranks share them. Knows nothing of the store: what is restored is judged by
arithmetic that the code under test takes no part in. Called by `ranks.py` (fills live memory) and `checks.py` (judges).

A "life" is one start of a trial's ranks, numbered by the killer and never used twice. It is part of the bytes, so that a
checkpoint that mixes ranks of two lives shows, also where both used the same step and the same attempt number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcore.checkpoint import ITEM_BYTES, Row, frozen_shares

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES = 256 << 10
TRAINED: Mapping[str, tuple[int, ...]] = {
    "embed": (311, 200),
    "block.weight": (400, 501),
    "block.bias": (501,),
    "scale": (),
}
STATES = ("exp_avg", "exp_avg_sq", "fp32")
FROZEN: Mapping[str, int] = {"base.weight": 400_001, "base.bias": 1000}
BUFFER, BUFFER_ELEMENTS = "seen", 3
_WORD_BYTES = 8


def score(trial: str, step: int) -> float:
    """The metric by which retention ranks a checkpoint; differs between steps, the same in every life."""
    return int.from_bytes(_digest("score", trial, step)[:6], "big") / 2**48


def common(trial: str, life: int, step: int) -> dict[str, Any]:
    """What rank 0 hands to the writer beside the pieces."""
    table = {
        name: {"shape": list(shape), "dtype": "float32", "trained": True, "tied_to": None}
        for name, shape in TRAINED.items()
    }
    for name, elements in FROZEN.items():
        table[name] = {"shape": [elements], "dtype": "bfloat16", "trained": False, "tied_to": None}
    table[BUFFER] = {"shape": [BUFFER_ELEMENTS], "dtype": "int64", "trained": False, "tied_to": None}
    scalars = {"trial": trial, "step": step, "life": life}
    return {"parameters": table, "scalars": scalars, "zero_stage": 1, "metrics": {"score": score(trial, step)}}


def all_rows() -> list[Row]:
    """The whole state, one row for each state of each parameter."""
    buffer = Row(BUFFER, "buffer", 0, BUFFER_ELEMENTS, "int64")
    return [*_trained_rows(0, 1), *_frozen_rows(), buffer]


def rows_of(rank: int, world_size: int) -> list[Row]:
    """What one rank owns: its part of all trained parameters laid end to end, as ZeRO-1 and 2 cut them, its share of the frozen
    ones, and on rank 0 the buffer."""
    found = [*_trained_rows(rank, world_size), *frozen_shares(_frozen_rows(), world_size, CHUNK_BYTES)[rank]]
    if rank == 0:
        found.append(Row(BUFFER, "buffer", 0, BUFFER_ELEMENTS, "int64"))
    return found


def _frozen_rows() -> list[Row]:
    return [Row(name, "frozen", 0, elements, "bfloat16") for name, elements in FROZEN.items()]


def _trained_rows(rank: int, world_size: int) -> list[Row]:
    counts = {name: int(np.prod(shape)) for name, shape in TRAINED.items()}
    share = -(-sum(counts.values()) // world_size)
    rows: list[Row] = []
    begin = 0
    for name, count in counts.items():
        start = min(count, max(0, rank * share - begin))
        end = min(count, max(0, (rank + 1) * share - begin))
        if start < end:
            rows += [Row(name, state, start, end, "float32") for state in STATES]
        begin += count
    return rows


def content(row: Row, trial: str, life: int, step: int) -> Bytes:
    """The bytes that `row` holds after `step` in this life; frozen rows are the same for ever."""
    first, last = row.start * ITEM_BYTES[row.dtype], row.end * ITEM_BYTES[row.dtype]
    words = _base(row.parameter, row.state)[first // _WORD_BYTES : -(-last // _WORD_BYTES)]
    if row.state != "frozen":
        key = _digest("key", trial, life, step, row.parameter, row.state)[:_WORD_BYTES]
        words = words ^ np.frombuffer(key, np.uint64)
    start = first % _WORD_BYTES
    return words.view(np.uint8)[start : start + last - first]


def wrong_bytes(row: Row, data: Bytes, trial: str, life: int, step: int) -> str:
    """How `data` differs from what `row` must hold, in one sentence; empty when it does not."""
    differing = np.flatnonzero(data != content(row, trial, life, step))
    if not differing.size:
        return ""
    return (
        f"{row}: {differing.size} of {data.size} bytes differ from step {step} of life {life}, from byte {differing[0]}"
    )


@cache
def _base(parameter: str, state: str) -> npt.NDArray[np.uint64]:
    elements = {**{name: int(np.prod(shape)) for name, shape in TRAINED.items()}, **FROZEN, BUFFER: BUFFER_ELEMENTS}
    seed = int.from_bytes(_digest("base", parameter, state)[:8], "big")
    # Eight bytes an element are enough for every dtype here.
    return np.random.default_rng(seed).integers(0, 2**64, elements[parameter], dtype=np.uint64)


def _digest(*parts: str | int) -> bytes:
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()
