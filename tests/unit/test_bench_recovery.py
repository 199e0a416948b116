"""The recovery bench's arithmetic: which steps count as repeated, when a kill is over, what is lost; and its plan."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.recovery.__main__ import FAULTS
from jobs.bench.recovery.campaign import plan
from jobs.bench.recovery.figures import KINDS, Kill, behind, ends, lost, recovered_s, repeated, skipped, summarize
from jobs.bench.recovery.steps import StepDone, StepLog

pytestmark = pytest.mark.unit


def life(
    trial: str, name: str, steps: range, began_s: float, rank: int = 0, committed: int | None = None
) -> list[StepDone]:
    """One step a second from `began_s` on."""
    return [StepDone(trial, step, rank, name, 100 + rank, committed, began_s + n) for n, step in enumerate(steps)]


def entry(kind: str, trial: str | None, at_s: float = 0.0, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "trial": trial, "time": datetime.fromtimestamp(at_s, UTC).isoformat(), **facts}


WORKER = Kill("worker", 15.5, ("t000",), 15.5)


def test_steps_done_again_are_counted_for_the_trial_that_did_them() -> None:
    lines = [
        *life("t000", "a", range(1, 16), 1.0),
        *life("t000", "b", range(11, 21), 30.0),
        *life("t001", "c", range(1, 21), 1.0),
    ]
    assert repeated([WORKER], lines) == [{"t000": 5}]


def test_where_ranks_differ_the_one_with_the_most_counts() -> None:
    lines = [
        *life("t000", "a", range(1, 16), 1.0, rank=0),
        *life("t000", "b", range(1, 15), 1.0, rank=1),  # killed before it could write step 15 down
        *life("t000", "c", range(11, 21), 30.0, rank=0),
        *life("t000", "d", range(11, 21), 30.0, rank=1),
    ]
    assert repeated([WORKER], lines) == [{"t000": 5}]


def test_what_is_done_again_a_second_time_counts_again_for_the_later_kill() -> None:
    again = Kill("slot", 35.5, ("t000",), 35.5)
    lines = [
        *life("t000", "a", range(1, 16), 1.0),
        *life("t000", "b", range(11, 15), 30.0),
        *life("t000", "c", range(11, 21), 50.0),
    ]
    assert repeated([WORKER, again], lines) == [{"t000": 4}, {"t000": 5}]


def test_steps_done_again_after_a_later_kill_are_put_down_to_the_one_that_ended_the_life_before() -> None:
    store = Kill("store", 32.5, ("t000",), 33.0)
    lines = [*life("t000", "a", range(1, 16), 1.0), *life("t000", "b", range(9, 21), 30.0)]
    assert repeated([WORKER, store], lines) == [{"t000": 7}, {"t000": 0}]


def test_steps_repeated_by_a_trial_that_was_not_hit_show() -> None:
    lines = [*life("t001", "a", range(1, 16), 1.0), *life("t001", "b", range(15, 17), 30.0)]
    assert repeated([WORKER], lines) == [{"t000": 0, "t001": 1}]


def test_steps_repeated_before_any_kill_are_a_fault_of_the_bench() -> None:
    lines = [*life("t000", "a", range(1, 5), 1.0), *life("t000", "b", range(4, 6), 8.0)]
    with pytest.raises(ValueError, match="trial t000 did step 4 again before anything was killed"):
        repeated([WORKER], lines)


def test_a_kill_is_over_with_the_first_step_of_a_life_that_began_after_it() -> None:
    before = life("t000", "a", range(1, 16), 1.0)
    dying = life("t000", "a", range(16, 17), 16.0)
    assert recovered_s(WORKER, before + dying, {}) is None
    assert recovered_s(WORKER, [*before, *dying, *life("t000", "b", range(11, 13), 22.0)], {}) == 6.5


def test_a_kill_is_over_for_a_trial_that_comes_to_its_end() -> None:
    driver = Kill("driver", 15.5, ("t000", "t001"), 16.0)
    lines = [*life("t000", "a", range(1, 16), 1.0), *life("t001", "b", range(1, 16), 1.0)]
    resumed = life("t001", "c", range(11, 12), 25.5)
    assert recovered_s(driver, lines + resumed, {"t000": 40.5}) == 25.0
    assert recovered_s(driver, lines + resumed, {"t000": 3.0}) is None, "an end before the kill is no recovery"


def test_a_killed_store_is_over_with_the_next_checkpoint_and_not_with_the_next_step() -> None:
    store = Kill("store", 15.5, ("t000",), 18.0)
    lines = life("t000", "a", range(1, 16), 1.0, committed=10)
    going_on = life("t000", "a", range(16, 20), 16.0, committed=10)
    committed = life("t000", "a", range(20, 21), 25.5, committed=20)
    assert recovered_s(store, lines + going_on, {}) is None
    assert recovered_s(store, lines + going_on + committed, {}) == 10.0


def test_a_step_that_was_passed_over_shows() -> None:
    whole = [*life("t000", "a", range(1, 8), 1.0), *life("t000", "b", range(5, 11), 30.0)]
    assert skipped(whole) == []
    assert skipped([*whole, *life("t001", "c", range(3, 5), 1.0)]) == ["trial t001 did step 4 and never 1, 2"]


def test_a_trial_is_lost_unless_it_was_completed_or_stopped() -> None:
    journal = [entry("suggested", f"t00{n}") for n in range(4)]
    journal += [entry("completed", "t000"), entry("stopped", "t001"), entry("failed", "t002", message="why")]
    assert lost(journal, 4) == ["trial t002 failed: why", "trial t003 has no end"]
    assert lost([], 2) == ["2 trials were never suggested"]


def test_the_end_of_a_trial_is_read_from_the_journal() -> None:
    assert ends([entry("started", "t000", 3.0), entry("stopped", "t000", 7.5), entry("finished", None, 9.0)]) == {
        "t000": 7.5
    }


def test_the_figures_of_a_small_sweep() -> None:
    store = Kill("store", 45.5, ("t000",), 47.0)
    lines = [
        *life("t000", "a", range(1, 16), 1.0, committed=None),
        *life("t000", "b", range(3, 26), 30.0, committed=2),
        *life("t000", "b", range(26, 31), 53.0, committed=20),
    ]
    journal = [entry("suggested", "t000"), entry("lost", "t000", 16.0, loss="worker"), entry("completed", "t000", 60.0)]
    figures = summarize([WORKER, store], lines, journal, trials=1, interval=10, seed=7)
    assert (figures["lost_trials"], figures["skipped_steps"], figures["not_recovered"]) == (0, 0, 0)
    assert figures["kills"] == {"worker": 1, "slot": 0, "driver": 0, "raylet": 0, "store": 1}
    assert figures["repeated_steps"] == {
        "worker": {"median": 13, "most": 13, "trials_hit": 1, "bound": 10, "over_bound": 1},
        "store": {"median": 0, "most": 0, "trials_hit": 1, "bound": 10, "over_bound": 0},
    }
    assert figures["recovery_s"]["worker"] == {"median": 14.5, "least": 14.5, "most": 14.5}
    assert figures["recovery_s"]["store"] == {"median": 7.5, "least": 7.5, "most": 7.5}
    assert (figures["steps"], figures["losses_journalled"], figures["seed"]) == (30, {"worker": 1}, 7)


def test_a_kill_that_is_never_over_shows() -> None:
    lines = life("t000", "a", range(1, 16), 1.0)
    figures = summarize([WORKER], lines, [entry("suggested", "t000")], trials=1, interval=10, seed=0)
    assert figures["not_recovered"] == figures["lost_trials"] == 1
    assert figures["recovery_s"]["worker"]["median"] is None


def test_the_plan_follows_from_the_seed_and_ends_before_the_sweep_can() -> None:
    planned = plan(3, 2, 400)
    assert planned == plan(3, 2, 400) != plan(4, 2, 400)
    assert sorted(each.kind for each in planned) == sorted([*KINDS, *KINDS])
    steps = [each.steps for each in planned]
    assert steps == sorted(steps)
    assert 0 < steps[0] <= steps[-1] < 400


def test_the_log_takes_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(path)
    log.refresh()
    assert log.lines == []
    first, second = (json.dumps(line.__dict__) for line in life("t000", "a", range(1, 3), 1.0))
    path.write_text(f"{first}\n{second[:20]}")
    log.refresh()
    assert [line.step for line in log.lines] == [1]
    path.write_text(f"{first}\n{second}\n")
    log.refresh()
    log.refresh()
    assert [line.step for line in log.lines] == [1, 2]
    assert log.distinct == {("t000", 1), ("t000", 2)}


def test_more_than_an_interval_again_is_a_fault_only_behind_a_committed_checkpoint() -> None:
    """Interval 10. Killed at step 15 while the checkpoint of step 10 was still on its way: 15 again. With it there: 5."""
    uncommitted = [*life("t000", "a", range(1, 16), 1.0, committed=None), *life("t000", "b", range(1, 21), 30.0)]
    assert behind(uncommitted) == []
    committed = [*life("t000", "a", range(1, 16), 1.0, committed=10), *life("t000", "b", range(11, 21), 30.0)]
    assert behind(committed) == []
    worse = [*life("t000", "a", range(1, 16), 1.0, committed=10), *life("t000", "b", range(6, 21), 30.0)]
    assert behind(worse) == ["trial t000 went back to step 5, and its checkpoint of step 10 was committed (rank 0)"]
    journal = [entry("suggested", "t000"), entry("completed", "t000", 60.0)]
    for lines, faults in ((uncommitted, 0), (committed, 0), (worse, 1)):
        figures = summarize([WORKER], lines, journal, trials=1, interval=10, seed=0)
        assert figures["behind_commit"] == len(figures["faults"]) == faults
    assert "behind_commit" in FAULTS
