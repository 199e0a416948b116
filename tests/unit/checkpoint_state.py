"""A made-up training state, split among ranks in any way, for the tests of checkpoint/."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tlcore.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    Piece,
    Row,
    WriterSettings,
    frozen_shares,
    next_attempt,
    read_manifest,
)

CHUNK = 16 << 10
SETTINGS = WriterSettings(chunk_bytes=CHUNK, connections=4, commit_deadline_s=60)
SHAPES = {"embed": (300, 16), "layer.weight": (64, 32), "layer.bias": (64,), "scale": (), "norm": (7,)}
STATES = ("fp32", "exp_avg", "exp_avg_sq")


class State:
    """Trained parameters with three float32 states each, a frozen bfloat16 part and an int64 buffer."""

    def __init__(self, seed: int = 0, shapes=SHAPES, frozen_elements: int = 20_000) -> None:
        random = np.random.default_rng(seed)
        self.shapes = dict(shapes)
        self.data: dict[tuple[str, str, str], np.ndarray] = {}
        for name, shape in self.shapes.items():
            for state in STATES:
                self.data[name, state, "float32"] = random.integers(0, 256, 4 * int(np.prod(shape)), dtype=np.uint8)
        self.frozen = {"base.a": frozen_elements, "base.b": 100, "base.c": 50} if frozen_elements else {}
        for name, elements in self.frozen.items():
            self.data[name, "frozen", "bfloat16"] = random.integers(0, 256, 2 * elements, dtype=np.uint8)
        self.data["seen", "buffer", "int64"] = random.integers(0, 256, 8, dtype=np.uint8)

    def change(self, by: int = 1) -> None:
        """Everything but the frozen part becomes something else."""
        for (_, state, _), data in self.data.items():
            if state != "frozen":
                data += np.uint8(by % 256)

    def common(self, **more):
        table = {
            name: {"shape": list(shape), "dtype": "float32", "trained": True, "tied_to": None}
            for name, shape in self.shapes.items()
        }
        for name, elements in self.frozen.items():
            table[name] = {"shape": [elements], "dtype": "bfloat16", "trained": False, "tied_to": None}
        table["seen"] = {"shape": [], "dtype": "int64", "trained": False, "tied_to": None}
        return {"parameters": table, "scalars": {"step": 7}, "zero_stage": 1, **more}

    def pieces(self, rank: int, world_size: int, layout: str = "flat") -> list[Piece]:
        """What this rank owns: `flat` is one interval of all parameters end to end (ZeRO 1, 2), `each` one of each (ZeRO 3)."""
        found = [self._piece(row) for row in self._trained_rows(rank, world_size, layout)]
        rows = [Row(name, "frozen", 0, elements, "bfloat16") for name, elements in self.frozen.items()]
        found += [self._piece(row, immutable=True) for row in frozen_shares(rows, world_size, CHUNK)[rank]]
        if rank == 0:
            found.append(self._piece(Row("seen", "buffer", 0, 1, "int64")))
        return found

    def _trained_rows(self, rank: int, world_size: int, layout: str) -> list[Row]:
        rows, begin = [], 0
        counts = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        share = -(-sum(counts.values()) // world_size)
        for name, count in counts.items():
            if layout == "each":
                part = -(-count // world_size)
                start, end = min(count, rank * part), min(count, (rank + 1) * part)
            else:
                start = min(count, max(0, rank * share - begin))
                end = min(count, max(0, (rank + 1) * share - begin))
            if start < end:
                rows += [Row(name, state, start, end, "float32") for state in STATES]
            begin += count
        return rows

    def _piece(self, row: Row, immutable: bool = False) -> Piece:
        data = self.data[row.parameter, row.state, row.dtype]
        return Piece(row, data[row.start * row.item_bytes : row.end * row.item_bytes], immutable)


def writers(store, world_size, attempt=None, settings=SETTINGS, trial="t000", **more) -> list[CheckpointWriter]:
    attempt = attempt or next_attempt(store, trial)
    return [CheckpointWriter(store, trial, rank, world_size, attempt, settings, **more) for rank in range(world_size)]


def save(ranks: Sequence[CheckpointWriter], state: State, step: int, layout: str = "flat", **common) -> None:
    for rank, writer in enumerate(ranks):
        writer.save(step, state.pieces(rank, len(ranks), layout), state.common(**common) if rank == 0 else None)


def wait(ranks: Sequence[CheckpointWriter], step: int | None = None):
    with ThreadPoolExecutor(len(ranks)) as threads:
        return [report for reports in threads.map(lambda writer: writer.wait(step), ranks) for report in reports]


def close(ranks: Sequence[CheckpointWriter]) -> None:
    for writer in ranks:
        writer.close()


def saved(
    store,
    state: State,
    step: int = 200,
    world_size: int = 2,
    layout: str = "flat",
    attempt: int | None = None,
    **common,
):
    """Save once with fresh writers and return the reports."""
    ranks = writers(store, world_size, attempt)
    save(ranks, state, step, layout, **common)
    reports = wait(ranks)
    close(ranks)
    return reports


def blank(like: State) -> State:
    empty = State(shapes=like.shapes, frozen_elements=like.frozen.get("base.a", 0))
    for data in empty.data.values():
        data[:] = 0
    return empty


def restored(store, like: State, step: int = 200, world_size: int = 2, layout: str = "flat", trial: str = "t000"):
    """A state filled by `world_size` readers, and their reports."""
    state = blank(like)
    manifest = read_manifest(store, trial, step)
    reports = [
        CheckpointReader(store, manifest).read_into(state.pieces(rank, world_size, layout))
        for rank in range(world_size)
    ]
    return state, reports


def same(one: State, other: State) -> bool:
    return all(np.array_equal(one.data[key], other.data[key]) for key in one.data)
