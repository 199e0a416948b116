"""A checkpoint as a pointer: the few bytes that Tune holds, that a recipe names and that a person pastes.

Owns: `CheckpointRef`, its text form `<run url>/trials/<trial>/step-<n>`. Called by `sweep/`, `train/`, `models/` (a
checkpoint URL as a model) and the command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from tlcore.checkpoint.manifest import Manifest, read_manifest
from tlcore.errors import RequestError
from tlcore.storage import open_store
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import checkpoint_prefix

_FORM = re.compile(
    r"(?P<run>.+)/trials/(?P<trial>[A-Za-z0-9][A-Za-z0-9_.-]*)/step-(?P<step>\d{1,8})(/(MANIFEST\.json)?)?\Z"
)


@dataclass(frozen=True)
class CheckpointRef:
    """Names one checkpoint of one trial of a run. Naming one does not say that it is there."""

    run_url: str
    trial: str
    step: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<run>/trials/<trial>/step-<n>`, zeros and a trailing `/MANIFEST.json` allowed. Raises RequestError."""
        match = _FORM.match(text)
        if match is None:
            raise RequestError(
                f"{text!r} does not name a checkpoint", hint="the form is <run url>/trials/<trial>/step-<number>"
            )
        return cls(match["run"], match["trial"], int(match["step"]))

    @classmethod
    def is_one(cls, text: str) -> bool:
        """Whether `text` has the form of a checkpoint URL."""
        return _FORM.match(text) is not None

    def __str__(self) -> str:
        return f"{self.run_url}/{checkpoint_prefix(self.trial, self.step).rstrip('/')}"

    def open(self) -> tuple[ObjectStore, Manifest]:
        """The run's store and the manifest.

        Raises CheckpointError when there is none, CheckpointCorrupt, StorageError.
        """
        store = open_store(self.run_url)
        return store, read_manifest(store, self.trial, self.step)
