"""One trial's budgets and its milder settings, and that each is told before the trial goes on."""

from __future__ import annotations

import pytest
from recipe_cases import changed

from tlcore.errors import OutOfMemory, RequestError, StorageUnreachable, TrialHung, WorkerLost
from tlcore.recipe import recipe_from_dict
from tlcore.sweep.slots.failures import StartFailed
from tlcore.sweep.slots.group import GroupLost
from tlcore.sweep.slots.recovery import LONGEST_PAUSE_S, Again, Recovery, pause_s

pytestmark = pytest.mark.unit

BASE = {"train.global_batch_size": 8, "resources.workers": 2, "failures.on_oom": "adapt"}
NO_MEMORY = OutOfMemory("rank 1 ran out of device memory at step 7", rank=1, step=7, asked_bytes=2**30)


def recovery(lost=None, adapted=None, **settings):
    told = []
    recipe = recipe_from_dict(changed({**BASE, **{key.replace("__", "."): value for key, value in settings.items()}}))
    made = Recovery("t004", recipe, lost or {}, adapted or {}, lambda kind, **facts: told.append((kind, facts)))
    return made, told


def test_adaptations_come_in_order_and_add_up():
    trial, told = recovery(deepspeed__zero_stage=2)
    with pytest.raises(OutOfMemory) as end:
        for _ in range(20):
            trial.adapt(NO_MEMORY, 5)
    assert [facts["changed"] for _, facts in told] == [
        {"train.micro_batch_size": [4, 2]},
        {"train.micro_batch_size": [2, 1]},
        {"train.activation_checkpointing": [False, True]},
        {"deepspeed.zero_stage": [2, 3]},
        {"deepspeed.offload_optimizer": ["none", "cpu"]},
        {"deepspeed.offload_param": ["none", "cpu"]},
    ]
    assert trial.adapted == {key: new for _, facts in told for key, (_, new) in facts["changed"].items()}
    assert (trial.recipe.train.micro_batch_size, trial.recipe.deepspeed.zero_stage) == (1, 3)
    assert trial.recipe.train.global_batch_size == 8
    assert "more workers" in end.value.hint


def test_what_is_told_says_why_where_and_from_which_step():
    trial, told = recovery()
    trial.adapt(NO_MEMORY, 5)
    ((kind, facts),) = told
    assert kind == "adapted"
    assert {key: facts[key] for key in ("reason", "rank", "step", "asked_bytes")} == {
        "reason": NO_MEMORY.message,
        "rank": 1,
        "step": 5,
        "asked_bytes": 2**30,
    }


def test_without_adapt_the_error_says_what_to_change():
    trial, told = recovery(failures__on_oom="fail")
    with pytest.raises(OutOfMemory) as end:
        trial.adapt(NO_MEMORY, 5)
    assert end.value.message == NO_MEMORY.message
    assert "set train.micro_batch_size to 2 (it is 4), or failures.on_oom to adapt" in end.value.hint
    assert (end.value.fields["rank"], end.value.fields["step"]) == (1, 7)
    assert told == []


def test_a_resumed_trial_begins_with_what_it_was_adapted_to():
    trial, told = recovery(adapted={"train.micro_batch_size": 1, "deepspeed.zero_stage": 3})
    assert (trial.recipe.train.micro_batch_size, trial.recipe.deepspeed.zero_stage) == (1, 3)
    trial.adapt(NO_MEMORY, None)
    assert told[0][1]["changed"] == {"train.activation_checkpointing": [False, True]}


def test_a_micro_batch_that_the_new_point_cannot_have_is_left_out_and_the_rest_stays():
    trial, _ = recovery(adapted={"train.micro_batch_size": 4, "deepspeed.zero_stage": 3}, train__global_batch_size=12)
    assert trial.adapted == {"deepspeed.zero_stage": 3}
    assert trial.recipe.deepspeed.zero_stage == 3


def test_what_the_model_refuses_is_taken_back_for_what_comes_after_it():
    trial, told = recovery(train__micro_batch_size=1, deepspeed__zero_stage=2)
    refusal = RequestError("train.activation_checkpointing: Plain does not offer it")
    trial.adapt(NO_MEMORY, 5)
    trial.take_back(refusal, 5)
    assert told[1][1]["changed"] == {"train.activation_checkpointing": [True, False], "deepspeed.zero_stage": [2, 3]}
    trial.started()
    trial.adapt(NO_MEMORY, 5)
    assert trial.adapted == {"deepspeed.zero_stage": 3, "deepspeed.offload_optimizer": "cpu"}


def test_a_refusal_that_no_adaptation_caused_is_the_trials_error():
    trial, _ = recovery()
    refusal = RequestError("bf16 is not there")
    with pytest.raises(RequestError, match="bf16"):
        trial.take_back(refusal, None)
    trial.adapt(NO_MEMORY, 5)
    trial.started()
    with pytest.raises(RequestError, match="bf16"):
        trial.take_back(refusal, None)


def test_losses_are_told_and_counted_by_kind():
    trial, told = recovery(failures__max_lost_workers=2, failures__max_hangs=1)
    assert trial.lost("worker", "rank 1 died", 1, 5, ["node-a"]) == 1
    assert trial.lost("hang", "nothing moved", 0, 5) == 1
    assert trial.lost("worker", "rank 0 died", 0, 5) == 2
    with pytest.raises(WorkerLost, match="lost workers 3 times"):
        trial.lost("worker", "rank 1 died", 1, 10)
    assert [(kind, facts["loss"]) for kind, facts in told] == [
        ("lost", "worker"),
        ("lost", "hang"),
        ("lost", "worker"),
        ("lost", "worker"),
    ]
    assert told[0][1] == {"rank": 1, "cause": "rank 1 died", "step": 5, "loss": "worker", "node": "node-a"}


def test_a_loss_for_which_one_of_several_nodes_is_to_blame_is_told_with_all_of_them():
    trial, told = recovery()
    trial.mend(GroupLost("rank 1 lost touch with the others", 1, "worker", ["node-a", "node-b"]), 5)
    assert (told[0][1]["node"], told[0][1]["nodes"]) == (None, ["node-a", "node-b"])


def test_workers_that_did_not_start_are_told_with_their_node_and_end_with_every_one_of_them():
    trial, told = recovery(failures__max_lost_workers=1)
    trial.mend(StartFailed("no libcudart", hint="see the log", nodes=["node-b"], shape="a shape"), None)
    with pytest.raises(StartFailed) as end:
        trial.mend(StartFailed("no libcudart", hint="see the log", nodes=["node-a"], shape="a shape"), None)
    assert [facts["node"] for _, facts in told] == ["node-b", "node-a"]
    assert (end.value.fields["nodes"], end.value.fields["shape"]) == (["node-a", "node-b"], "a shape")


def test_what_was_lost_before_a_resume_counts():
    trial, _ = recovery(lost={"hang": 1, "worker": 3}, failures__max_hangs=1)
    with pytest.raises(TrialHung, match="hung 2 times"):
        trial.lost("hang", "nothing moved", 0, 5)


def test_pauses_grow_to_a_bound():
    assert [pause_s(times) for times in (1, 2, 3)] == [2, 4, 8]
    assert pause_s(9) == LONGEST_PAUSE_S


def test_what_a_command_raised_says_whether_it_is_repeated_in_other_workers_and_when():
    trial, told = recovery()
    assert trial.mend(GroupLost("rank 1 died", 1, "node", ["node-a"]), 5) == Again()
    assert trial.mend(StartFailed("the port is taken"), 5) == Again(anew=True, pause_s=2.0)
    assert trial.mend(StorageUnreachable("no answer", rank=1), 5) == Again(anew=True, pause_s=2.0)
    assert trial.mend(StorageUnreachable("no answer", rank=1), 5) == Again(anew=True, pause_s=4.0)
    assert trial.mend(NO_MEMORY, 5) == Again(anew=True)
    assert trial.mend(RequestError("no such micro-batch"), 5) == Again(anew=True)
    assert [facts.get("loss", kind) for kind, facts in told] == [
        *("node", "worker", "storage", "storage"),
        *("adapted", "adapted"),
    ]
    trial.started()
    with pytest.raises(RequestError, match="bf16"):
        trial.mend(RequestError("bf16 is not there"), 5)


def test_waiting_for_room_is_told_once_and_so_is_its_end():
    trial, told = recovery()
    for waits in (False, True, True, False, False, True):
        trial.room(waits)
    assert [kind for kind, _ in told] == ["queued", "placed", "queued"]
