"""The live table and the plain lines, drawn from the events of a small sweep by a clock that the test moves."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from tlcore.recipe import recipe_from_dict
from tlcore.report.live import Display, LineDisplay, TableDisplay, chosen, live_view, open_display, render
from tlcore.report.rows import Estimate, TrialRow
from tlcore.report.view import SweepView
from tlcore.storage import create_run
from tlcore.storage.journal import Journal

EVENTS = [
    {
        "n": 0,
        "kind": "suggested",
        "trial": "t000",
        "point": {"train.learning_rate": 3.1e-4, "transfer.strategy": "full"},
    },
    {
        "n": 1,
        "kind": "suggested",
        "trial": "t001",
        "point": {"train.learning_rate": 2.0e-5, "transfer.strategy": "scratch"},
    },
    {
        "n": 2,
        "kind": "suggested",
        "trial": "t002",
        "point": {"train.learning_rate": 9.0e-4, "transfer.strategy": "head"},
    },
    {"n": 3, "kind": "started", "trial": "t000", "slot": 0},
    {"n": 4, "kind": "started", "trial": "t001", "slot": 1},
    {"n": 5, "kind": "result", "trial": "t001", "step": 16, "fraction": 0.25, "metrics": {"eval_accuracy": 0.5}},
    {"n": 6, "kind": "stopped", "trial": "t001", "reason": "scheduler"},
    {"n": 7, "kind": "started", "trial": "t002", "slot": 1},
    {
        "n": 8,
        "kind": "result",
        "trial": "t000",
        "step": 16,
        "fraction": 0.25,
        "metrics": {"eval_accuracy": 0.7125},
        "checkpoint_step": 16,
    },
    {
        "n": 9,
        "kind": "failed",
        "trial": "t002",
        "error": "OutOfMemory",
        "message": "rank 1\nat step 3",
        "hint": "try a smaller micro-batch",
    },
]
PROGRESS = {
    "step": 24,
    "total_steps": 63,
    "fraction": 24 / 63,
    "loss": 0.6012,
    "samples_per_s": 41.23,
    "learning_rate": 1e-4,
    "checkpoint_step": 16,
    "stall_s": 0.01,
}


class Clock:
    """Seconds, moved by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def sweep(events=EVENTS):
    view = SweepView("reviews/20261121-044500-ab12", "eval_accuracy", "max", 4, events)
    view.progress({"t000": PROGRESS})
    return view


def drawn(view, width, height=30, ahead=None):
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(render(view, ahead or Estimate(0.5, 185.0), 62.0, console))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_wide_table():
    assert drawn(sweep(), 110) == [
        "reviews/20261121-044500-ab12  2 of 4 trials ended: 1 running, 1 stopped, 1 failed",
        "",
        "trial  state    rung   step    loss  accuracy  samples/s       saved  lr      strategy",
        "t000*  running   25%  24/63  0.6012    0.7125       41.2  16 · 10 ms  3.1e-4  full",
        "t001   stopped   25%     16       -    0.5000          -           -  2e-5    scratch",
        "t002   failed      -      -       -         -          -           -  9e-4    head",
        "t002 failed: OutOfMemory: rank 1 at step 3",
        "",
        f"{'━' * 25}{' ' * 25} 50% 1 min 02 s so far, about 3 min 05 s left",
        "estimate: pace so far; open trials end where the ended ones did on average",
    ]


def test_a_save_tells_what_it_took_where_there_is_room():
    view = sweep()
    took = {"stall_s": 0.0081, "save_bytes_per_s": 45.4e6, "save_bytes_new": 90_600_000, "save_bytes_reused": 2 << 30}
    view.progress({"t000": {**took, "save_retries": 0}})
    assert "16 · 8 ms · 45.4 MB/s · 86.4 MiB new, 2 GiB reused  3.1e-4" in drawn(view, 140)[3]
    assert "16 · 8 ms · 45.4 MB/s  3.1e-4" in drawn(view, 110)[3], "without room for all, the bytes go first"
    assert drawn(view, 72) == drawn(sweep(), 72)
    view.progress({"t000": {"save_bytes_new": 0, "save_retries": 2}})
    assert "16 · 8 ms · 45.4 MB/s · 0 B new, 2 GiB reused · 2 retries  3.1e-4" in drawn(view, 140)[3]
    view.progress({"t000": {"checkpoint_step": 24}})
    assert " 24  3.1e-4" in drawn(view, 140)[3], "what a save took says nothing of the next one"


def test_narrow_table_merges_the_sampled_values_and_still_fits():
    lines = drawn(sweep(), 72)
    assert lines[2:6] == [
        "trial state   rung  step   loss accuracy samples/s saved lr strategy",
        "t000* running  25% 24/63 0.6012   0.7125      41.2    16 3.1e-4 full",
        "t001  stopped  25%    16      -   0.5000         -     - 2e-5 scratch",
        "t002  failed     -     -      -        -         -     - 9e-4 head",
    ]
    assert max(map(len, lines)) <= 72


def test_a_hundred_trials_fit_the_terminal_and_the_rest_is_counted():
    view = sweep()
    view.expected_trials = 120
    for number in range(3, 103):
        trial = f"t{number:03d}"
        view.apply(
            {"kind": "suggested", "trial": trial, "point": {"train.learning_rate": 1e-4, "transfer.strategy": "full"}}
        )
        view.apply(
            {
                "kind": "result",
                "trial": trial,
                "step": 16,
                "fraction": 0.25,
                "metrics": {"eval_accuracy": 0.51 + number / 1000},
            }
        )
        view.apply({"kind": "stopped", "trial": trial, "reason": "scheduler"})
    lines = drawn(view, 100, height=24)
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines[3:7]] == ["t000*", "t102", "t101", "t100"]
    assert "and 89 more: 88 stopped, 1 failed" in lines


def test_a_frame_compares_no_trial_with_another(monkeypatch):
    """They are counted four times a second while the driver waits: every trial against every row shown was too much."""
    view = sweep()
    for number in range(3, 60):
        view.apply({"kind": "suggested", "trial": f"t{number:03d}", "point": {}})

    def never(row, other):
        raise AssertionError(f"{row.trial} was compared with {other.trial}")

    monkeypatch.setattr(TrialRow, "__eq__", never)
    assert "and 46 more: 46 waiting" in drawn(view, 100, height=24)


def test_chosen_keeps_trial_order_while_all_fit_and_puts_waiting_last_otherwise():
    rows = [
        TrialRow("t0", "waiting"),
        TrialRow("t1", "stopped", metric=0.1),
        TrialRow("t2", "completed", metric=0.9),
        TrialRow("t3", "running"),
    ]
    assert [row.trial for row in chosen(rows, "max", 4)] == ["t0", "t1", "t2", "t3"]
    assert [row.trial for row in chosen(rows, "max", 3)] == ["t3", "t2", "t1"]


def test_bar_says_when_it_is_too_early_and_when_all_ended():
    early = drawn(sweep(), 110, ahead=Estimate(0.01, None))[-2]
    assert early.endswith("1% 1 min 02 s so far")
    done = drawn(sweep(), 110, ahead=Estimate(1.0, 0.0))
    assert any(line.endswith("100% 1 min 02 s so far, all trials ended") for line in done)


def lines_of(events, snapshots=()):
    clock = Clock()
    console = Console(file=io.StringIO(), width=40)
    display = LineDisplay(
        SweepView("reviews/r", "eval_accuracy", "max", 4),
        console,
        clock,
        lambda: datetime(2026, 11, 21, 4, 45, int(clock.now) % 60),
    )
    for event in events:
        display.on_event(event)
    for at_s, snapshot in snapshots:
        clock.now = at_s
        display.on_progress(snapshot)
    display.close()
    return console.file.getvalue()


def test_lines_say_one_thing_each_without_control_characters():
    text = lines_of(EVENTS)
    assert text.splitlines() == [
        "04:45:00 t000 started train.learning_rate=3.1e-4 transfer.strategy=full",
        "04:45:00 t001 started train.learning_rate=2e-5 transfer.strategy=scratch",
        "04:45:00 t001 rung=25% eval_accuracy=0.5000 step=16",
        "04:45:00 t001 stopped by=scheduler rung=25% eval_accuracy=0.5000",
        "04:45:00 t002 started train.learning_rate=9e-4 transfer.strategy=head",
        "04:45:00 t000 rung=25% eval_accuracy=0.7125 step=16",
        "04:45:00 t000 checkpoint committed step=16",
        "04:45:00 t002 failed OutOfMemory: rank 1 at step 3; try a smaller micro-batch",
    ]
    assert "\x1b" not in text


def test_what_another_save_cost_is_not_told_of_this_one():
    """A trial goes on from its checkpoint in another slot, and ends before it has told of its last save."""
    unknown, sent = {**PROGRESS, "stall_s": None}, {"save_bytes_new": 3 << 19, "save_bytes_reused": 0}
    text = lines_of(
        EVENTS[:4],
        [
            (1.0, {"t000": PROGRESS}),
            (2.0, {"t000": {**unknown, "checkpoint_step": 20}}),
            (3.0, {"t000": {**unknown, "checkpoint_step": 20, "stall_s": 0.02}}),
            (4.0, {"t000": {**PROGRESS, "checkpoint_step": 24, "stall_s": 0.03, **sent, "save_retries": 2}}),
            (5.0, {"t000": {**PROGRESS, "checkpoint_step": 28, **sent, "save_retries": 0}}),
            (6.0, {"t000": {**unknown, "checkpoint_step": 32}}),
        ],
    )
    assert [line.partition("committed ")[2] for line in text.splitlines()[1:]] == [
        "step=16 stall=10ms",
        "step=20",
        "step=24 stall=30ms new=1.5MiB reused=0B retries=2",
        "step=28 stall=10ms new=1.5MiB reused=0B",
        "step=32",
    ]


def test_a_checkpoint_is_told_once_and_silence_is_broken_once_a_minute():
    later = {**PROGRESS, "checkpoint_step": 20}
    text = lines_of(
        EVENTS[:4],
        [
            (1.0, {"t000": PROGRESS}),
            (2.0, {"t000": PROGRESS}),
            (3.0, {"t000": later}),
            (64.0, {"t000": {**later, "fraction": 30 / 63 + 0.25}}),
        ],
    )
    assert text.splitlines()[1:] == [
        "04:45:01 t000 checkpoint committed step=16 stall=10ms",
        "04:45:03 t000 checkpoint committed step=20 stall=10ms",
        "04:45:04 sweep 18% (1 running, 2 waiting) left~9 min 57 s",
    ]


def test_display_is_lines_where_there_is_no_terminal_and_names_the_logs_first():
    console = Console(file=io.StringIO(), width=20)
    display = open_display(sweep(), console, "runs/[reviews]/logs/ (driver.log, ray/)")
    assert isinstance(display, LineDisplay)
    assert console.file.getvalue() == "logs: runs/[reviews]/logs/ (driver.log, ray/)\n"


def test_table_display_goes_when_all_went_well_and_stays_when_not():
    def shown(error=None):
        console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, color_system=None)
        try:
            with open_display(sweep(EVENTS[:-1]), console) as display:
                assert isinstance(display, TableDisplay)
                display.on_event(EVENTS[-1])
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert "t002 failed: OutOfMemory: rank 1 at step 3" in console.file.getvalue()
        return console.file.getvalue()

    erase_line = "\x1b[2K"
    assert shown().endswith(erase_line)
    assert not shown(KeyboardInterrupt()).endswith(erase_line)


def test_a_display_may_be_closed_twice():
    display = open_display(sweep(), Console(file=io.StringIO(), force_terminal=True))
    display.close()
    display.close()


def test_the_pace_counts_from_the_first_step_not_from_the_start_of_the_workers():
    clock = Clock()
    display = LineDisplay(SweepView("r", "eval_accuracy", "max", 1, EVENTS[:1]), Console(file=io.StringIO()), clock)
    clock.now = 1000.0
    display.on_progress({"t000": {"step": 1, "fraction": 0.1}})
    clock.now = 1010.0
    display.on_progress({"t000": {"step": 6, "fraction": 0.6}})
    assert display._estimate(display.view.rows()).left_s == pytest.approx(0.4 * 10 / 0.5)


def test_a_trial_that_has_not_stepped_yet_is_starting():
    assert drawn(SweepView("r", "eval_accuracy", "max", 1, [EVENTS[0], EVENTS[3]]), 100)[3].split()[:2] == [
        "t000",
        "starting",
    ]


def test_late_progress_does_not_wake_a_trial_that_ended():
    view = sweep()
    view.progress({"t001": PROGRESS, "t009": PROGRESS})
    assert view.row("t001").step == 16
    assert view.row("t009") is None


@pytest.mark.parametrize(
    "event", [{"kind": "final"}, {"kind": "unheard of", "trial": "t7"}, {"kind": "result", "trial": "t7"}]
)
def test_entries_of_other_kinds_are_passed_over(event):
    view = sweep()
    before = view.rows()
    view.apply(event)
    assert view.rows() == before


def test_a_resumed_sweep_waits_again_says_so_and_starts_its_clock_anew():
    resumed = [*EVENTS, {"kind": "resumed", "trial": None}]
    assert [row.state for row in sweep(resumed).rows()] == ["waiting", "stopped", "failed"]
    assert lines_of(resumed).splitlines()[-1] == "04:45:00 sweep resumed (1 waiting, 1 stopped, 1 failed)"
    clock = Clock()
    display = LineDisplay(SweepView("r", "eval_accuracy", "max", 4, EVENTS), Console(file=io.StringIO()), clock)
    clock.now = 30.0
    display.on_event(resumed[-1])
    clock.now = 42.0
    assert display.elapsed_s() == 12.0


def test_a_lost_worker_is_told_with_its_rank():
    lost = {"kind": "lost", "trial": "t000", "rank": 1, "cause": "killed by signal 9", "step": 16}
    assert lines_of([*EVENTS, lost]).splitlines()[-1] == "04:45:00 t000 lost rank=1 step=16 cause: killed by signal 9"


def test_a_takeover_is_told_with_the_other_trial_and_what_changed():
    taken = {"parent": "t001", "step": 16, "fraction": 0.25, "metrics": {"eval_accuracy": 0.5}}
    changed = {"train.learning_rate": [2.0e-5, 2.4e-5]}
    event = {
        "kind": "took_over",
        "trial": "t000",
        **taken,
        "point": {"train.learning_rate": 2.4e-5},
        "changed": changed,
    }
    said = "04:45:00 t000 took over t001 step=16 train.learning_rate=2e-5->2.4e-5"
    assert lines_of([*EVENTS, event]).splitlines()[-1] == said


def test_a_resume_that_asks_for_more_trials_is_counted_by_them_from_the_beginning(tmp_path):
    facts = {"name": "r", "task": "text-classification", "model": {"source": "m"}, "data": {"train": "d"}}
    space = {"train.learning_rate": {"uniform": [0.1, 1]}}
    recipe = recipe_from_dict({**facts, "storage": str(tmp_path), "search": {"space": space, "trials": 12}})
    now = datetime(2026, 11, 21, tzinfo=UTC)
    journal = Journal(create_run(recipe.storage, "r", {}, now, "one").open(), lambda: now)
    journal.append("suggested", "t000", point={}, of=8)
    view = live_view(recipe, resume=True)
    assert view.expected_trials == 12
    view.apply(journal.append("resumed", of=12))
    assert view.expected_trials == 12
    assert live_view(recipe, resume=False, trials=1).expected_trials == 1


def test_what_goes_wrong_as_a_trial_ends_is_told_of_that_trial():
    warned = {"kind": "warned", "trial": "t000", "error": "StorageFull", "message": "no space left", "rank": 0}
    assert (
        lines_of([*EVENTS, warned])
        .splitlines()[-1]
        .endswith("t000 did not close as it should: StorageFull: no space left")
    )


def test_a_fallback_is_told_with_both_steps_and_the_reason():
    passed_over = {"instead": 300, "step": 200, "reason": "cas/ab/ab12: the chunk is missing"}
    assert lines_of([*EVENTS, {"kind": "fell_back", "trial": "t000", **passed_over}]).splitlines()[-1] == (
        "04:45:00 t000 restored at step=200: the checkpoint of step 300 cannot be used: cas/ab/ab12: the chunk is missing"
    )


ADAPTED = {
    "kind": "adapted",
    "trial": "t000",
    "changed": {"train.micro_batch_size": [8, 4]},
    "reason": "rank 1 ran out of device memory",
    "rank": 1,
    "step": 16,
}


def test_an_adaptation_is_told_with_both_values_its_step_and_its_reason():
    assert lines_of([*EVENTS, ADAPTED]).splitlines()[-1] == (
        "04:45:00 t000 adapted train.micro_batch_size=8->4 step=16 reason: rank 1 ran out of device memory"
    )


def test_the_table_says_what_a_running_trial_was_adapted_to():
    assert any(
        line.startswith("t000 ran out of memory; it goes with train.micro_batch_size 4")
        for line in drawn(sweep([*EVENTS, ADAPTED]), 100)
    )


def test_a_node_that_is_avoided_is_told_with_the_trials_that_lost_workers_there():
    avoided = {"kind": "avoided", "trial": None, "node": "ab12", "losses": 3, "trials": ["t000", "t002"]}
    assert lines_of([*EVENTS, avoided]).splitlines()[-1] == (
        "04:45:00 sweep avoids node=ab12 after 3 losses of t000, t002"
    )


STOPPING = [
    {"n": 0, "kind": "suggested", "trial": "t000", "point": {}, "time": "2026-11-26T10:00:00+00:00"},
    {"n": 1, "kind": "started", "trial": "t000", "workers": 2, "price": 3.0, "time": "2026-11-26T10:00:00+00:00"},
    {"n": 2, "kind": "stopping", "trial": None, "reason": "interrupt", "time": "2026-11-26T12:00:00+00:00"},
    {"n": 3, "kind": "left", "trial": "t000", "step": 7, "time": "2026-11-26T12:00:00+00:00"},
    {"n": 4, "kind": "interrupted", "trial": None, "time": "2026-11-26T12:00:00+00:00"},
]


def test_a_stop_is_answered_at_once_and_told_trial_by_trial():
    console = Console(file=io.StringIO(), width=100)
    lines = LineDisplay(SweepView("r", "eval_accuracy", "max", 1), console, now=lambda: datetime(2026, 11, 26, 12))
    for event in STOPPING:
        lines.on_event(event)
    assert console.file.getvalue().splitlines() == [
        "12:00:00 t000 started workers=2",
        "12:00:00 stopping (interrupt): every running trial commits its step; again to stop at once",
        "12:00:00 t000 waits: the sweep is stopping, checkpoint committed step=7",
    ]
    assert "stopping (interrupt)" in drawn(SweepView("r", "eval_accuracy", "max", 1, STOPPING[:3]), 110)[0]
    assert "stopping" not in drawn(SweepView("r", "eval_accuracy", "max", 1, STOPPING), 110)[0]


def test_what_was_used_and_is_expected_stands_below_the_bar():
    display = TableDisplay(
        SweepView("r", "eval_accuracy", "max", 1, STOPPING[:2]), Console(file=io.StringIO()), Clock()
    )
    display.close()
    display.utc = lambda: datetime(2026, 11, 26, 11, tzinfo=UTC)
    assert display.spending(Estimate(0.25, 600.0)) == "worker-hours 2 of about 8, cost 6.00 of about 24.00"
    console = Console(file=io.StringIO(), width=110, height=30, color_system=None)
    console.print(render(display.view, Estimate(0.25, 600.0), 60.0, console, "worker-hours 2 of about 8"))
    assert console.file.getvalue().splitlines()[-1] == "worker-hours 2 of about 8"


def test_rows_that_are_kept_say_what_fresh_ones_would():
    """Rows are made anew only for trials that something happened to: at each point of a sweep they equal those of a fresh view."""
    events = [*EVENTS, {"kind": "resumed", "trial": None}, {"kind": "started", "trial": "t000", "slot": 1}]
    view = SweepView("r", "eval_accuracy", "max", 3)
    for number, event in enumerate(events):
        view.apply(event)
        assert view.rows() == SweepView("r", "eval_accuracy", "max", 3, events[: number + 1]).rows()
    kept = view.rows()
    view.progress({"t000": PROGRESS})
    assert [row.step for row in view.rows()] == [PROGRESS["step"], *(row.step for row in kept[1:])]
    assert all(row is old for row, old in zip(view.rows()[1:], kept[1:], strict=True))


def test_the_pace_is_noticed_without_counting_every_trial_at_every_entry(monkeypatch):
    counted = []
    rows = SweepView.rows
    monkeypatch.setattr(SweepView, "rows", lambda view: (counted.append(1), rows(view))[1])
    display = Display(SweepView("r", "eval_accuracy", "max", 1), Console(file=io.StringIO()))
    for event in EVENTS[:6]:
        display.on_event(event)
    counted.clear()
    for number in range(50):
        display.on_event({**EVENTS[5], "fraction": 0.25 + number / 100})
    assert counted == []


def test_the_test_of_the_best_trial_is_shown_and_its_figures():
    testing = {"kind": "testing", "trial": "t001", "step": 16, "workers": 2}
    final = {"kind": "final", "trial": "t001", "metrics": {"test_accuracy": 0.75, "test_loss": 0.5}}
    assert lines_of([*EVENTS, testing, final]).splitlines()[-2:] == [
        "04:45:00 t001 testing: its checkpoint of step=16 on data.test",
        "04:45:00 t001 tested test_accuracy=0.7500 test_loss=0.5000",
    ]
    assert drawn(sweep([*EVENTS, testing]), 110)[0].endswith("  t001's checkpoint of step 16 on data.test")
    for after in (final, {"kind": "interrupted", "trial": None}, {"kind": "finished", "trial": None}):
        assert "data.test" not in drawn(sweep([*EVENTS, testing, after]), 110)[0]


def test_an_estimate_of_the_first_steps_is_marked_as_early():
    console = Console(file=io.StringIO(), width=110, height=30, color_system=None)
    view = SweepView("r", "eval_accuracy", "max", 1, STOPPING[:1])
    for early, words in (
        (True, "early estimate: pace of the first steps; open"),
        (False, "estimate: pace so far; open"),
    ):
        console.print(render(view, Estimate(0.01, 600.0, early, 2), 60.0, console))
        assert any(line.startswith(words) for line in console.file.getvalue().splitlines())
    clock = Clock()
    lines = LineDisplay(view, Console(file=io.StringIO(), width=100), clock, now=lambda: datetime(2026, 11, 26, 12))
    lines.on_progress({"t000": {"step": 1, "total_steps": 1000, "fraction": 0.001}})
    clock.now = 100.0
    lines.on_progress({"t000": {"step": 51, "total_steps": 1000, "fraction": 0.051}})
    assert "left~31 min 38 s (early)" in lines.console.file.getvalue()
