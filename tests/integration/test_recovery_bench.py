"""The recovery bench itself: kill -9 of each part of a real sweep loses no trial; an interrupted bench leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.bench.recovery.figures import KINDS

pytestmark = [pytest.mark.integration, pytest.mark.long]

ROOT = Path(__file__).parents[2]


def start(directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}
    command = [sys.executable, "-m", "jobs.bench.recovery", "--quick", "--json", "--seed", "5"]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_kill_of_each_kind_loses_no_trial_and_no_step(tmp_path: Path) -> None:
    process = start(tmp_path)
    output, said = process.communicate(timeout=1200)
    assert process.returncode == 0, output + said[-4000:]
    figures: dict[str, Any] = json.loads(output)
    assert figures["kills"] == dict.fromkeys(KINDS, 1)
    assert figures["lost_trials"] == figures["skipped_steps"] == figures["not_recovered"] == figures["left_over"] == 0
    again = [kind for kind in KINDS if figures["repeated_steps"][kind]["most"]]
    assert again, "kills after which nothing had to be done again prove little"
    assert figures["repeated_steps"]["store"]["most"] == 0


def test_an_interrupted_bench_leaves_no_process_behind(tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 600
    while not any(file.stat().st_size for file in tmp_path.glob("tlcore-recovery-*/steps.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "weed"} <= {one.name() for one in below}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    _, alive = psutil.wait_procs(below, timeout=5)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.glob("tlcore-recovery-*")) == []
