"""Order of trials, the best of them, and the time left."""

from __future__ import annotations

import math

import pytest

from tlcore.report.rows import TrialRow, best_of, estimate, ranked


def row(trial, state="completed", metric=None, rung=1.0, fraction=1.0):
    return TrialRow(trial, state, metric=metric, rung=rung, fraction=fraction)


def test_ranked_puts_the_best_first_and_the_unmeasured_last():
    rows = [row("t0", metric=0.5), row("t1"), row("t2", metric=0.7), row("t3", metric=math.nan), row("t4", metric=0.6)]
    assert [each.trial for each in ranked(rows, "max")] == ["t2", "t4", "t0", "t1", "t3"]
    assert [each.trial for each in ranked(rows, "min")] == ["t0", "t4", "t2", "t1", "t3"]


def test_a_tie_goes_to_the_deeper_rung_then_to_the_earlier_trial():
    rows = [row("t0", metric=0.5, rung=0.25), row("t2", metric=0.5), row("t1", metric=0.5)]
    assert [each.trial for each in ranked(rows, "max")] == ["t1", "t2", "t0"]


def test_no_metric_no_best():
    assert best_of([row("t0", "failed"), row("t1", metric=math.nan)], "max") is None
    assert best_of([], "min") is None


def test_estimate_without_an_ended_trial_expects_whole_trials():
    rows = [row("t0", "running", fraction=0.5)]
    found = estimate(rows, expected_trials=2, elapsed_s=10.0)
    assert found.share == pytest.approx(0.25)
    assert found.left_s == pytest.approx(30.0)


def test_estimate_expects_open_trials_to_stop_where_ended_ones_did():
    rows = [row("t0", fraction=1.0), row("t1", "stopped", fraction=0.25), row("t2", "running", fraction=0.5)]
    found = estimate(rows, expected_trials=4, elapsed_s=70.0)
    typical = 0.625
    ahead = (typical - 0.5) + typical
    assert found.share == pytest.approx(1.75 / (1.75 + ahead))
    assert found.left_s == pytest.approx(ahead * 70.0 / 1.75)


def test_estimate_counts_only_what_this_run_trained():
    rows = [row("t0", fraction=1.0), row("t1", "running", fraction=0.5)]
    assert estimate(rows, 2, elapsed_s=10.0, share_before=1.0).left_s == pytest.approx(0.5 * 10.0 / 0.5)


def test_estimate_says_nothing_too_early_and_all_when_done():
    assert estimate([row("t0", "running", fraction=0.2)], 1, elapsed_s=9.0).left_s is None, (
        "nobody knows how many steps that is"
    )
    done = estimate([row("t0", fraction=1.0)], 1, elapsed_s=9.0)
    assert (done.share, done.left_s) == (1.0, 0.0)


def stepping(step, total, elapsed_s=12.0, **more):
    """One trial of two that runs with four workers."""
    running = TrialRow("t0", "running", fraction=step / total, step=step, total_steps=total, workers=4, **more)
    return estimate([running], 2, elapsed_s)


def test_a_few_dozen_steps_give_an_early_estimate():
    assert stepping(23, 1000).left_s is None
    early = stepping(24, 1000)
    assert early.left_s == pytest.approx((2 * 1000 - 24) * 12.0 / 24)
    assert (early.early, early.workers) == (True, 4)
    later = stepping(250, 1000)
    assert later.left_s == pytest.approx((2 * 1000 - 250) * 12.0 / 250)
    assert (later.early, later.workers) == (False, 0)


def test_a_quarter_of_a_short_trial_is_enough_however_few_steps_it_is():
    assert stepping(4, 16).early is False
    assert stepping(4, 16).left_s is not None
    assert stepping(3, 16).left_s is None
