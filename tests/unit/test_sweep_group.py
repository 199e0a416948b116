"""What is made of ranks whose process is gone, by what Ray and the kernel say of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from tlcore.errors import DataError, OutOfMemory, TrainError
from tlcore.sweep.cluster.resources import Shape
from tlcore.sweep.slots import group as groups
from tlcore.sweep.slots.group import (
    COLLECTIVE_S,
    GroupLost,
    GroupSettings,
    WorkerGroup,
    why_dead,
    worker_environment,
)
from tlcore.sweep.slots.mailbox import RankFailure, RankInfo, Stand, Status

pytestmark = pytest.mark.unit

DIED, UNAVAILABLE = ActorDiedError(), ActorUnavailableError("no answer", b"1" * 16)


def rank(number, node="aa", oom_kills=2):
    return RankInfo(number, 3, "10.0.0.7", 100 + number, node_id=node, oom_kills=oom_kills)


def judged(*found, dead=(), kills=2):
    return why_dead(found, lambda unreachable: set(dead), lambda node: kills)


def test_nobody_died():
    assert judged() is None


def test_a_process_that_died_is_a_lost_worker():
    found = judged((rank(1), DIED), (rank(0), DIED))
    assert isinstance(found, GroupLost)
    assert (found.loss, found.rank, found.nodes) == ("worker", 1, ("aa",))
    assert found.cause == "rank 1 (pid 101 on 10.0.0.7) died"


def test_all_ranks_of_a_node_that_died_are_one_loss():
    found = judged((rank(2, "bb"), DIED), (rank(0), UNAVAILABLE), (rank(1), UNAVAILABLE), dead=["aa"])
    assert (found.loss, found.rank, found.nodes) == ("node", 0, ("aa",))
    assert found.cause == "node 10.0.0.7 died with rank 0, 1"


def test_only_nodes_whose_ranks_do_not_answer_are_waited_for():
    asked = []

    def dead_nodes(unreachable):
        asked.append(unreachable)
        return set()

    why_dead([(rank(0), DIED), (rank(1, "bb"), UNAVAILABLE)], dead_nodes, lambda node: 2)
    assert asked == [{"bb"}]


def test_a_kill_by_rays_memory_monitor_is_out_of_memory():
    found = judged(
        (rank(0), DIED), (rank(1), OutOfMemoryError("Task was killed due to the node running low on memory."))
    )
    assert isinstance(found, OutOfMemory)
    assert found.fields["rank"] == 1
    assert "rank 1 (pid 101 on 10.0.0.7) was killed by Ray" in found.message


def test_a_kill_by_the_kernel_for_want_of_memory_is_out_of_memory():
    found = judged((rank(0), DIED), kills=3)
    assert isinstance(found, OutOfMemory)
    assert "rank 0 (pid 100 on 10.0.0.7) was killed by the kernel" in found.message


@pytest.mark.parametrize(("hang_s", "collective_s"), [(6.0, COLLECTIVE_S), (600.0, 7200)])
def test_a_collective_ends_by_itself_later_than_its_ranks_count_as_hung(tmp_path, hang_s, collective_s):
    settings = GroupSettings(Shape(2, 1.0, 0.0, "pack"), "a:B", "board", tmp_path, "g", hang_s)
    assert settings.collective_s == collective_s


@pytest.mark.parametrize(
    ("told", "nodes", "avoid", "serves"),
    [
        ((), ["aa"], [], True),
        ((), ["aa", "bb"], ["bb"], False),
        ((), ["aa"], ["bb"], True),
        ((), [], ["bb"], False),
        (("bb",), [], ["bb"], True),
        (("bb",), ["aa"], ["bb", "aa"], False),
    ],
)
def test_a_group_serves_where_its_ranks_are_or_will_be_off_the_nodes_to_avoid(tmp_path, told, nodes, avoid, serves):
    shape = Shape(2, 1.0, 0.0, "pack")
    group = WorkerGroup.__new__(WorkerGroup)  # its mailbox would be an actor
    group.settings = GroupSettings(shape, "a:B", "board", tmp_path, "g", 6.0, told)
    group._ranks = [rank(number, node) for number, node in enumerate(nodes)]
    assert group.serves(shape, avoid) is serves
    assert not group.serves(Shape(1, 1.0, 0.0, "pack"), avoid)


def test_workers_see_the_gpus_that_they_were_given_and_no_others():
    none, half, whole = (worker_environment(Shape(2, 1.0, gpus, "pack", (), None)) for gpus in (0.0, 0.5, 1.0))
    assert none["CUDA_VISIBLE_DEVICES"] == "" and none["DS_ACCELERATOR"] == "cpu"
    assert half["TLCORE_GPU_SHARE"] == "0.5" and "CUDA_VISIBLE_DEVICES" not in half
    assert not {"TLCORE_GPU_SHARE", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} & set(whole)


# Errors of ranks that live, and ranks that say nothing.

ECC = RankFailure(1, "AcceleratorError", "CUDA error: uncorrectable ECC error\nand more", "", None, "device")
CLOSED = RankFailure(0, "RuntimeError", "[gloo/pair.cc:5] Connection closed by peer", "", None, "link")
BUG = RankFailure(1, "ValueError", "bad shape", "", None, None, "my_model.py:12 forward", 3)
OURS = RankFailure(1, "DataError", "no column", "", DataError("no column"))


def listening(tmp_path, monkeypatch, ranks, later=(), hang_s=600.0):
    """A group whose ranks live, and whose mailbox has the failures `later` when it is asked again; and how often it killed them."""
    group = WorkerGroup.__new__(WorkerGroup)  # its mailbox would be an actor
    group.settings = GroupSettings(Shape(2, 1.0, 0.0, "pack"), "a:B", "board", tmp_path, "g", hang_s)
    group.generation, group._ranks, killed = 1, ranks, []
    status = Status("failed", 1, failures=tuple(later))
    group.mailbox = SimpleNamespace(wait=SimpleNamespace(remote=lambda generation, number, wait_s: status))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(groups.time, "sleep", lambda s: None)
    monkeypatch.setattr(groups, "_dead_nodes", lambda unreachable=(): set())
    group._dead_ranks, group._kill_ranks = list, lambda: killed.append(1)
    return group, killed


def test_a_device_that_fails_is_a_lost_worker_of_its_node_and_its_ranks_are_replaced(tmp_path, monkeypatch):
    group, killed = listening(tmp_path, monkeypatch, [rank(0, "aa"), rank(1, "bb")], [ECC])
    found = group._judge(4, (ECC,))
    assert isinstance(found, GroupLost)
    assert (found.loss, found.rank, found.nodes) == ("worker", 1, ("bb",))
    assert found.cause == (
        "the device of rank 1 (pid 101 on 10.0.0.7) failed: AcceleratorError: CUDA error: uncorrectable ECC error and more"
    )
    assert killed == [1]


def test_ranks_that_lose_touch_are_a_lost_worker_for_which_any_of_their_nodes_may_be_to_blame(tmp_path, monkeypatch):
    group, killed = listening(tmp_path, monkeypatch, [rank(0, "bb"), rank(1, "aa"), rank(2, "aa")], [CLOSED])
    found = group._judge(4, (CLOSED,))
    assert (found.loss, found.rank, found.nodes, killed) == ("worker", 0, ("aa", "bb"), [1])
    assert "rank 0 (pid 100 on 10.0.0.7) lost touch with the others: RuntimeError: [gloo/pair.cc:5]" in found.cause


@pytest.mark.parametrize(("failure", "kind"), [(BUG, TrainError), (OURS, DataError)])
def test_the_error_behind_a_failed_collective_is_reported_though_it_is_told_later(tmp_path, monkeypatch, failure, kind):
    group, killed = listening(tmp_path, monkeypatch, [rank(0), rank(1)], [CLOSED, failure])
    found = group._judge(4, (CLOSED,))
    assert type(found) is kind
    assert (found.fields["rank"], killed) == (1, [])


def test_the_device_behind_a_failed_collective_is_reported_though_it_is_told_later(tmp_path, monkeypatch):
    group, _ = listening(tmp_path, monkeypatch, [rank(0, "aa"), rank(1, "bb")], [CLOSED, ECC])
    assert group._judge(4, (CLOSED,)).nodes == ("bb",)


@pytest.mark.parametrize(
    ("hang_s", "phase", "silent_s", "hangs"),
    [
        (600.0, "train", 70.0, False),
        (600.0, "train", 601.0, True),
        (600.0, "start", 601.0, False),
        (600.0, "start", 3601.0, True),
        (20.0, "train", 25.0, True),
    ],
)
def test_a_silent_rank_has_the_time_that_the_recipe_gives_to_one_that_stands_still(
    tmp_path, monkeypatch, hang_s, phase, silent_s, hangs
):
    """A call that holds the interpreter's lock silences a sound rank."""
    group, killed = listening(tmp_path, monkeypatch, [rank(0), rank(1)], hang_s=hang_s)
    stands = {0: Stand(3, phase, 0, True), 1: Stand(3, phase)}
    status = Status("waiting", 1, silent_s={0: 1.0, 1: silent_s}, stands=stands, still_s=silent_s)
    if not hangs:
        group._check_still(status)
        assert killed == []
        return
    with pytest.raises(GroupLost) as lost:
        group._check_still(status)
    assert (lost.value.loss, lost.value.rank, killed) == ("hang", 1, [1])
    assert "rank 1 (pid 101 on 10.0.0.7) does not answer" in lost.value.cause
