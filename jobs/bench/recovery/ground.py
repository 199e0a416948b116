"""What the recovery bench kills: a store, a cluster of three Ray nodes, and the driver of a sweep, each a real process.

Owns starting them, putting back what does not come back by itself, and that nothing of them is left afterwards. Which is
killed when is `campaign.py`'s. Trials' workers have two nodes; slots, which take no CPU, sit on the head node with the driver, as
in any cluster. A context manager.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from jobs.bench.own_store import OwnStore
from jobs.bench.recovery.steps import STEPS_FILE
from jobs.bench.small_ray import ROOT
from tlcore.recipe import Recipe

NODES = 2
_GONE_S = 30.0
_GRACE_S = 5.0


class BenchFailed(RuntimeError):
    """A part of the bench ended that nobody had killed; says which, with the last of what it said."""


class Ground:
    """Args:
    directory: for everything that is written; thrown away by the caller.
    cpus: logical CPUs of each node for workers.
    """

    def __init__(self, directory: Path, recipe: Recipe, cpus: int) -> None:
        self.steps = directory / "steps.jsonl"
        self._directory, self._cpus = directory, cpus
        self._recipe = directory / "recipe.json"
        self._recipe.write_text(json.dumps(recipe.to_dict()))
        self._store = OwnStore(directory / "weed")
        # Ray's files and the drivers'; not below `directory`: Unix sockets in it may not have paths of more than 107 characters
        self._scratch = tempfile.TemporaryDirectory(prefix="tlray-", dir="/tmp", ignore_cleanup_errors=True)
        self._cluster: Any = None
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        # before the nodes start: their workers inherit it
        Path(self._scratch.name, "ray").mkdir()
        os.environ.update({STEPS_FILE: str(self.steps), "PYTHONPATH": str(ROOT), "TMPDIR": self._scratch.name})
        os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"})
        try:
            self._store.start()
            self._start_cluster()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _start_cluster(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._cluster.add_node(num_cpus=0, include_dashboard=False)
        for _ in range(NODES):
            self._cluster.add_node(num_cpus=self._cpus)

    # What is there.

    def actors(self, name: str) -> list[dict[str, Any]]:
        """The cluster's living actors of a class."""
        table = self._cluster.global_state.actor_table(None, None, "ALIVE")
        return [actor for actor in table.values() if actor["ActorClassName"] == name]

    def is_driving(self) -> bool:
        """Whether the sweep goes on. Raises BenchFailed when its driver ended by an error."""
        code = self._drivers[-1].poll()
        if code not in (None, 0):
            raise BenchFailed(f"the driver ended with {code}:\n{self.said()}")
        return code is None

    def said(self) -> str:
        """The end of what the newest driver said."""
        return self._said_in().read_text(errors="replace")[-3000:]

    def _said_in(self) -> Path:
        return self._directory / f"driver-{len(self._drivers)}.err"

    # What is started and killed.

    def drive(self) -> None:
        """Start a driver; every one but the first resumes."""
        words = ["--resume"] if self._drivers else []
        logs = self._directory / f"logs-{len(self._drivers) + 1}"
        command = [sys.executable, "-m", "jobs.bench.recovery.driver", str(self._recipe), str(logs), *words]
        environment = {**os.environ, "RAY_ADDRESS": self._cluster.address}
        self._drivers.append(self._spawn(command, environment))

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        said = self._directory / f"driver-{len(self._drivers) + 1}.err"
        with said.open("wb") as stderr:
            # a session of its own: Ctrl-C on a terminal is for the bench, which then ends its parts in order
            return subprocess.Popen(
                command, env=environment, stdout=stderr, stderr=stderr, cwd=ROOT, start_new_session=True
            )

    def kill_driver(self) -> float:
        """SIGKILL, and another driver that resumes. Returns when the first one was gone."""
        self._note_processes()
        self._drivers[-1].kill()
        at_s = time.time()
        self._drivers[-1].wait(_GONE_S)
        self.drive()
        return at_s

    def kill_process(self, pid: int) -> float:
        """SIGKILL to a worker or a slot."""
        self._note_processes()
        os.kill(pid, signal.SIGKILL)
        return time.time()

    def kill_raylet(self, node_id: str) -> float:
        """SIGKILL to a node's raylet, and to what else there was of the node; a node like it joins."""
        (node,) = [node for node in self._cluster.worker_nodes if node.node_id == node_id]
        self._note_processes()
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        at_s = time.time()
        raylet.wait(_GONE_S)
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(num_cpus=self._cpus)
        return at_s

    def kill_store(self, away_s: float) -> float:
        """SIGKILL, and a start on the same data `away_s` later."""
        self._store.kill()
        at_s = time.time()
        time.sleep(away_s)
        self._store.start()
        return at_s

    # The end.

    def _note_processes(self) -> None:
        """Remember every process below this one: those of a killed parent are nobody's children afterwards."""
        self._seen.update(psutil.Process().children(recursive=True))

    def left_over(self) -> list[str]:
        """Processes of the bench that run though what they belonged to was killed; given a moment to go. Called when the sweep is
        over and the cluster still there."""
        lineage = set(psutil.Process().children(recursive=True))
        orphans = [process for process in self._seen - lineage if _runs(process)]
        _, alive = psutil.wait_procs(orphans, timeout=_GONE_S)
        return [_describe(process) for process in alive if _runs(process)]

    def _close(self) -> None:
        self._note_processes()
        for driver in self._drivers:
            driver.kill()
            driver.wait(_GONE_S)
        try:
            if self._cluster is not None:
                self._cluster.shutdown()
        finally:
            self._store.stop()
            self._end_all()
            self._scratch.cleanup()

    def _end_all(self) -> None:
        """Whatever is left of all that was ever started here."""
        self._note_processes()
        _, alive = psutil.wait_procs([process for process in self._seen if _runs(process)], timeout=_GRACE_S)
        for process in alive:
            if _runs(process):
                process.kill()
        psutil.wait_procs(alive, timeout=_GRACE_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return f"{process.pid}, gone meanwhile"
