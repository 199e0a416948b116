"""Drives a scheduler's seats as Tune and the journal do, with stub results and no Ray: shared by the tests of schedulers."""

from __future__ import annotations

import random

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tlcore.recipe import recipe_from_dict, report_fractions, sample_point
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay, decide


def recipe(scheduler, epochs=1, mode="max", metric="eval_accuracy", trials=4, **search):
    return recipe_from_dict(
        {
            "name": "n",
            "task": "text-classification",
            "model": {"source": "package:x/y"},
            "data": {"train": "train.csv"},
            "storage": "/tmp/store",
            "train": {"epochs": epochs},
            "search": {
                "space": {
                    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
                    "train.weight_decay": {"uniform": [0.0, 0.1]},
                    "train.global_batch_size": {"quniform": [8, 64, 8]},
                },
                "trials": trials,
                "scheduler": scheduler,
                "mode": mode,
                "metric": metric,
                **search,
            },
        }
    )


class Live:
    """A sweep without trials: seats, and the journal that would be written, in the order in which a driver writes it."""

    def __init__(self, recipe, journal=()):
        self.recipe, self.journal = recipe, list(journal)
        self.seats = make_seats(recipe, self)
        self.reached = {}
        self.replayed = Replay(self.seats, self.journal) if journal else None

    @property
    def scheduler(self):
        return self.seats.scheduler

    def write(self, kind, trial=None, **facts):
        self.journal.append({"kind": kind, "trial": trial, **facts})

    def add(self, name, point=None):
        point = point or sample_point(self.recipe, 0, len(self.seats.seats))
        self.write("suggested", name, point=point, of=self.recipe.search.trials)
        self.seats.add(name, point, self.recipe.search.trials)
        self.reached[name] = 0.0

    def start(self, name):
        self.write("started", name)
        self.seats.start(name)

    def report(self, name, fraction, value, committed=True):
        """One result and what follows from it. Returns the decision."""
        step = round(fraction * 1000)
        facts = {"fraction": fraction, "step": step, "checkpoint_step": step if committed else None}
        facts["metrics"] = {"eval_accuracy": value, "eval_loss": value}
        return self.result(name, facts)

    def result(self, name, facts):
        """As `report`, of whatever a session said."""
        fraction = facts["fraction"]
        self.write("result", name, **facts)
        self.reached[name] = fraction
        if fraction >= 1.0:
            self.seats.last_report(name, facts)
            self.end(name, "completed")
            return TrialScheduler.STOP
        decision = self.seats.report(name, facts)
        if decision == TrialScheduler.PAUSE:
            self.write("paused", name)
        if decision == TrialScheduler.STOP:
            self.end(name, "stopped")
        return decision

    def end(self, name, kind):
        self.seats.end(name, failed=kind == "failed")
        self.write(kind, name)

    def stop(self, trial):
        self.end(trial, "stopped")

    def take_over(self, seat, donor, propose):
        decided = decide(seat, donor, propose)
        if decided is not None:
            facts = ("parent", "step", "fraction", "point", "changed", "metrics")
            self.write("took_over", seat.trial_id, **{key: getattr(decided, key) for key in facts})
            self.reached[seat.trial_id] = decided.fraction
        return decided

    def resumed(self):
        """This sweep as the next driver has it, from the journal alone, and after the driver noted that."""
        fresh = Live(self.recipe, self.journal)
        fresh.reached = dict(self.reached)
        return fresh

    def note_resume(self):
        self.write("resumed", of=self.recipe.search.trials)
        self.seats.resume(self.recipe.search.trials)

    def status(self, name):
        return self.seats.seats[name].status


def play(live, draw, slots=3, stop_after=10**9, fail=0.0):
    """Run a sweep with so many slots to its end, or to its `stop_after`th event: stub trials with noisy growing values."""
    fractions = report_fractions(live.recipe)
    eager = live.recipe.search.scheduler.population is not None
    for event in range(stop_after):
        running = sorted(name for name, seat in live.seats.seats.items() if seat.status == Trial.RUNNING)
        if len(running) < slots and start_one(live, eager):
            continue
        if not running:
            return event
        name = draw.choice(running)
        if draw.random() < fail:
            live.end(name, "failed")
            continue
        fraction = next(one for one in fractions if one > live.reached[name] + 1e-9)
        live.report(name, fraction, draw.random() * fraction)
    return stop_after


def start_one(live, eager):
    """Start what the scheduler has ready, else a new trial; whether there was one."""
    while eager and len(live.seats.seats) < live.recipe.search.trials:
        live.add(f"t{len(live.seats.seats):03d}")
    waiting = [seat.trial_id for seat in live.seats.seats.values() if seat.status == Trial.PENDING and not eager]
    if waiting:
        live.start(waiting[0])
        return True
    chosen = live.seats.choose()
    if chosen is not None:
        live.start(chosen.trial_id)
        return True
    if len(live.seats.seats) < live.recipe.search.trials:
        live.add(f"t{len(live.seats.seats):03d}")
        return True
    return False


def stream(seed):
    return random.Random(seed)


def state_of(seats):
    """All that a scheduler knows, as plain data, by trial name: to compare two of them."""
    inner = seats.scheduler
    known = {"seats": {name: (seat.status, seat.config, seat.committed) for name, seat in seats.seats.items()}}
    if hasattr(inner, "_brackets"):
        known["rungs"] = [[(milestone, dict(rung)) for milestone, rung in one._rungs] for one in inner._brackets]
    if hasattr(inner, "_hyperbands"):
        known["bands"] = [[_bracket(one) for one in band] for band in inner._hyperbands]
        known["open"] = _bracket(inner._state["bracket"])
        known["stopped"] = inner._num_stopped
    if hasattr(inner, "_trial_state") and hasattr(inner, "_quantiles"):
        keys = ("last_score", "last_train_time", "last_perturbation_time")
        known["population"] = {
            str(seat): [getattr(state, key) for key in keys] for seat, state in inner._trial_state.items()
        }
        known["next"] = inner._next_perturbation_sync
    if hasattr(inner, "data"):
        known["data"] = inner.data.to_dict("records")
        known["current"] = None if inner.current is None else inner.current.tolist()
    if hasattr(inner, "_results"):
        known["results"] = {str(seat): results for seat, results in inner._results.items() if results}
    return known


def _bracket(one):
    if one is None:
        return None
    live = {str(seat): result for seat, result in one._live_trials.items()}
    unpaused = sorted(str(seat) for seat in one.trials_to_unpause)
    return (
        live,
        one._n,
        one._r,
        one._halves,
        one._completed_progress,
        unpaused,
        [str(seat) for seat in one._all_trials],
    )
