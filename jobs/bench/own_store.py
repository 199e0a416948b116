"""A SeaweedFS that a bench has for itself: started in a directory of its own, killed, started again on what it left.

Owns its process and the environment by which every process of the bench finds it. Called by the kill, recovery and sweep benches.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tlcore.storage import EmbeddedStore

_GONE_S = 30.0


class OwnStore:
    """Not running until `start`.

    Args:
        directory: where it keeps everything; sets TLCORE_STORE_DIR and takes AWS settings out of the environment, since they would
            name another store. To be made before the processes that must find it.
    """

    def __init__(self, directory: Path) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ["TLCORE_STORE_DIR"] = str(directory)
        self._store = EmbeddedStore(directory)

    def start(self) -> None:
        """Start it, on the data that an earlier start left."""
        self._store.up()

    def kill(self) -> None:
        """SIGKILL to its process; returns when that is gone. Raises RuntimeError when it does not run."""
        pid = self._store.status().pid
        if pid is None:
            raise RuntimeError("the store to be killed does not run")
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait(_GONE_S)

    def stop(self) -> None:
        """Stop it for good: what it holds is thrown away by whoever made the directory, so it need not flush."""
        if self._store.status().running:
            self.kill()
        self._store.down()
