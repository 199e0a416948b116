"""A sweep as TensorBoard event files, in `runs/<name>/tensorboard/<when it began>/<trial>`, where the command runs.

Owns the files. A resume goes on in the same directory. tensorboardX writes them: Ray Tune brings it, and it loads no torch, which
the driver does without. Its own `SummaryWriter` is left out: a full disk ends the thread that it writes in, unheard, and soon every
call of it waits for ever, at the process's exit too. Called by `displays.py`, in a thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tlcore.report.tracking.curves import BoardLost

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.summary_pb2 import Summary

_FLUSH_EVERY_S: Final = 10.0
"""A flush waits for the disk."""


class TensorBoard:
    """Files below `directory`, which all sweeps of the recipe's name share.

    Raises BoardLost where nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._home = directory
        self._writers: dict[str, EventsWriter] = {}
        self._flushed_s = float("-inf")
        with _lost(directory):
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()

    def open(self, began: str, trials: Sequence[str]) -> AbstractSet[str]:
        """Write to this sweep's own directory; those of `trials` that have files there."""
        self._home = self._directory / began
        return {trial for trial in trials if (self._home / trial).exists()}

    def begin(self, trial: str, settings: Mapping[str, Any]) -> None:
        """Nothing: settings are told at the end, beside the figures."""

    def write(self, trial: str, step: int, values: Mapping[str, float]) -> None:
        """Add points."""
        from tensorboardX.summary import scalar

        self._add(trial, [scalar(name, value) for name, value in values.items()], step)

    def end(self, trial: str, kind: str, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Settings and last figures side by side, for TensorBoard's own table of them."""
        from tensorboardX.summary import hparams

        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        self._add(trial, hparams(plain, dict(results)))
        self._close(trial)

    def close(self) -> None:
        """Close the files of every trial."""
        for trial in list(self._writers):
            self._close(trial)

    def _add(self, trial: str, summaries: Sequence[Summary], step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with _lost(self._home):
            writer = self._writer(trial)
            for summary in summaries:
                writer.write_event(Event(summary=summary, step=step, wall_time=time.time()))
            if time.monotonic() > self._flushed_s + _FLUSH_EVERY_S:
                for each in self._writers.values():
                    each.flush()
                self._flushed_s = time.monotonic()

    def _close(self, trial: str) -> None:
        with _lost(self._home):
            self._writers.pop(trial).close()

    def _writer(self, trial: str) -> EventsWriter:
        from tensorboardX.event_file_writer import EventsWriter

        if trial not in self._writers:
            (self._home / trial).mkdir(parents=True, exist_ok=True)
            # files are named by the second, read in the order of names, and a quick resume would overwrite one
            self._writers[trial] = EventsWriter(str(self._home / trial / "events"), f".{time.time_ns()}")
        return self._writers[trial]


@contextmanager
def _lost(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BoardLost(f"{directory} cannot be written ({error.strerror or error})") from error
