"""When the best trial is tested, in which workers, and what an error of that leaves. Ranks are stood in for; the store is real."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from tiny_text_model import snippets, tiny_recipe, write_rows

from tests.stored_model import store_model
from tlcore.checkpoint import delete_checkpoint
from tlcore.errors import DataError, OutOfMemory, TlcoreError, WorkerLost
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.storage import RunRef, create_run
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep import examination
from tlcore.sweep.cluster.fit import Admitted, admit_all
from tlcore.sweep.halt import Halt
from tlcore.sweep.recorder import Recorder
from tlcore.sweep.slots.group import Cancelled, GroupLost
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 28, tzinfo=UTC)
FOUND = {"metrics": {"test_accuracy": 0.75}, "examples": [{"input": "good", "expected": "pos", "label": "neg"}]}


class Group:
    """A worker group that answers as it was told to: each test with the next of `answers`, which it raises where it is an error."""

    def __init__(self, settings: Any, answers: list[Any], made: list[Group]) -> None:
        self.settings, self.answers = settings, answers
        self.commands: list[dict[str, Any]] = []
        self.closed: bool | None = None
        self.cancelled = threading.Event()
        self.mailbox = self
        made.append(self)

    @property
    def cancel(self) -> Any:
        return self

    def remote(self) -> None:
        self.cancelled.set()

    def launch(self) -> None:
        pass

    def await_ranks(self, note: Any) -> None:
        pass

    def run(self, command: dict[str, Any]) -> Any:
        self.commands.append(command)
        if command["op"] == "start":
            return None
        answer = self.answers.pop(0)
        if callable(answer):
            answer = answer(self)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self, healthy: bool) -> None:
        self.closed = healthy


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    given = tiny_recipe(
        tmp_path,
        data__test=str(write_rows(tmp_path / "test.jsonl", snippets(6))),
        resources__workers=2,
        resources__gpus_per_worker=0,
        failures__max_lost_workers=1,
        failures__on_oom="adapt",
        deepspeed__zero_stage=3,
        budget__price_per_worker_hour=2.5,
    )
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    return recipe_from_dict({**given.to_dict(), "search": {"space": space, "trials": 1}})


class Sweep:
    """A run of one trial that has ended, whose checkpoint of step 5 is better than that of step 10, and its driver."""

    def __init__(self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe, self.halt = recipe, Halt()
        self.groups: list[Group] = []
        self.answers: list[Any] = []
        self.run: RunRef = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict()}, NOW, "one")
        model = build_task(recipe).build_model(from_scratch=False)
        journal = Journal(self.run.open(), lambda: NOW)
        journal.append("suggested", "t000", point={"train.learning_rate": 1e-4}, of=1)
        journal.append("started", "t000", slot="a", workers=4)
        for step, accuracy in ((5, 0.75), (10, 0.5)):
            store_model(self.run.open(), model, recipe, step=step, metrics={"eval_accuracy": accuracy})
            facts = {"metrics": {"eval_accuracy": accuracy}, "checkpoint_step": step}
            journal.append("result", "t000", step=step, fraction=step / 10, **facts)
        journal.append("completed", "t000")
        monkeypatch.setattr(examination, "LOOK_EVERY_S", 0.01)
        monkeypatch.setattr(examination, "Cluster", NoCluster)
        monkeypatch.setattr(examination, "read_growth", lambda nodes: NoCluster())
        monkeypatch.setattr(examination, "check_can_come", lambda shape, nodes, growth, setting: None)
        monkeypatch.setattr(examination, "WorkerGroup", lambda settings: Group(settings, self.answers, self.groups))

    def examine(self, *answers: Any, admit: Any = admit_all) -> TlcoreError | None:
        self.answers[:] = answers
        entries = read_journal(self.run.open())
        journal = Journal(self.run.open(), lambda: NOW, start=len(entries))
        recorder = Recorder(journal, SweepState.from_entries(entries), None)
        return examination.examine(self.recipe, self.run, admit, recorder, self.halt)

    def written(self) -> list[str]:
        return [entry["kind"] for entry in read_journal(self.run.open())][5:]


class NoCluster:
    """Where no node is known, and no GPU."""

    def nodes(self) -> list[Any]:
        return []

    def gpus(self, nodes: list[Any]) -> bool:
        return False


@pytest.fixture
def sweep(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    return Sweep(recipe, monkeypatch)


def test_the_best_checkpoint_is_tested_once_in_workers_such_as_trained_it(sweep: Sweep) -> None:
    assert sweep.examine(FOUND) is None
    testing, final = read_journal(sweep.run.open())[5:]
    assert {key: testing[key] for key in ("kind", "trial", "step", "workers", "price")} == {
        "kind": "testing",
        "trial": "t000",
        "step": 5,
        "workers": 4,
        "price": 2.5,
    }
    checkpoint = f"{sweep.run.url}/trials/t000/step-00000005"
    assert (final["kind"], final["trial"], final["checkpoint"]) == ("final", "t000", checkpoint)
    assert {key: final[key] for key in FOUND} == FOUND
    [group] = sweep.groups
    start, test = group.commands
    assert (group.settings.shape.workers, group.settings.shape.gpus, group.settings.board) == (4, 0, None)
    recipe = recipe_from_dict(start["recipe"])
    assert (recipe.resources.workers, recipe.deepspeed.zero_stage) == (4, 3)
    assert (start["trial"], start["run_url"], start["resume_step"]) == ("t000", sweep.run.url, 5)
    assert (start["point"], start["inherits"]) == ({"train.learning_rate": 1e-4}, False)
    assert test == {"op": "test", "step": 5}
    assert group.closed is True

    assert sweep.examine() is None
    assert (len(sweep.groups), sweep.written()) == (1, ["testing", "final"])


def test_it_runs_with_what_the_trial_was_adapted_to_and_its_point_as_admitted(sweep: Sweep) -> None:
    journal = Journal(sweep.run.open(), lambda: NOW, start=5)
    facts = {"step": 5, "fraction": 0.5, "changed": {}, "metrics": {"eval_accuracy": 0.75}}
    journal.append("took_over", "t000", parent="t001", point={"train.learning_rate": 1e-3}, **facts)
    journal.append("adapted", "t000", changed={"train.micro_batch_size": [2, 1]}, reason="", rank=0, step=5)
    journal.append("completed", "t000")
    sweep.examine(FOUND, admit=lambda point: Admitted({**point, "train.activation_checkpointing": True}))
    start = sweep.groups[0].commands[0]
    assert start["point"] == {
        "train.learning_rate": 1e-3,
        "train.activation_checkpointing": True,
        "train.micro_batch_size": 1,
    }
    assert start["inherits"]


def test_without_test_data_and_where_it_is_being_stopped_nothing_is_started(sweep: Sweep) -> None:
    sweep.recipe, given = sweep.recipe.model_copy(update={"data": replace_test(sweep.recipe)}), sweep.recipe
    assert sweep.examine() is None
    sweep.recipe = given
    sweep.halt.interrupt()
    assert sweep.examine() is None
    assert (sweep.groups, sweep.written()) == ([], [])


def replace_test(recipe: Recipe) -> Any:
    return recipe.data.model_copy(update={"test": None})


def test_a_budget_that_is_used_up_keeps_no_ended_sweep_from_its_figures(sweep: Sweep) -> None:
    from tlcore.train.budget import Exhausted

    sweep.halt.exhaust(Exhausted("budget.hours", 2, 2.01))
    assert sweep.examine(FOUND) is None
    assert sweep.written() == ["testing", "final"]


def test_lost_workers_are_told_and_it_is_tried_again_until_the_recipe_allows_no_more(sweep: Sweep) -> None:
    lost = GroupLost("rank 1 died", 1, "worker", ["node-a"])
    assert sweep.examine(lost, FOUND) is None
    [group] = sweep.groups  # Ray Train restarts the ranks; a new group would be slower
    assert [command["op"] for command in group.commands] == ["start", "test"] * 2
    assert sweep.written() == ["testing", "lost", "final"]


def test_losses_that_are_too_many_are_an_error_of_the_examination_alone(sweep: Sweep) -> None:
    lost = GroupLost("rank 1 died", 1, "worker", ["node-a"])
    error = sweep.examine(lost, lost)
    assert isinstance(error, WorkerLost) and "failures.max_lost_workers=1" in error.message
    assert sweep.groups[0].closed is False
    assert sweep.written() == ["testing", "lost", "lost"]


def test_where_memory_runs_out_it_is_tried_with_less_in_other_workers(sweep: Sweep) -> None:
    assert sweep.examine(OutOfMemory("rank 0 ran out of device memory", rank=0, step=5), FOUND) is None
    first, second = sweep.groups
    assert (first.closed, second.closed) == (False, True)
    assert second.commands[0]["point"].keys() == {"train.learning_rate", "train.micro_batch_size"}
    assert sweep.written() == ["testing", "adapted", "final"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (DataError("test.jsonl has no column 'label'"), "test.jsonl has no column 'label'"),
        (RayActorError(error_msg="the mailbox died"), "the test examples were not measured: the mailbox died"),
    ],
)
def test_an_error_is_returned_and_a_resume_tries_again(sweep: Sweep, raised: Exception, said: str) -> None:
    error = sweep.examine(raised)
    assert error is not None and error.message == said
    assert sweep.groups[0].closed is False
    assert sweep.written() == ["testing"]
    assert sweep.examine(FOUND) is None
    assert sweep.written() == ["testing", "testing", "final"]


def test_an_interrupt_wakes_it_and_there_are_no_figures_then(sweep: Sweep) -> None:
    def interrupted(group: Group) -> Exception:
        sweep.halt.interrupt()
        assert group.cancelled.wait(10)
        return Cancelled("the sweep is being stopped")

    assert sweep.examine(interrupted) is None
    assert sweep.groups[0].closed is False
    assert sweep.written() == ["testing"]


def test_where_another_driver_has_the_run_nothing_more_is_written(sweep: Sweep) -> None:
    def elsewhere(group: Group) -> Any:
        Journal(sweep.run.open(), lambda: NOW, start=6).append("resumed", of=1)
        return FOUND

    with pytest.raises(TlcoreError, match="another driver wrote"):
        sweep.examine(elsewhere)
    assert sweep.written() == ["testing", "resumed"]


def test_a_trial_whose_checkpoints_are_gone_cannot_be_tested(sweep: Sweep) -> None:
    for step in (5, 10):
        delete_checkpoint(sweep.run.open(), "t000", step)
    assert sweep.examine() is None
    assert sweep.groups == []
