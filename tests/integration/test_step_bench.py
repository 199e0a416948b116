"""The step bench over families, once and small: every loop's ranks start, step and are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.bench import step_all

pytestmark = [pytest.mark.integration, pytest.mark.long]


def test_a_family_is_timed_against_both_peers(tmp_path: Path) -> None:
    [family] = step_all.choose("vit")
    answers = step_all.measure_family(replace(family, batch=2), tmp_path, stage=1, rounds=2, steps=1)
    assert {name: [block["tokens"] for block in blocks] for name, blocks in answers.items()} == {
        name: [2, 2] for name in ("tlcore", "bare", "trainer")
    }
    said = step_all.figures(answers)
    assert said["ratio_bare"] > 0 and said["ratio_hf"] > 0
