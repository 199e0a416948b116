"""The turnaround bench's arithmetic: which stamps make a gap, and what is said of the gaps."""

from __future__ import annotations

from inspect import signature

import pytest

from jobs.bench import turnaround
from jobs.bench.stamps import STAMPS_FILE, Stamp, cold_start, read_stamps, stamp, turnarounds
from jobs.bench.warm_pattern import StampedSession
from tlcore.data import Order
from tlcore.recipe import plan_batch
from tlcore.train.session import TrialSession

pytestmark = pytest.mark.unit


def sweep(name, start, work, gaps, cold=10.0):
    """Stamps of a sweep asked for at `start`, whose trials take `work` seconds from first step to end."""
    stamps, now = [Stamp(name, "asked", "", start)], start + cold
    for number, gap in enumerate([*gaps, 0.0]):
        stamps.append(Stamp(name, "first_step", f"t{number}", now))
        stamps.append(Stamp(name, "end", f"t{number}", now + work))
        now += work + gap
    return stamps


def test_a_gap_runs_from_end_to_next_first_step():
    assert turnarounds(sweep("warm-0", 100.0, 5.0, [1.0, 2.5]), "warm-0") == [1.0, 2.5]


def test_a_gap_never_spans_two_sweeps():
    stamps = sweep("warm-0", 0.0, 5.0, [1.0]) + sweep("naive-1", 100.0, 5.0, [20.0])
    assert turnarounds(stamps, "warm-0") == [1.0]
    assert turnarounds(stamps, "naive-1") == [20.0]


def test_one_trial_makes_no_gap():
    assert turnarounds(sweep("warm-0", 0.0, 5.0, []), "warm-0") == []


@pytest.mark.parametrize("dropped", [1, 2, 3, 4])
def test_a_trial_without_start_or_end_is_refused(dropped):
    stamps = sweep("warm-0", 0.0, 5.0, [1.0])
    with pytest.raises(ValueError, match="warm-0: not one whole trial after another"):
        turnarounds(stamps[:dropped] + stamps[dropped + 1 :], "warm-0")


def test_overlapping_trials_are_refused():
    first, second = sweep("naive-0", 0.0, 5.0, [1.0])[1:3], sweep("naive-0", 2.0, 5.0, [])[1:]
    crossed = [first[0], Stamp("naive-0", "first_step", "t9", 12.0), first[1], second[1]]
    with pytest.raises(ValueError, match="t9 first_step"):
        turnarounds(crossed, "naive-0")


def test_interleaved_ends_are_refused():
    events = [("first_step", "t0"), ("end", "t1"), ("first_step", "t1"), ("end", "t0")]
    stamps = [Stamp("warm-0", event, trial, float(time)) for time, (event, trial) in enumerate(events)]
    with pytest.raises(ValueError, match="not one whole trial"):
        turnarounds(stamps, "warm-0")


def test_cold_start_ends_with_the_first_of_the_first_steps():
    assert cold_start(sweep("warm-0", 7.0, 5.0, [1.0, 1.0], cold=12.0), "warm-0") == 12.0


def test_stamps_come_back_in_the_order_of_time(tmp_path, monkeypatch):
    monkeypatch.setenv(STAMPS_FILE, str(tmp_path / "stamps.jsonl"))
    times = iter([3.0, 1.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    stamp("warm-0", "end", "t000")
    stamp("warm-0", "first_step", "t000")
    assert read_stamps(tmp_path / "stamps.jsonl") == [
        Stamp("warm-0", "first_step", "t000", 1.0),
        Stamp("warm-0", "end", "t000", 3.0),
    ]


def measured():
    return [
        *sweep("warm-0", 0.0, 5.0, [1.0, 3.0], cold=20.0),
        *sweep("naive-1", 100.0, 5.0, [30.0, 20.0, 25.0], cold=40.0),
        *sweep("warm-2", 300.0, 5.0, [2.0], cold=18.0),
    ]


def test_figures_are_medians_over_all_sweeps_of_a_side():
    assert turnaround.summarize(measured()) == {
        "warm_s": 2.0,
        "naive_s": 25.0,
        "speedup": 12.5,
        "samples": {"warm": 3, "naive": 3},
        "spread": {"warm": [1.0, 3.0, 2.0], "naive": [30.0, 20.0, 25.0]},
        "cold_s": {"warm": [20.0, 18.0], "naive": [40.0]},
    }


@pytest.mark.parametrize(("speedup", "verdict"), [(8.0, "met"), (7.9, "not met")])
def test_the_table_says_whether_the_target_is_met(speedup, verdict):
    text = turnaround.table({**turnaround.summarize(measured()), "speedup": speedup})
    assert f"speedup {speedup:.1f} (target 8: {verdict})" in text
    warm = next(line for line in text.splitlines() if line.startswith("tlcore"))
    assert warm.split()[-9:] == ["2.00", "s", "1.00", "s", "3.00", "s", "3", "19.0", "s"]


def test_both_sides_take_the_same_steps(tmp_path):
    recipe = turnaround.recipe_of("warm-0", tmp_path / "samples.csv", tmp_path)
    turnaround.write_samples(tmp_path / "samples.csv")
    rows = len((tmp_path / "samples.csv").read_text().splitlines()) - 1
    trained = round(rows * (1 - recipe.data.validation))
    order = Order(trained, recipe.train.global_batch_size, 0, None)
    batch = plan_batch(recipe, recipe.resources.workers)
    assert (trained / recipe.train.global_batch_size, order.steps_per_epoch) == (turnaround.STEPS, turnaround.STEPS)
    assert batch.accumulation_steps == 1


def test_the_stamped_session_is_called_as_the_one_that_it_stands_for():
    for method in ("__init__", "advance"):
        stamped, plain = (getattr(each, method) for each in (StampedSession, TrialSession))
        assert list(signature(stamped).parameters) == list(signature(plain).parameters)
