"""The store that the kill bench works on: a SeaweedFS of its own, killed, started again, and thrown away when it has grown.

Owns its directory, its process and the run inside. Called by the lanes of `__main__.py`. `TLCORE_STORE_DIR` must name the directory
before the fork server starts, so that every process finds the store by itself.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tlcore.storage import EmbeddedStore, create_run

_GONE_S = 30.0


class Shop:
    """A directory with a store and a scratch place. A context manager: leaving it stops the store.

    Args:
        directory: empty; sets TLCORE_STORE_DIR and takes AWS settings out of the environment, since they would name another store.
        local: runs go to a directory (`file://`), and no server is started.
    """

    def __init__(self, directory: Path, local: bool = False) -> None:
        self._local = local
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self._place = directory / "store"
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ["TLCORE_STORE_DIR"] = str(self._place)
        self._store = EmbeddedStore(self._place)
        self.run_url = ""

    def __enter__(self) -> Shop:
        self.renew()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def renew(self) -> None:
        """An empty store and an empty run in it."""
        self._end()
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.rmtree(self.scratch)
        self.scratch.mkdir()
        if not self._local:
            self._store.up()
        storage = f"file://{self.scratch}/runs" if self._local else "s3://tlcore"
        self.run_url = create_run(storage, "kill", {"kind": "bench"}, datetime.now(UTC), secrets.token_hex(8)).url

    def _end(self) -> None:
        """What it holds is thrown away, so it need not flush."""
        if self._store.status().running:
            self.kill()
        self._store.down()

    def kill(self) -> None:
        """SIGKILL to the store's process; returns when it is gone."""
        pid = self._store.status().pid
        if pid is None:
            raise RuntimeError("the store to be killed does not run")
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait(_GONE_S)

    def start(self) -> None:
        """Start the killed store again, on the data it left."""
        self._store.up()
