"""Tune's own controller over actors that are only noted: what the test of slots' deaths drives, with no Ray.

What befalls an actor is told to Tune's manager as its events would: `started`, `answered`, `died`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

from ray import tune
from ray.air.execution import AcquiredResources, ResourceManager
from ray.train._internal.storage import StorageContext
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import SearchAlgorithm
from scheduler_bench import recipe

from tlcore.recipe import sample_point
from tlcore.storage import open_store
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.conductor import Conductor
from tlcore.sweep.halt import Halt
from tlcore.sweep.recorder import JournalCallback, Recorder
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.search.source import SlotTrial


class Method:
    def __init__(self, name):
        self.name = name

    def remote(self, *args, **kwargs):
        return {} if self.name == "get_auto_filled_metrics" else object()


class Actor:
    """A handle: whatever is called on it stays open until the test says what became of it."""

    def __init__(self, number):
        self._actor_id = SimpleNamespace(hex=lambda: f"{number:012d}")

    def __getattr__(self, name):
        return Method(name)


class Acquired(AcquiredResources):
    def __init__(self, request, made):
        self.resource_request, self._made = request, made

    def annotate_remote_entities(self, entities):
        return [self]

    def _annotate_remote_entity(self, entity, bundle, bundle_index):
        raise NotImplementedError

    def remote(self, **kwargs):
        self._made.append(Actor(len(self._made)))
        return self._made[-1]


class Room(ResourceManager):
    """Always enough."""

    def __init__(self):
        self.made = []

    def request_resources(self, resource_request):
        pass

    def cancel_resource_request(self, resource_request):
        pass

    def has_resources_ready(self, resource_request):
        return True

    def acquire_resources(self, resource_request):
        return Acquired(resource_request, self.made)

    def free_resources(self, acquired_resource):
        pass

    def clear(self):
        pass


class NoMore(SearchAlgorithm):
    """All trials are there from the beginning, and more may come."""

    def is_finished(self):
        return False

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass


class Scratch(StorageContext):
    """Where Tune keeps its own files; Ray would put them into its session's directory."""

    def _get_session_path(self):
        return f"{self.storage_fs_path}/session"


class Slotless(tune.Trainable):
    """What the actors would be."""


class TuneAlone:
    """A sweep of two trials with its journal, up to Tune's door."""

    def __init__(self, directory, scheduler="none", max_failures=1):
        chosen = recipe(scheduler, trials=2)
        self.store, self.room = open_store(str(directory / "run")), Room()
        journal = Journal(self.store, lambda: datetime(2026, 11, 28, tzinfo=UTC))
        self.recorder = Recorder(journal, SweepState(), None)
        conductor = Conductor(self.recorder, lambda decided, check: True)
        self.seats = conductor.seats = make_seats(chosen, conductor)
        tune.register_trainable("slotless", Slotless)
        storage = Scratch(str(directory / "scratch"), "tune")
        callback = JournalCallback(self.recorder, Halt(), self.seats, lambda trial: {"workers": 2}, lambda trial: None)
        self.controller = TuneController(
            search_alg=NoMore(),
            scheduler=conductor,
            callbacks=[callback],
            storage=storage,
            reuse_actors=True,
            resource_manager_factory=lambda: self.room,
        )
        self.manager = self.controller._actor_manager
        self.trials = []
        for number in range(2):
            name, point = f"t00{number}", sample_point(chosen, 0, number)
            self.recorder.record("suggested", name, point=point, of=2)
            self.seats.add(name, point, 2)
            trial = SlotTrial(
                "slotless",
                trial_id=name,
                storage=storage,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
                max_failures=max_failures,
            )
            self.trials.append(trial)

    def add(self, number):
        self.controller.add_trial(self.trials[number])
        return self.trials[number]

    def turn(self):
        """What Tune does ahead of waiting for an event."""
        self.controller._maybe_add_actors()
        self.manager._try_start_actors()

    def actor(self, trial):
        return self.controller._trial_to_actor[trial]

    def started(self, trial):
        """Its slot is there."""
        (future,) = self.manager._tracked_actors_to_state_futures[self.actor(trial)]
        self._event(self.manager._actor_state_events, future)(None)

    def answered(self, trial, value):
        """Its slot has done what it was asked."""
        self._event(self.manager._actor_task_events, self._task(trial))(value)

    def died(self, trial, error, starting=False):
        """Its slot is gone: what it was asked, or its start, ends in `error`."""
        if starting:
            (future,) = self.manager._tracked_actors_to_state_futures[self.actor(trial)]
            self._event(self.manager._actor_state_events, future, failed=True)(error)
        else:
            self._event(self.manager._actor_task_events, self._task(trial), failed=True)(error)

    def _task(self, trial):
        (future,) = self.manager._tracked_actors_to_task_futures[self.actor(trial)] & set(
            self.manager._actor_task_events.get_futures()
        )
        return future

    def _event(self, events, future, failed=False):
        return events._tracked_futures.pop(future)[failed]

    def told(self, trial):
        """The journal's words about a trial."""
        return [entry for entry in read_journal(self.store) if entry["trial"] == trial]
