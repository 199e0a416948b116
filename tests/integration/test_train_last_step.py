"""A trial that was killed between its last save and the report of it: restored at its last step, it still reports.

One gloo rank in this process, a real DeepSpeed engine, a directory as the store.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.small_model import make_small_bert
from tlcore.engine.process import prepare_process
from tlcore.recipe import recipe_from_dict
from tlcore.storage import create_run

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def test_a_trial_restored_at_its_last_step_reports_the_same(tmp_path: Path) -> None:
    prepare_process()
    from tlcore.train.group import process_group
    from tlcore.train.session import TrialSession

    recipe = recipe_from_dict(
        {
            "name": "last-step",
            "task": "text-classification",
            "model": {"source": str(make_small_bert(tmp_path / "model"))},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"global_batch_size": 40},
            "storage": f"file://{tmp_path}/store",
        }
    )
    run = create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "0")
    reports = []
    with process_group():
        for resume_step in (0, None):
            session = TrialSession(recipe, run.url, "t000", resume_step=resume_step)
            reports.append(session.advance(1.0))
            session.close()
    first, again = reports
    assert first.step == again.step == again.checkpoint_step
    assert first.loss == again.loss
    assert first.metrics == again.metrics
    json.dumps(again.to_dict(), allow_nan=False)
