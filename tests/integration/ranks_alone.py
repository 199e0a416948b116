"""Run by rank_server.py for test_sweep_promotion.py: a trial from its beginning to its end without a sweep."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tlcore.recipe import recipe_from_dict, report_fractions
from tlcore.storage import create_run
from tlcore.train.session import TrialSession


def run(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Every report of the trial."""
    recipe = recipe_from_dict(case["recipe"])
    url = create_run(recipe.storage, "alone", {}, datetime.now(UTC), "alone").url
    session = TrialSession(recipe, url, "t000", resume_step=0)
    reports = [session.advance(fraction, commit=True).to_dict() for fraction in report_fractions(recipe)]
    session.close()
    return reports
