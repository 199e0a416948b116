"""Runs in a storage: making one, finding the newest, listing all.

Owns the run's place `<storage>/<name>/<run-id>` and the index that finds it. The object store interface has no
directories, and a run holds tens of thousands of chunks, so listing a whole storage to find its runs would cost
minutes; each run has an empty object `<storage>/.runs/<name>/<run-id>` instead. It is written before `run.json`: a
run that was started is always found, and one without `run.json` counts as never started. Called by `sweep/`,
`train/`, `report/` and the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tlcore.errors import ObjectMissing, RequestError, StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.documents import encode_json, get_json
from tlcore.storage.keys import RUN_JSON, check_name, new_run_id
from tlcore.storage.open import open_store

_INDEX = ".runs/"
_ID_ATTEMPTS = 100


@dataclass(frozen=True, order=True)
class RunRef:
    """One run: `<storage>/<name>/<run_id>`."""

    storage: str
    name: str
    run_id: str

    @property
    def url(self) -> str:
        return f"{self.storage}/{self.name}/{self.run_id}"

    def open(self) -> ObjectStore:
        """The store rooted at the run."""
        return open_store(self.url)

    def identity(self) -> dict[str, Any]:
        """What `run.json` says. Raises ObjectMissing when the run was never started."""
        found: dict[str, Any] = get_json(self.open(), RUN_JSON)
        return found


def parse_run_url(url: str) -> RunRef:
    """The run a URL names, `<storage>/<name>/<run-id>`. Raises RequestError when there are not enough parts."""
    parts = open_store(url).url.rsplit("/", 2)
    if len(parts) != 3 or parts[0].endswith((":/", "//")) or not all(parts):
        raise RequestError(f"{url!r} does not name a run", hint="write <storage>/<name>/<run-id>")
    return RunRef(*parts)


def create_run(storage_url: str, name: str, identity: Mapping[str, Any], now: datetime, entropy: str) -> RunRef:
    """Make a new run and write its `run.json`.

    Args:
        storage_url: where runs are kept.
        name: the recipe's name.
        identity: what `run.json` shall say.
        now: the run's start, timezone-aware.
        entropy: text that no other run started in the same second has (a random hex string).
    """
    store = open_store(storage_url)
    name = _checked(name)
    for attempt in range(_ID_ATTEMPTS):
        run = RunRef(store.url, name, new_run_id(now, f"{entropy}/{attempt}" if attempt else entropy))
        store.put(_INDEX + f"{name}/{run.run_id}", b"")
        document = encode_json({**identity, "name": name, "run_id": run.run_id, "created": now.isoformat()})
        if store.put_if_absent(f"{name}/{run.run_id}/{RUN_JSON}", document):
            return run
    raise StorageError(f"cannot find a free run id for {name!r} in {store.url}", hint="try again")


def list_runs(storage_url: str, name: str | None = None) -> list[RunRef]:
    """Every run of a storage, or of one name in it, oldest first within a name. Reads the index only."""
    store = open_store(storage_url)
    prefix = _INDEX if name is None else f"{_INDEX}{_checked(name)}/"
    parts = [info.key.removeprefix(_INDEX).split("/") for info in store.list(prefix)]
    return sorted(RunRef(store.url, part[0], part[1]) for part in parts if len(part) == 2)


def newest_run(storage_url: str, name: str) -> RunRef:
    """The newest started run of a name. Raises ObjectMissing, naming the runs there are."""
    for run in reversed(list_runs(storage_url, name)):
        try:
            run.identity()
        except ObjectMissing:
            continue
        return run
    names = sorted({run.name for run in list_runs(storage_url)})
    raise ObjectMissing(
        f"no run named {name!r} in {open_store(storage_url).url}",
        hint=f"there {'is' if len(names) == 1 else 'are'}: {', '.join(names)}" if names else "there is no run at all",
    )


def _checked(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise RequestError(f"run {error}") from error
