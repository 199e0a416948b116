"""Worker-hours and cost in words."""

from __future__ import annotations

import pytest

from tlcore.report.rows import Estimate
from tlcore.report.usage import ended_by_budget, expected, spending, usage_lines
from tlcore.storage.account import Usage

pytestmark = pytest.mark.unit


def test_what_is_expected_follows_from_the_share_that_is_done():
    assert expected(Usage(1, 6, 3), Estimate(0.25, 3 * 3600)) == Usage(4, 24, 12)
    assert expected(Usage(1, 6, None), Estimate(0.25, 3600)).cost is None
    assert expected(Usage(1, 6, 3), Estimate(0.1, None)) is None
    assert expected(Usage(1, 6, 3), Estimate(0.0, 1.0)) is None


@pytest.mark.parametrize(
    ("used", "ahead", "text"),
    [
        (Usage(1, 0, None), Estimate(0.5, 10), ""),
        (Usage(1, 0.5, None), Estimate(0.1, None), "worker-hours 0.5"),
        (Usage(1, 0.5, None), Estimate(0.25, 600), "worker-hours 0.5 of about 2"),
        (Usage(1, 0.5, 1.25), Estimate(0.25, 600), "worker-hours 0.5 of about 2, cost 1.25 of about 5.00"),
        (Usage(1, 0.5, 1.25), Estimate(1.0, 0.0), "worker-hours 0.5, cost 1.25"),
        (Usage(1, 0.00031, 0.0123), Estimate(0.1, None), "worker-hours 0.0003, cost 0.012"),
    ],
)
def test_the_line_of_the_live_display(used, ahead, text):
    assert spending(used, ahead) == text


def test_the_closing_line():
    assert usage_lines(Usage(1.5, 6, None)) == ["used 1 h 30 min, 6 worker-hours"]
    assert usage_lines(Usage(1.5, 6.1234, 1234.5)) == ["used 1 h 30 min, 6.12 worker-hours, cost 1,234.50"]
    assert usage_lines(Usage(1.5, 0, None)) == []


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "r.yaml", "--set", "train.epochs=2"],
        ["sweep", "r.yaml", "--set", "budget.hours=2", "--set", "train.epochs=2", "--resume"],
        ["sweep", "r.yaml", "--set=budget.hours=2", "--set", "train.epochs=2"],
    ],
)
def test_how_to_go_on_names_the_limit_once(words):
    line = ended_by_budget(words, "budget.hours", 2.0001)
    assert line.startswith("budget.hours ended it after 2; what is unfinished goes on with a higher one: ")
    assert line.endswith("sweep r.yaml --set train.epochs=2 --resume --set budget.hours=<hours>")


def test_early_on_what_is_expected_is_what_the_workers_that_run_will_use():
    """Two minutes in which they started, and a few steps: most of what was used comes but once."""
    early = Estimate(0.001, 3600, early=True, workers=4)
    assert expected(Usage(0.05, 0.2, 1.0), early) == Usage(1.05, pytest.approx(4.2), pytest.approx(21.0))
    assert expected(Usage(0.05, 0.2, None), early).cost is None
    assert expected(Usage(0.05, 0.2, None), Estimate(0.001, 3600, early=True)) is None
    assert spending(Usage(0.05, 0.2, 1.0), early) == "worker-hours 0.2 of about 4.2, cost 1.00 of about 21.00"
