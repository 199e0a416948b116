"""Every exception tlcore raises on purpose.

Owns: the classes, their exit codes and whether a retry can help. Imports nothing of tlcore, so that any room may raise them and
any process may unpickle them. Called by: every room; `cli.py` turns them into one message and an exit code.

A message says what was wrong with the value, where, and what to do next; `hint` holds the last part. Fields travel with the
exception across processes (Ray pickles it), so a caller never parses a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


def _rebuild(cls: type[TlcoreError], message: str, hint: str, fields: dict[str, Any]) -> TlcoreError:
    error = cls.__new__(cls)
    TlcoreError.__init__(error, message, hint=hint, **fields)
    return error


class TlcoreError(Exception):
    """Base of all. `fields` are keyword facts (key, trial, rank, step, ...) for the code that handles the error."""

    exit_code: ClassVar[int] = 1
    retry_helps: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.fields)


class RequestError(TlcoreError):
    """The request was wrong: nothing was started."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe: the dotted path, and one sentence with the value and the suggestion."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class RecipeError(RequestError):
    """A recipe that cannot run. Carries every fault found, not only the first."""

    def __init__(self, faults: Sequence[Fault], source: str = "recipe") -> None:
        lines = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(
            f"{source}: {len(faults)} fault{'s' if len(faults) != 1 else ''}\n{lines}", faults=tuple(faults)
        )

    @property
    def faults(self) -> tuple[Fault, ...]:
        faults: tuple[Fault, ...] = self.fields["faults"]
        return faults


class StorageError(TlcoreError):
    """The object store did not do what was asked."""


class ObjectMissing(StorageError):
    """No object at that key."""


class BucketMissing(StorageError):
    """No such bucket, or a root directory that does not exist."""

    exit_code = 2


class StorageDenied(StorageError):
    """Credentials absent, wrong, expired, or not allowed to do this."""

    exit_code = 2


class StorageUnreachable(StorageError):
    """No answer, a broken connection, or a 5xx after all retries."""

    retry_helps = True


class StorageThrottled(StorageError):
    """The store asked for less (503 SlowDown, 429) for longer than the retries allow."""

    retry_helps = True


class StorageFull(StorageError):
    """No space left where the store keeps its data."""


class DataError(TlcoreError):
    """Training data that cannot be used as the recipe says (missing column, no rows, label out of range)."""

    exit_code = 2


class ModelError(TlcoreError):
    """A pre-trained source that cannot be found, read or fitted to the task."""

    exit_code = 2


class CheckpointError(TlcoreError):
    """A checkpoint could not be written or read."""


class CheckpointCorrupt(CheckpointError):
    """Stored bytes do not match their digest, or a manifest is malformed."""


class CheckpointIncompatible(CheckpointError):
    """The stored state does not fit this model or recipe; names the parameter and both shapes."""

    exit_code = 2


class StaleWriter(CheckpointError):
    """Another writer, newer than this one, owns the trial: this one must not commit."""


class TrainError(TlcoreError):
    """The training step itself failed."""


class OutOfMemory(TrainError):
    """A rank ran out of device or host memory."""


class Diverged(TrainError):
    """The loss is not finite, or a multiple of what it was."""


class SweepError(TlcoreError):
    """A sweep or one of its trials failed as a whole."""


class CannotPlace(SweepError):
    """What a trial asks for can never be placed on this cluster."""

    exit_code = 2


class CannotFit(SweepError):
    """What a trial needs of memory is more than a worker has."""

    exit_code = 2


class WorkerLost(SweepError):
    """A worker process or its node died."""

    retry_helps = True


class TrialHung(SweepError):
    """Ranks stood still, waiting for one that did not come, more often than the recipe allows."""

    retry_helps = True


class SlotFailed(SweepError):
    """A worker group could not be started, or failed more often than the recipe allows."""
