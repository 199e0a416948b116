"""Groups of ranks that carry out operations on demand, so that operations of several groups can be timed in turn.

Owns starting, asking and stopping them. Ranks connect to a socket on loopback and then wait on it for their next operation, taking
no processor time; what starts them may be this module or a launcher of its own (`ray_train.py`). Called by
`sections.py`; the other end is `worker.py`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from jobs.bench.ranks import BenchFailed

CONNECT_S = 180.0
ANSWER_S = 900.0


class Group:
    """`world_size` ranks that answer to `ask`.

    Args:
        name: for messages.
        settings: sent to every rank once it is connected, JSON-able; `scratch` is where they put temporary files.
        module: what is started: by default the rank itself, once per rank; under `launcher` once, to start the ranks by itself. It
            gets the socket's port and the number of ranks as arguments.
        log: file for what the processes print.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], world_size: int, log: Path, launcher: str | None = None
    ) -> None:
        self.name, self.world_size, self._log = name, world_size, log
        self._settings = dict(settings)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=world_size)
        self._listener.settimeout(1.0)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._streams: list[IO[str]] = []
        port, rendezvous = self._listener.getsockname()[1], _free_port()
        with log.open("wb") as output:
            if launcher:
                self._start([launcher, str(port), str(world_size)], {}, output)
            for rank in range(0 if launcher else world_size):
                ranks = {**_rank_environment(rank, world_size, rendezvous), "TMPDIR": self._settings["scratch"]}
                self._start(["jobs.bench.checkpoint.worker", str(port)], ranks, output)

    def _start(self, words: list[str], environment: Mapping[str, str], output: IO[bytes]) -> None:
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        )

    def connect(self) -> None:
        """Wait until every rank is there. Raises BenchFailed."""
        deadline = time.monotonic() + CONNECT_S
        while len(self._streams) < self.world_size:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                ended = any(process.poll() is not None for process in self._processes)
                if ended or time.monotonic() > deadline:
                    raise self._failed(f"{len(self._streams)} of {self.world_size} ranks came") from None
                continue
            connection.settimeout(ANSWER_S)
            stream = connection.makefile("rw")
            stream.write(json.dumps(self._settings) + "\n")
            stream.flush()
            self._streams.append(stream)

    def ask(self, operation: str, **arguments: Any) -> list[dict[str, Any]]:
        """Have every rank do `operation`, all at once; their answers in the order of ranks. Raises BenchFailed."""
        for stream in self._streams:
            stream.write(json.dumps({"operation": operation, "arguments": arguments}) + "\n")
            stream.flush()
        answers = [self._answer(stream, operation) for stream in self._streams]
        return sorted(answers, key=lambda answer: int(answer["rank"]))

    def _answer(self, stream: IO[str], operation: str) -> dict[str, Any]:
        try:
            line = stream.readline()
        except TimeoutError:
            raise self._failed(f"no answer to {operation} after {ANSWER_S:.0f} s") from None
        if not line:
            raise self._failed(f"a rank ended during {operation}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(f"rank {answer['rank']} failed in {operation}: {answer['error']}")
        return answer

    def _failed(self, reason: str) -> BenchFailed:
        return BenchFailed(
            f"{self.name}: {reason}; the end of {self._log}:\n{self._log.read_text(errors='replace')[-3000:]}"
        )

    def close(self) -> None:
        """Let the ranks end, and end those that do not."""
        for stream in self._streams:
            stream.close()
        self._listener.close()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rank_environment(rank: int, world_size: int, rendezvous_port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(rendezvous_port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
