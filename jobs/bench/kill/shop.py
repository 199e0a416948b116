"""The store that the kill bench works on: a SeaweedFS of its own, killed, started again, and thrown away when it has grown.

Owns its directory, its process and the run inside. Called by the lanes of `__main__.py`. `TLCORE_STORE_DIR` must name the directory
before the fork server starts, so that every process finds the store by itself.
"""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from jobs.bench.own_store import OwnStore
from tlcore.storage import create_run


class Shop:
    """A directory with a store and a scratch place. A context manager: leaving it stops the store.

    Args:
        directory: empty; the environment names the store there (`OwnStore`).
        local: runs go to a directory (`file://`), and no server is started.
    """

    def __init__(self, directory: Path, local: bool = False) -> None:
        self._local = local
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self._place = directory / "store"
        self._store = OwnStore(self._place)
        self.run_url = ""

    def __enter__(self) -> Shop:
        self.renew()
        return self

    def __exit__(self, *_: object) -> None:
        self._store.stop()

    def renew(self) -> None:
        """An empty store and an empty run in it."""
        self._store.stop()
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.rmtree(self.scratch)
        self.scratch.mkdir()
        if not self._local:
            self._store.start()
        storage = f"file://{self.scratch}/runs" if self._local else "s3://tlcore"
        self.run_url = create_run(storage, "kill", {"kind": "bench"}, datetime.now(UTC), secrets.token_hex(8)).url

    def kill(self) -> None:
        """SIGKILL to the store's process; returns when it is gone."""
        self._store.kill()

    def start(self) -> None:
        """Start the killed store again, on the data it left."""
        self._store.start()
