"""What a caller may set on a writer, and what each save reports back.

Owns: `WriterSettings`, `SaveReport`. Called by: `train/` (fills the settings from the recipe's `checkpoint` section,
shows the reports).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tlcore.checkpoint.plan import CHUNK_BYTES
from tlcore.errors import CheckpointError

SnapshotKind = Literal["eager", "lazy"]
Outcome = Literal["committed", "uploaded", "failed"]


@dataclass(frozen=True)
class WriterSettings:
    """How one rank's writer behaves. Raises CheckpointError on values that cannot work."""

    snapshot: SnapshotKind = "eager"
    """`eager`: `save` copies the state. `lazy`: a thread does, and the caller must call `before_update` in time."""
    memory_bytes: int | None = None
    """Most host memory this rank's snapshots may take; None: two snapshots. Room for one: one save in flight.
    Less than one snapshot: `save` blocks while the state passes through what there is.
    """
    chunk_bytes: int = CHUNK_BYTES
    """Size of a grid cell and most bytes of a chunk."""
    connections: int = 8
    """PUTs in flight from this rank."""
    hashers: int = 2
    """Threads that hash, 4 GB/s each."""
    attempts: int = 4
    """Tries of one request, after the client's own retries, when the store is unreachable or asks for less."""
    commit_deadline_s: float = 600.0
    """How long rank 0 waits for the other ranks' indexes, and they for its manifest."""

    def __post_init__(self) -> None:
        if self.snapshot not in get_args(SnapshotKind):
            raise CheckpointError(f"checkpoint.snapshot: {self.snapshot!r} is none of eager, lazy")
        for name in ("connections", "hashers", "attempts"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"checkpoint.{name}: {getattr(self, name)} is less than 1")
        if self.memory_bytes is not None and self.memory_bytes < self.chunk_bytes:
            raise CheckpointError(
                f"checkpoint.memory_bytes: {self.memory_bytes} bytes hold no chunk of {self.chunk_bytes}",
                hint=f"set checkpoint.memory_bytes to at least {self.chunk_bytes}, or to auto",
            )


@dataclass(frozen=True)
class SaveReport:
    """One save on one rank.

    `outcome`: "committed" (the manifest is there, seen by this rank), "uploaded" (this rank's part is durable,
    rank 0 commits), "failed" (`error` says why). `stall_s` is how long `save` and `before_update` kept their caller,
    `seconds` from the call to the outcome, `upload_s` from the first chunk's hashing until all chunks were durable. `bytes_reused`
    were in the store already. `retries` were failed requests, `repeated` late PUTs that were sent a second time.
    """

    step: int
    outcome: Outcome
    stall_s: float
    seconds: float
    upload_s: float = 0.0
    bytes_new: int = 0
    bytes_reused: int = 0
    retries: int = 0
    repeated: int = 0
    manifest_key: str = ""
    error: str = ""

    @property
    def committed(self) -> bool:
        """Whether the checkpoint exists, as far as this rank has seen."""
        return self.outcome == "committed"

    @property
    def bytes_per_s(self) -> float | None:
        """New bytes over `upload_s`, hashing included; None where nothing new was sent."""
        return self.bytes_new / self.upload_s if self.bytes_new and self.upload_s > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the trial's history."""
        return {**asdict(self), "committed": self.committed}
