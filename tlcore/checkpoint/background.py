"""One save behind the training step: its chunks, then the rank's index, then on rank 0 the commit.

Owns: `Save` (one save on its way) and `SaveRunner`, what the background thread does with it. Does not own: admission and
reports to the caller (`writer.py`), the stages themselves (`snapshot.py`, `upload.py`, `commit.py`). Called by
`writer.py`, one save at a time.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from tlcore.checkpoint.commit import Committer, Identity
from tlcore.checkpoint.intervals import Row
from tlcore.checkpoint.manifest import Manifest, RankIndex, StoredChunk, StoredRow, read_index
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.plan import PlannedChunk
from tlcore.checkpoint.puts import PutPool
from tlcore.checkpoint.settings import Outcome, SaveReport
from tlcore.checkpoint.snapshot import Snapshot
from tlcore.checkpoint.upload import ChunkSender, Reusable, Sent
from tlcore.errors import CheckpointCorrupt, CheckpointError, StorageError, TlcoreError
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import manifest_key


@dataclass(eq=False)
class Save:
    """One save on its way. `stall_s` is how long it has kept its caller so far."""

    step: int
    began: float
    plan: tuple[PlannedChunk, ...]
    common: str | None
    snapshot: Snapshot
    stall_s: float = 0.0
    future: Future[SaveReport] = field(default_factory=Future)
    error: TlcoreError | None = None
    told: bool = False

    def drop(self) -> None:
        """Let go of what is no longer needed; waits for a snapshot that is being taken."""
        self.snapshot.release()
        self.plan, self.common = (), None

    def as_checkpoint_error(self) -> CheckpointError:
        """Why it failed."""
        error = self.error
        if isinstance(error, CheckpointError):
            return error
        message, hint = (error.message, error.hint) if error else ("it failed", "")
        return CheckpointError(f"the save of step {self.step} failed: {message}", hint=hint, step=self.step)


class SaveRunner:
    """Takes saves through the store for one rank. `run` is called in one thread."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        committer: Committer,
        sender: ChunkSender,
        puts: PutPool,
        reusable: Reusable,
        patience: Patience,
        parent: Manifest | None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._committer = committer
        self._sender = sender
        self._puts = puts
        self._reusable = reusable
        self._patience = patience
        self._parent = parent
        self._frozen: dict[tuple[Row, ...], StoredChunk] = {}
        self._unseen: tuple[int, tuple[str, ...]] | None = None

    def run(self, save: Save) -> SaveReport:
        """Store one save and say how it ended; errors that are not ours stay in the future and meet whoever
        asks for it. The other ranks are told of either.
        """
        retries, repeated = self._patience.retries, self._puts.repeated
        sent = Sent()
        outcome: Outcome = "failed"
        try:
            self._prepare()
            sent = self._sender.send(save.snapshot.chunks(self._known))
            self._publish(save, sent)
            outcome = "committed" if self._identity.rank == 0 else "uploaded"
        except TlcoreError as error:
            save.error = error
            self._tell(save.step, error.message)
        except BaseException as error:
            # By its kind alone: what a stranger's message quotes does not belong in the store.
            self._tell(save.step, f"it met {type(error).__name__}")
            raise
        finally:
            save.drop()
        return SaveReport(
            step=save.step,
            outcome=outcome,
            stall_s=save.stall_s,
            seconds=time.monotonic() - save.began,
            upload_s=sent.seconds,
            bytes_new=sent.bytes_new,
            bytes_reused=sent.bytes_reused,
            retries=self._patience.retries - retries,
            repeated=self._puts.repeated - repeated,
            manifest_key=manifest_key(self._identity.trial, save.step),
            error=save.error.message if save.error else "",
        )

    def _tell(self, step: int, reason: str) -> None:
        """Tell the other ranks, if the store lets us; if not, they find out by their deadline."""
        if self._identity.world_size > 1:
            with contextlib.suppress(StorageError):
                self._committer.give_up(step, reason)

    def _known(self, chunk: PlannedChunk) -> StoredChunk | None:
        """What an immutable chunk was at the last save, as long as its object is surely there."""
        known = self._frozen.get(chunk.rows)
        return known if known is not None and known.digest in self._reusable else None

    def _prepare(self) -> None:
        """Learn what may be reused: the parent's chunks once, and on other ranks whether rank 0 committed the
        last save; nothing that a garbage collection has told of.
        """
        self._committer.fence()
        if self._parent is not None:
            parent, self._parent = self._parent, None
            try:
                self._reusable.committed(
                    chunk.digest for ref in parent.indexes for chunk in read_index(self._store, ref).chunks
                )
            except CheckpointCorrupt:
                self._reusable.committed(())
        if self._unseen is not None and self._committer.was_committed(self._unseen[0]):
            self._reusable.committed(self._unseen[1])
            self._unseen = None
        self._reusable.forget(self._committer.collected())

    def _publish(self, save: Save, sent: Sent) -> None:
        """Put this rank's index and, on rank 0, commit."""
        identity = self._identity
        rows = tuple(row for number, chunk in enumerate(save.plan) for row in _stored_rows(number, chunk))
        index = RankIndex(
            identity.trial,
            save.step,
            identity.rank,
            identity.world_size,
            identity.attempt,
            sent.bytes_new,
            sent.chunks,
            rows,
        ).to_bytes()
        self._patience.ask(lambda: self._store.put(identity.index_key(save.step), index))
        stored = zip(save.plan, sent.chunks, strict=True)
        self._frozen = {planned.rows: chunk for planned, chunk in stored if planned.immutable}
        digests = tuple(chunk.digest for chunk in sent.chunks)
        if save.common is None:
            self._unseen = (save.step, digests)
            return
        self._committer.commit(save.step, index, json.loads(save.common))
        self._reusable.committed(digests)


def _stored_rows(number: int, chunk: PlannedChunk) -> Iterator[StoredRow]:
    offset = 0
    for cut in chunk.cuts:
        yield StoredRow(cut.row, number, offset)
        offset += cut.row.size_bytes
