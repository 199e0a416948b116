"""kill -9 of ranks, of whole DeepSpeed groups and of the store, by the kill bench itself: nothing torn, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.kill.__main__ import read_log

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def command(log: Path, kills: int, groups: int, stores: int) -> list[str]:
    words = [
        "--kills",
        kills,
        "--groups",
        groups,
        "--stores",
        stores,
        "--seed",
        7,
        "--log",
        log,
        "--scratch",
        log.parent,
    ]
    return [sys.executable, "-m", "jobs.bench.kill", "--json", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def killed(directory: Path, kills: int, groups: int, stores: int) -> dict[str, Any]:
    log = directory / "kill.jsonl"
    done = subprocess.run(
        command(log, kills, groups, stores), env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=1500
    )
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    faults = [fault for record in found for name in ("torn", "lost", "errors") for fault in record[name]]
    assert done.returncode == 0, "\n".join([*faults, done.stderr[-3000:]])
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_43_kills_tear_and_lose_nothing(tmp_path: Path) -> None:
    figures = killed(tmp_path, 43, 2, 1)
    assert (figures["torn"], figures["lost"], figures["errors"]) == (0, 0, 0)
    assert figures["lanes"] == {"groups": 2, "saves": 40, "stores": 1}
    assert figures["commits_acknowledged"] > 40, "kills between commits that nobody acknowledged prove little"
    assert figures["checkpoints_proved"] > 100


@pytest.mark.long
def test_300_kills_tear_and_lose_nothing(tmp_path: Path) -> None:
    figures = killed(tmp_path, 300, 20, 5)
    assert (figures["torn"], figures["lost"], figures["errors"]) == (0, 0, 0)
    assert figures["steps_repeated_alike"] > 0
    assert {"put", "index", "commit", "snapshot", "claim", "delete"} <= set(figures["stages"])


def test_a_run_stopped_by_ctrl_c_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = tmp_path / "kill.jsonl"
    process = subprocess.Popen(command(log, 5, 0, 0), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stopped = json.loads(process.communicate(timeout=1200)[0])
    first = log.read_text().splitlines()
    assert 2 <= stopped["kills"] == len(first) < 5
    figures = killed(tmp_path, 5, 0, 0)
    assert figures["kills"] == 5
    assert log.read_text().splitlines()[: len(first)] == first
    with pytest.raises(SystemExit, match="--seed 7"):
        read_log(log, 8, False)
