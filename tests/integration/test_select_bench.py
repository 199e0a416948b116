"""`tlcore select` ranks sources as fine-tuning does: six candidates on movie snippets, six on photos, three seeds each.

SmolLM2, half of the whole time by itself, is left to the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.select.__main__ import TARGET_P

pytestmark = [pytest.mark.integration, pytest.mark.long]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("target", "left_out", "best"), [("snippets", ["smollm2"], "minilm"), ("photos", [], "lite0")])
def test_the_order_is_that_of_the_results(target: str, left_out: list[str], best: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "jobs.bench.select", "--json", "--target", target]
    command += ["--without", *left_out] if left_out else []
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["p_order"] < TARGET_P
    accuracy = {row["name"]: row["test_accuracy"] for row in figures["candidates"]}
    assert accuracy[best] > accuracy["random"], "where transfer gains nothing, an order says nothing"
