"""Estimates of a worker's memory, asked of a process of its own and remembered on this machine.

Owns the process (`train/estimate.py`, so that the driver loads no torch), which settings an estimate depends on, and the answers of
earlier sweeps, kept as small JSON files under the user's cache directory by those settings, the model's configuration and the code
that made them. Called by `fit.py`, by way of `runner.py` and `planning.py`, which make and close it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import tlcore
from tlcore import errors
from tlcore.errors import TlcoreError
from tlcore.models import resolve_source
from tlcore.recipe import Recipe

Estimate = Callable[[Recipe, bool], Mapping[str, Any]]
"""(recipe, on a GPU) -> `device_bytes` and `host_bytes` of a worker, or `unknown` with why."""

_COUNTING: Final = ("engine", "models", "tasks", "transfer", "train")
"""Rooms whose code decides an estimate."""


class EstimatorProcess:
    """`train/estimate.py` in a process of its own, from its first question to `close`; a later question starts it again.

    Args:
        directory: keeps answers; None is the user's cache directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._directory = directory or Path.home() / ".cache" / "tlcore" / "fit"
        self._known: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> EstimatorProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Begin to load what it needs, while others do something else."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tlcore.train.estimate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def __call__(self, recipe: Recipe, on_gpu: bool) -> Mapping[str, Any]:
        """The estimate. Raises what is wrong with the recipe or its model."""
        key = _key(recipe, on_gpu)
        if key not in self._known:
            self._known[key] = self._kept(key) or self._ask(key, {"recipe": _without_search(recipe), "on_gpu": on_gpu})
        found = self._known[key]
        if "error" in found:
            raise _as_raised(found)
        return found

    def prepare(self, recipe: Recipe) -> None:
        """Start the process, while others do something else, if this recipe will be asked about and is not known."""
        if not any(self._kept(_key(recipe, on_gpu)) for on_gpu in (False, True)):
            self.start()

    def _kept(self, key: str) -> Mapping[str, Any] | None:
        try:
            found = json.loads((self._directory / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _keep(self, key: str, found: Mapping[str, Any]) -> None:
        """For the next sweep; a directory that cannot be written costs it the time."""
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            made = self._directory / f"{key}.{os.getpid()}"
            made.write_text(json.dumps(found))
            made.rename(self._directory / f"{key}.json")

    def _ask(self, key: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"unknown": "the process that estimates memory ended"}
        found: Mapping[str, Any] = json.loads(line)
        if "host_bytes" in found:
            self._keep(key, found)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _as_raised(found: Mapping[str, Any]) -> TlcoreError:
    if found["error"] == "RecipeError":  # its faults are in the message already
        return errors.RequestError(found["message"], hint=found["hint"])
    kind = getattr(errors, found["error"], TlcoreError)
    error: TlcoreError = kind(found["message"], hint=found["hint"])
    return error


def _without_search(recipe: Recipe) -> dict[str, Any]:
    """The trial's recipe as one that is read anew: what its sweep searches, and how, says nothing about it and might be refused.
    The metric stays: a section's own default is no metric of every task."""
    search = type(recipe.search)(trials=1, metric=recipe.search.metric_, mode=recipe.search.mode_)
    return recipe.model_copy(update={"search": search}).to_dict()


def what_matters(recipe: Recipe) -> dict[str, Any]:
    """The settings on which batch arithmetic, shape and memory depend; recipes that agree in them share a verdict."""
    data = recipe.to_dict()
    train = {key: data["train"][key] for key in _TRAIN}
    kept = {key: data[key] for key in ("task", "model", "data", "transfer", "deepspeed", "resources")}
    kept["transfer"] = {key: value for key, value in data["transfer"].items() if key not in _NO_MATTER}
    schedule = recipe.transfer.schedule
    # judged by its end: how many parts ever join
    kept["transfer"]["schedule"] = len(schedule) if isinstance(schedule, tuple) else "all"
    decays = bool(recipe.train.weight_decay)
    return {**kept, "train": train, "decays": decays, "snapshots": data["checkpoint"]["memory_bytes"]}


_TRAIN: Final = (
    "global_batch_size",
    "micro_batch_size",
    "optimizer",
    "precision",
    "activation_checkpointing",
)
_NO_MATTER: Final = ("alpha", "decay")
"""Settings of `transfer` that change no shape."""


def counting_files(package: Path) -> list[Path]:
    """The code of a tlcore package that decides an estimate, in a fixed order."""
    return sorted(file for room in _COUNTING for file in (package / room).rglob("*.py"))


@cache
def _code() -> str:
    """Digest of what makes estimates: this code and the libraries under it."""
    digest = hashlib.sha256()
    for file in counting_files(Path(tlcore.__file__).parent):
        digest.update(file.read_bytes())
    for package in ("torch", "transformers", "deepspeed", "peft"):
        digest.update(version(package).encode())
    return digest.hexdigest()


def _key(recipe: Recipe, on_gpu: bool) -> str:
    source = recipe.model
    directory = resolve_source(source.source, source.revision, source.trust_remote_code).directory
    model = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([what_matters(recipe), on_gpu, model, _code()]).encode()).hexdigest()[:32]
