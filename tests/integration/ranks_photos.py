"""What each rank does in test_real_mobilenet.py: one training on photos, from a prepared source to its last report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch.distributed as dist

from tlcore.recipe import recipe_from_dict
from tlcore.storage import create_run
from tlcore.train.group import agree
from tlcore.train.session import TrialSession


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The report at the end, and what the model then scores on the photos held out."""
    recipe = recipe_from_dict(case["recipe"])
    url = agree(create_run(recipe.storage, "photos", {}, datetime.now(UTC), "one").url if dist.get_rank() == 0 else "")
    session = TrialSession(recipe, url, "t000", resume_step=0)
    report = session.advance(1.0).to_dict()
    tested = session.test(session.step)
    session.close()
    return report | {"tested": tested}
