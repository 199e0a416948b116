"""Kinds of failures, their budgets and what follows: decisions over what was seen, no process started."""

from __future__ import annotations

import pytest
from recipe_cases import changed

from tlcore.errors import (
    BucketMissing,
    DataError,
    Diverged,
    ModelError,
    RecipeError,
    SweepError,
    TrainError,
    TrialHung,
    WorkerLost,
)
from tlcore.recipe import recipe_from_dict
from tlcore.sweep.slots.failures import (
    BUDGETS,
    Failed,
    NodeRecord,
    StartFailed,
    exhausted,
    first_cause,
    hang_limit_s,
    is_hopeless,
    overspent,
    who_is_behind,
)
from tlcore.sweep.slots.mailbox import RankFailure, RankInfo, Stand

pytestmark = pytest.mark.unit


def recipe(**failures):
    return recipe_from_dict(changed({f"failures.{key}": value for key, value in failures.items()}))


# Budgets.


@pytest.mark.parametrize(
    ("kind", "setting", "error", "words"),
    [
        ("worker", "max_lost_workers", WorkerLost, "lost workers 3 times"),
        ("node", "max_lost_nodes", WorkerLost, "lost nodes 3 times"),
        ("hang", "max_hangs", TrialHung, "hung 3 times"),
        ("storage", "max_storage", SweepError, "met storage trouble 3 times"),
    ],
)
def test_each_kind_has_its_own_setting_error_and_words(kind, setting, error, words):
    tight = recipe(**{setting: 2})
    assert not overspent(tight, {kind: 2}, kind)
    assert overspent(tight, {kind: 3}, kind)
    ended = exhausted(tight, "t004", kind, 3, "rank 1 died", 1, 20)
    assert type(ended) is error
    assert f"trial t004 {words}, more than failures.{setting}=2; the last time: rank 1 died" in ended.message
    assert (ended.fields["rank"], ended.fields["step"], ended.exit_code) == (1, 20, 1)
    assert ended.hint


def test_one_kind_does_not_eat_the_budget_of_another():
    tight = recipe(**{budget.setting: 1 for budget in BUDGETS.values()})
    lost = dict.fromkeys(BUDGETS, 1)
    assert not any(overspent(tight, lost, kind) for kind in BUDGETS)


# Errors of ranks.

LINK = RankFailure(0, "RuntimeError", "gloo", "", None, "link")
DEVICE = RankFailure(1, "AcceleratorError", "ECC", "", None, "device")
PLAIN = RankFailure(2, "ValueError", "bad", "")
OURS = RankFailure(3, "DataError", "no column", "", DataError("no column"))


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([LINK], LINK),
        ([LINK, PLAIN], PLAIN),
        ([LINK, PLAIN, DEVICE], DEVICE),
        ([LINK, DEVICE, PLAIN, OURS], OURS),
        ([PLAIN, RankFailure(3, "ValueError", "worse", "")], PLAIN),
    ],
)
def test_a_lost_connection_is_the_cause_only_where_there_is_no_other_error(failures, cause):
    assert first_cause(failures) is cause


# Hangs.


@pytest.mark.parametrize(("phase", "limit_s"), [("start", 360), ("first step", 180), ("save", 180), ("train", 60)])
def test_phases_in_which_nothing_is_counted_have_longer(phase, limit_s):
    assert hang_limit_s([Stand(3, "train"), Stand(3, phase)], 60, 0) == limit_s


def test_ranks_that_step_slowly_are_given_three_of_their_longest_pauses():
    stands = [Stand(3, "train"), Stand(3, "train")]
    assert hang_limit_s(stands, 60, 5) == 60
    assert hang_limit_s(stands, 60, 300) == 900


def infos(count):
    return [RankInfo(rank, count, "10.0.0.7", 100 + rank) for rank in range(count)]


def test_the_rank_behind_is_the_one_that_waits_for_nobody():
    stands = {0: Stand(7, "train", 0, True, "a.py:1 all_reduce"), 1: Stand(7, "train", 0, False, "my.py:9 loss")}
    behind = who_is_behind(infos(2), stands, [], 600)
    assert behind.rank == 1
    assert behind.cause == (
        "nothing moved for 600 s: rank 1 (pid 101 on 10.0.0.7) is at step 7 (train), in my.py:9 loss; "
        "rank 0 waits in a collective at step 7 (train)"
    )


def test_a_rank_that_does_not_answer_comes_before_any_other():
    stands = {0: Stand(7, "train"), 1: Stand(9, "train", 0, True)}
    behind = who_is_behind(infos(2), stands, [1], 60)
    assert behind.rank == 1
    assert "rank 1 (pid 101 on 10.0.0.7) does not answer, last seen at step 9 (train)" in behind.cause


def test_among_ranks_that_wait_the_one_with_the_least_done_is_behind():
    stands = {0: Stand(8, "train", 0, True), 1: Stand(7, "train", 0, True), 2: Stand(8, "train", 0, True)}
    assert who_is_behind(infos(3), stands, [], 60).rank == 1


def test_ranks_that_all_wait_at_one_place_are_all_told_and_none_is_blamed():
    stands = {rank: Stand(7, "train", 0, True, f"c.py:{rank} wait") for rank in range(2)}
    behind = who_is_behind(infos(2), stands, [], 60)
    assert behind.rank is None
    assert "c.py:0 wait" in behind.cause
    assert "c.py:1 wait" in behind.cause


def test_a_rank_of_which_nothing_is_known_yet_is_told_all_the_same():
    assert who_is_behind(infos(1), {}, [], 60).rank == 0


# Nodes.

NODES = ("a", "b", "c")


def test_a_node_that_keeps_failing_while_others_do_not_is_avoided():
    record = NodeRecord()
    assert record.note("t000", "a", NODES) is None
    assert record.note("t000", "a", NODES) is None
    assert record.note("t001", "a", NODES) == {"node": "a", "losses": 3, "trials": ["t000", "t001"]}
    assert record.avoided == ["a"]
    assert record.note("t002", "a", NODES) is None


def test_a_cluster_that_fails_everywhere_has_no_node_to_avoid():
    record = NodeRecord()
    for _ in range(9):
        assert all(record.note("t000", node, NODES) is None for node in NODES)


def test_the_only_node_is_not_avoided_and_losses_without_a_node_do_not_count():
    record = NodeRecord()
    assert all(record.note("t000", "a", ["a"]) is None for _ in range(9))
    assert all(record.note("t000", None, NODES) is None for _ in range(9))
    assert record.avoided == []


# Errors of the request.

RATE = {"train.learning_rate": 1e-4}
OTHER = {"train.learning_rate": 2e-4}


@pytest.mark.parametrize(
    "error", [DataError("column 'text' is not there"), ModelError("no config.json"), BucketMissing("no bucket")]
)
def test_what_no_searched_setting_can_have_caused_ends_the_sweep_at_once(error):
    assert is_hopeless(error, RATE, [])


@pytest.mark.parametrize(
    ("error", "point"),
    [
        (DataError("no rows"), {"data.max_length": 4}),
        (ModelError("transfer.n is 9, there are 6 blocks"), {"transfer.n": 9}),
        (RecipeError([]), RATE),
    ],
)
def test_what_the_point_may_have_caused_ends_it_once_two_points_ended_alike(error, point):
    other = dict.fromkeys(point, "another")
    said = type(error).__name__, error.message
    assert not is_hopeless(error, point, [])
    assert not is_hopeless(error, point, [Failed(point, *said)])
    assert not is_hopeless(error, point, [Failed(other, type(error).__name__, "something else")])
    assert is_hopeless(error, point, [Failed(other, *said)])


def test_names_of_trials_and_ranks_do_not_make_two_messages_of_one():
    error = DataError("trial t003, rank 1: no rows")
    point = {"data.max_length": 4}
    assert is_hopeless(error, point, [Failed({"data.max_length": 5}, "DataError", "trial t001, rank 0: no rows")])


def test_failures_of_the_work_never_end_the_sweep():
    assert not is_hopeless(WorkerLost("gone"), RATE, [Failed(OTHER, "WorkerLost", "gone")])


def not_started(trial, number):
    words = f"trial {trial} lost workers 4 times: ActorDiedError: pid: {number} id: {number:08x}{'ab' * 8} ip: 10.0.0.1{number}"
    return StartFailed(f"{words}: libcudart.so is missing")


def test_workers_that_do_not_start_for_the_same_reason_in_two_trials_end_the_sweep():
    """What Ray says names processes and actors, which are others in each trial."""
    error = not_started("t003", 7)
    assert not is_hopeless(error, RATE, [])
    assert not is_hopeless(error, RATE, [Failed(OTHER, "StartFailed", "the port is taken")])
    assert is_hopeless(error, RATE, [Failed(OTHER, "StartFailed", not_started("t001", 12).message)])


def test_workers_that_do_not_start_end_no_sweep_that_has_other_nodes():
    error, earlier = not_started("t003", 7), [Failed(OTHER, "StartFailed", not_started("t001", 12).message)]
    assert not is_hopeless(error, RATE, earlier, elsewhere=True)
    assert is_hopeless(error, RATE, earlier, elsewhere=False)


def raised(rank=0, batch=8, line=12, step=0):
    where = f"(modeling_mine.py:{line} forward)"
    return TrainError(f"rank {rank}: ValueError: batch of {batch} is not even {where}", rank=rank, step=step)


def ended(learning_rate, error):
    return Failed({"train.learning_rate": learning_rate}, type(error).__name__, error.message, error.fields.get("step"))


def test_the_same_exception_in_the_first_three_trials_ends_the_sweep():
    two = [ended(1e-5, raised(1, 4, 12)), ended(2e-5, raised(0, 6, 12))]
    assert not is_hopeless(raised(), RATE, [])
    assert not is_hopeless(raised(), RATE, two[:1])
    assert is_hopeless(raised(), RATE, two)
    assert is_hopeless(raised(step=None), RATE, two)


@pytest.mark.parametrize(
    "other",
    [
        ended(2e-5, TrainError("rank 0: KeyError: batch of 6 is not even (modeling_mine.py:12 forward)")),
        ended(2e-5, TrainError("rank 0: ValueError: another (modeling_mine.py:12 forward)")),
        ended(2e-5, TrainError("rank 0: ValueError: batch of 6 is not even (modeling_mine.py:12 backward)")),
        Failed(RATE, "TrainError", raised().message),
    ],
)
def test_exceptions_that_differ_in_class_words_or_place_or_are_of_one_point_do_not(other):
    assert not is_hopeless(raised(), RATE, [ended(1e-5, raised()), other])


def test_an_exception_ends_no_sweep_in_which_a_trial_got_further():
    two = [ended(1e-5, raised()), ended(2e-5, raised())]
    assert not is_hopeless(raised(), RATE, two, furthest=1)
    late = [ended(1e-5, raised(step=500)), ended(2e-5, raised(step=500))]
    assert is_hopeless(raised(step=500), RATE, late, furthest=500)
    assert not is_hopeless(raised(step=500), RATE, late, furthest=501)


def test_a_loss_that_is_not_finite_is_the_points_own_matter():
    diverged = Diverged("the loss is nan")
    assert not is_hopeless(diverged, RATE, [ended(1e-5, diverged), ended(2e-5, diverged)])
