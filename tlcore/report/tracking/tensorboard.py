"""A sweep as TensorBoard event files, in `runs/<name>/tensorboard/<when it began>/<trial>`, where the command runs.

Owns the files. A resume goes on in the same directory. tensorboardX writes them: Ray Tune brings it, and it loads no torch, which
the driver does without. Called by `displays.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoard:
    """Files below `directory`, which all sweeps of the recipe's name share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._home = directory
        self._writers: dict[str, SummaryWriter] = {}

    def open(self, began: str, trials: Sequence[str]) -> AbstractSet[str]:
        """Write to this sweep's own directory; those of `trials` that have files there."""
        self._home = self._directory / began
        return {trial for trial in trials if (self._home / trial).exists()}

    def begin(self, trial: str, settings: Mapping[str, Any]) -> None:
        """Nothing: settings are told at the end, beside the figures."""

    def write(self, trial: str, step: int, values: Mapping[str, float]) -> None:
        """Add points."""
        for name, value in values.items():
            self._writer(trial).add_scalar(name, value, step)

    def end(self, trial: str, kind: str, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Settings and last figures side by side, for TensorBoard's own table of them."""
        from tensorboardX.summary import hparams

        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        for summary in hparams(plain, dict(results)):
            self._writer(trial).file_writer.add_summary(summary)
        self._writers.pop(trial).close()

    def close(self) -> None:
        """Close the files of every trial."""
        for trial in list(self._writers):
            self._writers.pop(trial).close()

    def _writer(self, trial: str) -> SummaryWriter:
        from tensorboardX import SummaryWriter

        if trial not in self._writers:
            # files are named by the second, read in the order of names, and a quick resume would overwrite one
            suffix = f".{time.time_ns()}"
            self._writers[trial] = SummaryWriter(str(self._home / trial), flush_secs=10, filename_suffix=suffix)
        return self._writers[trial]
