"""Rows and pieces: training state as intervals of flattened parameters, and the arithmetic on them.

Owns: `Row` (which elements of which state of which parameter), `Piece` (a row with the live memory that holds it),
intersection, coalescing, and the check that a set of rows covers every parameter exactly once. Does not own: where
bytes lie in the store (`manifest.py`), nor how DeepSpeed lays its partitions out (`engine/`). Called by: all of
`checkpoint/`, and `engine/` to make rows.

Every ZeRO stage is a set of contiguous 1-D intervals of flattened parameters, so restoring at another world size or
stage is interval intersection and needs no conversion step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcore.errors import CheckpointError

ByteArray = npt.NDArray[np.uint8]

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes per element by torch's dtype name without `torch.`; bytes themselves are opaque to this room."""

BUFFER = "buffer"
"""The `state` of what a forward pass may change (batch-norm statistics); all other state changes in the optimizer's step."""

MAX_ELEMENTS = 1 << 48
"""No parameter is this large; a larger number in stored metadata is junk."""


@dataclass(frozen=True, slots=True)
class Row:
    """Elements `[start, end)` of one state of one flattened parameter.

    `state` is "fp32", an optimizer state's name ("exp_avg", ...), "frozen" or "buffer"; `dtype` is a key of
    `ITEM_BYTES`. Raises CheckpointError on an empty or negative interval or an unknown dtype.
    """

    parameter: str
    state: str
    start: int
    end: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"parameter {self.parameter!r} state {self.state!r}: dtype {self.dtype!r} is not known"
            )
        if not 0 <= self.start < self.end <= MAX_ELEMENTS:
            where = f"parameter {self.parameter!r} state {self.state!r}"
            raise CheckpointError(f"{where}: [{self.start}, {self.end}) is not an interval of elements")

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements of this row."""
        return (self.end - self.start) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"parameter {self.parameter!r} state {self.state!r} elements [{self.start}, {self.end}) as {self.dtype}"


@dataclass(frozen=True, eq=False)
class Piece:
    """A row and the host memory that holds it: `data` is a contiguous 1-D uint8 view of `row.size_bytes` bytes.

    The writer copies `data` before `save` (eager) or `before_update` (lazy) returns and never writes to it; the reader
    fills it. `immutable` promises that the bytes do not change while the writer lives (frozen weights): they are then
    hashed once, uploaded once and, unless small, never copied.
    """

    row: Row
    data: ByteArray
    immutable: bool = False

    def __post_init__(self) -> None:
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or not self.data.flags.c_contiguous:
            raise CheckpointError(
                f"{self.row}: data must be a contiguous 1-D uint8 view, not {self.data.dtype} {self.data.shape}"
            )
        if self.data.nbytes != self.row.size_bytes:
            raise CheckpointError(f"{self.row}: {self.row.size_bytes} bytes expected, the view has {self.data.nbytes}")

    def copy_into(self, start: int, target: ByteArray) -> None:
        """Copy bytes `[start, start + target.nbytes)`."""
        target[:] = self.data[start : start + target.nbytes]


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """What the manifest says of one parameter or buffer; `tied_to` names the parameter under which its bytes are
    stored.
    """

    shape: tuple[int, ...]
    dtype: str
    trained: bool
    tied_to: str | None = None

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def intersect(wanted: Row, stored: Row) -> tuple[int, int] | None:
    """Element interval that both rows hold, None where there is none.

    Raises nothing; dtypes are the caller's business.
    """
    if (wanted.parameter, wanted.state) != (stored.parameter, stored.state):
        return None
    start, end = max(wanted.start, stored.start), min(wanted.end, stored.end)
    return (start, end) if start < end else None


def coalesce(spans: Iterable[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Sorted disjoint spans covering all of `spans`; neighbours at most `gap` apart become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def cover_faults(rows: Iterable[Row], parameters: Mapping[str, ParameterFacts]) -> list[str]:
    """Every way in which `rows` fail to hold each state of each parameter exactly once; empty when they do.

    A state that appears for a parameter at all must tile `[0, elements)` with one dtype; a parameter that is not
    tied and not empty must have at least one state; a tied one has none of its own.
    """
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.parameter, row.state].append(row)
    faults: list[str] = []
    for (parameter, state), held in sorted(found.items()):
        facts = parameters.get(parameter)
        if facts is None:
            faults.append(f"parameter {parameter!r} has rows but is not in the table of parameters")
        elif facts.tied_to is not None:
            faults.append(f"parameter {parameter!r} is tied to {facts.tied_to!r} and must have no rows of its own")
        else:
            faults.extend(_tiling_faults(parameter, state, held, facts))
    with_rows = {parameter for parameter, _ in found}
    for name, facts in parameters.items():
        if facts.tied_to is not None:
            target = parameters.get(facts.tied_to)
            if target is None or target.tied_to is not None:
                faults.append(f"parameter {name!r} is tied to {facts.tied_to!r}, which is not a stored parameter")
        elif name not in with_rows and facts.elements:
            faults.append(f"parameter {name!r} of shape {list(facts.shape)} has no rows")
    return faults


def _tiling_faults(parameter: str, state: str, held: list[Row], facts: ParameterFacts) -> list[str]:
    where = f"parameter {parameter!r} state {state!r}"
    faults: list[str] = []
    dtypes = sorted({row.dtype for row in held})
    if len(dtypes) > 1:
        faults.append(f"{where} has rows of several dtypes: {', '.join(dtypes)}")
    position = 0
    for row in sorted(held, key=lambda each: each.start):
        if row.start > position:
            faults.append(f"{where}: elements [{position}, {row.start}) are missing")
        elif row.start < position:
            faults.append(f"{where}: elements [{row.start}, {min(position, row.end)}) are there twice")
        position = max(position, row.end)
    if position < facts.elements:
        faults.append(f"{where}: elements [{position}, {facts.elements}) are missing")
    elif position > facts.elements:
        faults.append(f"{where}: rows reach element {position}, shape {list(facts.shape)} has {facts.elements}")
    return faults
