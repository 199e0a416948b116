"""Groups of rank processes that run blocks of steps on demand, so that loops in processes of their own can be timed in turn.

Owns starting, pacing and stopping them. A group that is not running a block waits on its pipe and takes no processor time.
Called by `step_blocks.py`; the other end is `step_worker.py`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class BenchFailed(RuntimeError):
    """A rank ended before it was told to; carries the end of its log."""


class RankGroup:
    """`world_size` processes of `module`, each told its rank through torchrun's environment variables.

    Args:
        settings: sent to every rank as its one argument, JSON.
        log: file for what the ranks print on standard error.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], world_size: int, threads: int, log: Path) -> None:
        self._log = log
        self._ranks: list[subprocess.Popen[str]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world_size)}
        with log.open("w") as stderr:
            for rank in range(world_size):
                self._ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, json.dumps(settings)],
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=stderr,
                        text=True,
                    )
                )

    def block(self, steps: int) -> dict[str, Any]:
        """Run `steps` optimizer steps; what rank 0 says of them (`seconds`, `tokens`, `cpu_s`)."""
        for rank in self._ranks:
            _pipe(rank.stdin).write(f"{steps}\n")
            _pipe(rank.stdin).flush()
        answers = [self._answer(rank) for rank in self._ranks]
        total: dict[str, Any] = answers[0]
        total["tokens"] = sum(answer["tokens"] for answer in answers)
        total["cpu_s"] = sum(answer["cpu_s"] for answer in answers)
        return total

    def _answer(self, rank: subprocess.Popen[str]) -> dict[str, Any]:
        for line in _pipe(rank.stdout):
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise BenchFailed(f"a rank ended early; the end of {self._log}:\n" + self._log.read_text()[-3000:])

    def close(self) -> None:
        """End the ranks."""
        for rank in self._ranks:
            rank.kill()
        for rank in self._ranks:
            rank.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pipe(stream: Any) -> Any:
    assert stream is not None
    return stream


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
