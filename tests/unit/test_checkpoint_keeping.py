"""What a sweep keeps: properties that hold of every journal, every set of checkpoints and every policy."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tlcore.checkpoint.keeping import ENDED_EARLY, NOT_BEST, OVER_BUDGET, Doomed, KeepPolicy, Kept, choose, protected
from tlcore.storage.journal import SweepState

pytestmark = pytest.mark.unit
TRIALS = ("t000", "t001", "t002", "t003")
ENDS = ("completed", "stopped", "failed", "paused", None)


def journal(*entries):
    return SweepState.from_entries([{"n": n, **entry} for n, entry in enumerate(entries)])


def life(trial, results, end=None):
    """`results`: (step, accuracy) each; the trial's checkpoint is committed at each."""
    found = [{"kind": "suggested", "trial": trial, "point": {}, "of": 4}, {"kind": "started", "trial": trial}]
    for step, accuracy in results:
        found.append(
            {
                "kind": "result",
                "trial": trial,
                "step": step,
                "fraction": step / 10,
                "metrics": {"acc": accuracy, "loss": 1 - accuracy},
                "checkpoint_step": step,
            }
        )
    return found + ([{"kind": end, "trial": trial}] if end else [])


@some.composite
def sweeps(draw):
    """A journal, its checkpoints (some of a trial that it does not know), a policy, pins."""
    entries, kept = [], []
    chunks = some.dictionaries(some.integers(0, 12).map(str), some.just(10), max_size=5)
    for trial in TRIALS:
        steps = draw(some.lists(some.integers(1, 9), unique=True, max_size=4).map(sorted))
        results = [(step, draw(some.integers(0, 5)) / 5) for step in steps]
        if draw(some.integers(0, 5)):
            entries += life(trial, results, draw(some.sampled_from(ENDS)))
        for step, accuracy in results:
            metrics = draw(some.sampled_from([{}, {"acc": accuracy}, {"acc": float("nan")}]))
            kept.append(Kept(trial, step, draw(some.integers(1, 2)), metrics, draw(chunks)))
    live = [entry["trial"] for entry in entries if entry["kind"] == "suggested"]
    if kept and live and draw(some.booleans()):
        donor, trial = draw(some.sampled_from(kept)), draw(some.sampled_from(live))
        if not journal(*entries).trials[trial].ended and trial != donor.trial:
            took = {
                "parent": donor.trial,
                "step": donor.step,
                "fraction": 0.5,
                "point": {},
                "changed": {},
                "metrics": {},
            }
            entries.append({"kind": "took_over", "trial": trial, **took})
    policy = KeepPolicy(
        *draw(some.sampled_from([(["acc"], ["max"]), (["acc"], ["min"]), (["acc", "loss"], ["max", "min"])])),
        best_overall=draw(some.integers(0, 3)),
        stopped=draw(some.none() | some.integers(0, 2)),
        budget_bytes=draw(some.none() | some.integers(1, 200)),
    )
    pins = {each.place for each in kept if draw(some.integers(0, 6)) == 0}
    return journal(*entries), kept, policy, pins


def size(kept):
    return sum({digest: size for each in kept for digest, size in each.chunks.items()}.values())


def left(kept, decision):
    gone = {(each.trial, each.step) for each in decision.delete}
    return [each for each in kept if each.place not in gone]


@settings(max_examples=300, deadline=None)
@given(sweeps())
def test_what_somebody_needs_is_never_deleted(case):
    state, kept, policy, pins = case
    decision = choose(state, kept, policy, pins)
    staying = {each.place for each in left(kept, decision)}
    places = {each.place for each in kept}
    for trial, mine in ((name, [each for each in kept if each.trial == name]) for name in TRIALS):
        if not mine:
            continue
        newest = {(trial, max(each.step for each in mine))}
        newest.add(max(mine, key=lambda each: (each.attempt, each.step)).place)
        if trial not in state.trials:
            assert {each.place for each in mine} <= staying
        elif not state.trials[trial].ended:
            assert newest <= staying
            assert places & {(trial, state.trials[trial].checkpoint_step)} <= staying
            if (took := state.trials[trial].just_took_over) is not None:
                assert places & {(took.parent, took.step), (trial, took.step)} <= staying
        best = state.best(policy.metrics[0], policy.modes[0])
        if best is not None and best.trial == trial:
            assert newest <= staying
            known = [each for each in mine if each.metrics.get("acc", -1) >= 0]
            if known and len(policy.metrics) == 1:  # what is exported and tested at the end
                value = (max if policy.modes[0] == "max" else min)(each.metrics["acc"] for each in known)
                assert any(each.metrics["acc"] == value for each in known if each.place in staying)
        if len(policy.metrics) > 1 and trial in {each.trial for each in state.front(policy.metrics, policy.modes)}:
            assert newest <= staying
    assert pins <= staying
    values = sorted((each.metrics["acc"] for each in kept if each.metrics.get("acc", -1) >= 0), reverse=True)
    values = values[::-1] if policy.modes[0] == "min" else values
    stayed = sorted(
        (each.metrics["acc"] for each in left(kept, decision) if each.metrics.get("acc", -1) >= 0), reverse=True
    )
    stayed = stayed[::-1] if policy.modes[0] == "min" else stayed
    assert stayed[: policy.best_overall] == values[: policy.best_overall]


@settings(max_examples=300, deadline=None)
@given(sweeps())
def test_the_byte_budget_is_met_whenever_it_can_be_and_said_when_not(case):
    state, kept, policy, pins = case
    decision = choose(state, kept, policy, pins)
    staying = left(kept, decision)
    assert decision.kept_bytes == size(staying)
    if policy.budget_bytes is None:
        assert decision.over_bytes == 0
        assert {each.reason for each in decision.delete} <= {ENDED_EARLY, NOT_BEST}
        return
    assert decision.over_bytes == max(0, size(staying) - policy.budget_bytes)
    safe = protected(state, kept, policy) | pins
    least = size([each for each in kept if each.place in safe])
    assert bool(decision.over_bytes) == (least > policy.budget_bytes)
    if decision.over_bytes:
        assert decision.kept_bytes == least
    for doomed in decision.delete:  # none went for nothing
        if doomed.reason == OVER_BUDGET:
            (back,) = [each for each in kept if each.place == (doomed.trial, doomed.step)]
            assert size([*staying, back]) > max(policy.budget_bytes, decision.kept_bytes)


@settings(max_examples=100, deadline=None)
@given(sweeps(), some.randoms())
def test_the_answer_does_not_depend_on_the_order_and_a_second_pass_has_nothing_to_do(case, random):
    state, kept, policy, pins = case
    decision = choose(state, kept, policy, pins)
    shuffled = list(kept)
    random.shuffle(shuffled)
    assert choose(state, shuffled, policy, pins) == decision
    for later in (policy, replace(policy, best_overall=3, own_best=3)):
        again = choose(state, left(kept, decision), later, pins)
        if not decision.over_bytes:
            assert again.delete == ()


@settings(max_examples=100, deadline=None)
@given(sweeps())
def test_by_default_nothing_goes(case):
    state, kept, policy, _ = case
    assert choose(state, kept, KeepPolicy(policy.metrics, policy.modes)).delete == ()


def story():
    """t000 stopped, t001 completed and best, t002 completed, t003 runs."""
    state = journal(
        *life("t000", [(1, 0.2), (2, 0.3)], "stopped"),
        *life("t001", [(1, 0.4), (10, 0.9)], "completed"),
        *life("t002", [(1, 0.1), (10, 0.5)], "completed"),
        *life("t003", [(1, 0.3), (2, 0.4)]),
    )
    kept = [
        Kept(trial.trial, result.step, 1, dict(result.metrics), {"base": 100, f"{trial.trial}-{result.step}": 10})
        for trial in state.trials.values()
        for result in trial.results
    ]
    return state, kept


@pytest.mark.parametrize(
    ("budget", "gone", "over"),
    [
        (180, [], 0),
        (170, ["t000 1"], 0),
        (160, ["t000 1", "t000 2"], 0),
        (150, ["t000 1", "t000 2", "t002 1"], 0),
        (140, ["t000 1", "t000 2", "t001 1", "t002 1"], 0),
        (130, ["t000 1", "t000 2", "t001 1", "t002 1", "t003 1"], 0),
        (120, ["t000 1", "t000 2", "t001 1", "t002 1", "t002 10", "t003 1"], 0),
        (50, ["t000 1", "t000 2", "t001 1", "t002 1", "t002 10", "t003 1"], 70),
    ],
)
def test_early_ends_go_first_then_older_ones_then_what_completed_and_the_rest_never(budget, gone, over):
    decision = choose(*story(), KeepPolicy(["acc"], ["max"], budget_bytes=budget))
    assert [f"{each.trial} {each.step}" for each in decision.delete] == gone
    assert (decision.over_bytes, decision.kept_bytes) == (over, min(180, max(budget, 120)))


def test_a_stopped_trial_keeps_its_newest_and_what_is_among_the_best():
    state, kept = story()
    policy = KeepPolicy(["acc"], ["max"], best_overall=1, stopped=1)
    assert choose(state, kept, policy).delete == (Doomed("t000", 1, ENDED_EARLY),)
    none = KeepPolicy(["acc"], ["max"], best_overall=1, stopped=0)
    assert [each.step for each in choose(state, kept, none).delete] == [1, 2]


def test_of_trials_that_have_ended_the_best_of_all_stay_and_of_one_that_runs_all_that_its_writer_keeps():
    values = {
        "t000": (0.1, 0.2, 0.3, 0.4),
        "t001": (0.9, 0.8, 0.7, 0.1),
        "t002": (0.1, 0.6, 0.3, 0.2),
        "t003": (0.1, 0.2, 0.1),
    }
    ends = {"t000": "stopped", "t001": "completed", "t002": "failed", "t003": None}
    reports = {trial: list(enumerate(each, 1)) for trial, each in values.items()}
    state = journal(*(entry for trial in TRIALS for entry in life(trial, reports[trial], ends[trial])))
    kept = [Kept(trial, step, 1, {"acc": value}) for trial in TRIALS for step, value in reports[trial]]
    policy = KeepPolicy(["acc"], ["max"], best_overall=4)
    assert policy.deletes
    gone = [(each.trial, each.step, each.reason) for each in choose(state, kept, policy).delete]
    # t000 keeps its last two, t001 the three that are among the best four of all and its last, t002 its best and its last two
    assert gone == [(trial, step, NOT_BEST) for trial, step in (("t000", 1), ("t000", 2), ("t002", 1))]
    assert not replace(policy, best_overall=1).deletes


def test_what_two_checkpoints_share_is_freed_only_with_the_last_of_them():
    state = journal(*life("t000", [(1, 0.2), (2, 0.1)], "stopped"), *life("t001", [(1, 0.9)], "completed"))
    shared = {"big": 50}
    for more, gone in combinations([{}, {"own": 1}], 2):
        kept = [
            Kept("t000", 1, 1, {"acc": 0.2}, shared | more),
            Kept("t000", 2, 1, {"acc": 0.1}, shared | gone),
            Kept("t001", 1, 1, {"acc": 0.9}, {"best": 10}),
        ]
        assert len(choose(state, kept, KeepPolicy(["acc"], ["max"], budget_bytes=20)).delete) == 2
