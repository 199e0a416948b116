"""kill -9 of the head's own Ray processes, then of everything at once: the next driver, on another Ray, knows every rung."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sweep_bench import read_trace

from tlcore.storage import list_runs
from tlcore.storage.journal import read_journal

pytestmark = [pytest.mark.integration, pytest.mark.long]
HERE = Path(__file__).parent


def drive(directory, what):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    words = [sys.executable, str(HERE / "head_driver.py"), str(directory), what]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def rungs(directory, life):
    return json.loads((directory / f"rungs-{life}.json").read_text())


def test_the_rungs_are_the_same_before_and_after_the_head_and_then_everything_was_killed(tmp_path):
    first = drive(tmp_path, "head")
    assert first.returncode not in (0, -signal.SIGKILL), "it was not killed, and cannot have ended well"
    second = drive(tmp_path, "everything")
    assert second.returncode == -signal.SIGKILL, second.stderr[-3000:]
    third = drive(tmp_path, "nothing")
    assert third.returncode == 0, third.stderr[-3000:]
    assert json.loads(third.stdout) == {"complete": True}

    assert any(known for _, known in rungs(tmp_path, 0)[0]), "an empty rung proves nothing"
    assert rungs(tmp_path, 0) == rungs(tmp_path, 1) == rungs(tmp_path, 2)

    (run,) = list_runs(str(tmp_path / "store"))
    entries = read_journal(run.open())
    suggested = [entry["trial"] for entry in entries if entry["kind"] == "suggested"]
    assert suggested == ["t000", "t001", "t002", "t003", "t004"]
    reported = [(entry["trial"], entry["fraction"]) for entry in entries if entry["kind"] == "result"]
    assert len(reported) == len(set(reported)), "a rung was told twice"
    assert [entry["kind"] for entry in entries].count("resumed") == 2
    lives = [line["trial"] for line in read_trace(tmp_path) if (line["event"], line["rank"]) == ("start", 0)]
    assert [lives.count(trial) for trial in ("t000", "t001", "t002")] == [1, 1, 1], "what had ended stays"
    assert {line["pid"] for line in read_trace(tmp_path) if psutil.pid_exists(line["pid"])} == set()
