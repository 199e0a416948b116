"""Which trial is next: our own `SearchAlgorithm`, so that trials bear our names and a resume needs nothing of Tune's.

Owns the order (after a resume the unfinished trials first, then those that the scheduler has ready, then new ones up to
`search.trials`; ended ones never again), the number of trials at a time, and the journal entry of each suggestion, written
before Tune hears of it. Which point is next is a searcher's business (`searchers.py`). Called by Tune's controller and by the
conductor, both in the driver's thread.

A trial that is to wait is handed to Tune as a paused one, so that Tune leaves it alone until the scheduler chooses it: what
waited when a sweep died, and every member of a population, since a population scheduler must know all its members.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from tlcore.recipe import Recipe, apply_point, grid_points, with_workers, workers_at
from tlcore.storage.journal import SweepState, TrialState
from tlcore.sweep.cluster.fit import Admit, admit_all
from tlcore.sweep.cluster.resources import Shape, Slivers
from tlcore.sweep.search.searchers import Searcher

Room = Callable[[Shape, Sequence[Shape], Sequence[Shape]], bool]
"""Whether a trial of a shape fits beside the live ones; last, the shapes that idle slots hold and give back when asked."""
Record = Callable[..., Any]
LOOK_AGAIN_S: Final = 0.5
"""For so long "no room" stands while the sweep's own trials stay where they are: Tune asks after each of its events, and looking
costs two questions to the cluster, which took more of the driver's time than the event itself."""


def trial_name(index: int) -> str:
    """The name of trial number `index`: t000, t001, ..."""
    return f"t{index:03d}"


def trials_wanted(recipe: Recipe) -> int:
    """How many trials the sweep has in all; a grid has as many points as it has."""
    if recipe.search.algorithm.grid is not None:
        return min(recipe.search.trials, len(grid_points(recipe)))
    return recipe.search.trials


class SlotTrial(Trial):
    """A Tune trial that is retried only when its slot died. What a rank raised would be raised again."""

    failure: Exception | None = None

    def handle_error(self, exc: Exception | None = None) -> None:
        """Remember what ended the trial, for the journal."""
        self.failure = exc
        super().handle_error(exc)

    def should_recover(self) -> bool:
        """Whether Tune starts the trial again, in a new slot, from its last pointer."""
        return isinstance(self.failure, RayActorError) and bool(super().should_recover())


class Places:
    """The trials that hold a place in the cluster, by Tune's own word on which of them wait.

    Args:
        idle: what warm slots without a trial hold.
        clock: monotonic seconds.
        most: trials at a time; None is as many as there is room for.
    """

    def __init__(
        self,
        room: Room,
        idle: Callable[[], Sequence[Shape]],
        clock: Callable[[], float] = time.monotonic,
        most: int | None = None,
    ) -> None:
        self._room, self._idle, self._clock, self._most = room, idle, clock, most
        self._held: dict[str, tuple[Trial, Shape]] = {}
        self._refused: dict[Shape, float] = {}
        self._refused_beside: object = None

    def has_room(self, shape: Shape) -> bool:
        """Whether one more trial of a shape fits and may run; the only one always does."""
        # Tune pauses a trial when its slot can serve another one, no sooner: then its place is free
        self._held = {name: held for name, held in self._held.items() if held[0].status != Trial.PAUSED}
        if self._most is not None and len(self._held) >= self._most:
            return False
        shapes, idle = {name: held[1] for name, held in self._held.items()}, self._idle()
        if not shapes:
            return True
        if (shapes, idle) != self._refused_beside:
            self._refused, self._refused_beside = {}, (shapes, idle)
        if self._clock() < self._refused.get(shape, float("-inf")) + LOOK_AGAIN_S:
            return False
        fits = self._room(shape, list(shapes.values()), idle)
        if not fits:
            self._refused[shape] = self._clock()
        return fits

    def take(self, trial: Trial, shape: Shape) -> None:
        """Note a trial that starts."""
        self._held[trial.trial_id] = (trial, shape)

    def held(self, trial: str) -> Shape | None:
        """The shape of what a trial holds."""
        return self._held[trial][1] if trial in self._held else None

    def free(self, trial: str) -> None:
        """Note a trial that ended."""
        self._held.pop(trial, None)


@dataclass(frozen=True)
class Waiting:
    """What the scheduler has to say about waiting trials.

    `is_paused` by trial name, for a trial that is about to be handed to Tune; `has_ready`: whether one waits only for room;
    `population`: every trial waits for the scheduler's choice, also at its beginning; `pauses`: whether any trial ever waits;
    `idle`: what each warm slot without a trial asked Tune for.
    """

    is_paused: Callable[[str], bool] = lambda trial: False
    has_ready: Callable[[], bool] = lambda: False
    population: bool = False
    pauses: bool = False
    idle: Callable[[], Sequence[Any]] = list


class TrialSource(SearchAlgorithm):
    """Hands Tune one trial after another.

    Args:
        recipe: the whole sweep's.
        run: what every slot must know of the run, plain JSON; goes into each trial's config.
        state: the sweep so far; kept up to date by whoever records.
        searcher: gives the points.
        waiting: what the scheduler has to say.
        shape_of: the shape of a trial's recipe.
        room: whether one more trial of a shape fits beside the live ones.
        record: writes a journal entry: (kind, trial, **facts).
        admit: what becomes of a suggested point, by whether it fits.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: dict[str, Any],
        state: SweepState,
        searcher: Searcher,
        waiting: Waiting,
        *,
        shape_of: Callable[[Recipe], Shape],
        room: Room,
        record: Record,
        admit: Admit = admit_all,
    ) -> None:
        self._admit = admit
        self._recipe, self._run, self._state = recipe, run, state
        self._searcher, self._waiting = searcher, waiting
        self._unfinished = deque(state.unfinished())
        self._index = len(state.trials)
        self._wanted = trials_wanted(recipe)
        self._shape_of, self._record = shape_of, record
        self._slivers = Slivers()
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._places = Places(room, self._idle, most=recipe.search.at_once)
        self._shapes_differ = any(key.startswith("resources.") for key in recipe.search.space)
        self._spec: dict[str, Any] = {}
        self._staged: TrialState | None = None
        self._staged_at = 0
        self._trials: dict[str, Trial] = {}
        self._open: set[str] = set()

    @property
    def total_samples(self) -> int:
        """How many trials this driver will start."""
        return len(self._unfinished) + max(0, self._wanted - self._index)

    def add_configurations(self, experiments: Any) -> None:
        """Take Tune's description of the experiment: where its scratch files go, and what to run."""
        experiment = experiments[0] if isinstance(experiments, list) else experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        """The next trial, or None while there is no room for it or none is left."""
        staged = self._next_state()
        if staged is None:
            return None
        is_new = staged.trial == trial_name(self._index)
        waits = self._waiting.population or (not is_new and self._waiting.is_paused(staged.trial))
        shape = self._shape(staged)
        if not waits and ((is_new and self._waiting.has_ready()) or not self._places.has_room(shape)):
            return None
        self._staged = None
        if is_new:
            repaired = {"repaired": staged.repaired} if staged.repaired else {}
            self._record("suggested", staged.trial, point=staged.point, of=self._wanted, **repaired)
            self._index += 1
        trial = self._trial(staged, shape)
        if waits:
            trial.set_status(Trial.PAUSED)
        else:
            self._places.take(trial, shape)
        return trial

    def _next_state(self) -> TrialState | None:
        if self._finished:
            return None
        while self._staged is None and self._unfinished:
            state = self._unfinished.popleft()
            self._staged = None if state.ended else state  # stopped by a decision on another one since
        while self._unstarted() and (self._staged is None or self._is_stale(self._staged)):
            self._staged = self._suggestion()
            self._staged_at = self._state.entries
        return self._staged

    def _is_stale(self, staged: TrialState) -> bool:
        """Whether what waited for room is suggested again with what was reported since: when there is room for it, or where another
        point may need less. Not at every report: with Optuna a suggestion costs more than a report does."""
        if self._staged_at == self._state.entries or self._waiting.has_ready():
            return False
        return self._shapes_differ or self._places.has_room(self._shape(staged))

    def _suggestion(self) -> TrialState | None:
        """The next trial; None when it cannot run: that is written, and the one after it is next."""
        name = trial_name(self._index)
        admitted = self._admit(self._searcher.suggest(self._index))
        if admitted.failure is not None:
            self._record("dropped", name, point=admitted.point, of=self._wanted, **admitted.failure)
            self._index += 1
            return None
        return TrialState(name, admitted.point, repaired=admitted.repaired)

    def _unstarted(self) -> bool:
        """Whether a new trial is the next."""
        return self._index < self._wanted and (self._staged is None or self._staged.trial == trial_name(self._index))

    def _trial(self, state: TrialState, shape: Shape) -> Trial:
        most_lost = self._recipe.failures.max_lost_workers
        trial = SlotTrial(
            self._spec["run"],
            config=self._config(state, shape),
            trial_id=state.trial,
            storage=self._spec["storage"],
            evaluated_params=state.point,
            experiment_tag=state.trial,
            placement_group_factory=self._slivers.request(shape),
            checkpoint_config=self._spec["checkpoint_config"],
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=most_lost,
        )
        # a driver before this one may have used up some of it
        trial.run_metadata.num_failures = min(most_lost, state.losses.get("slot", 0))
        self._trials[state.trial] = trial
        self._open.add(state.trial)
        return trial

    def _idle(self) -> list[Shape]:
        """What warm slots without a trial hold; a slot with fresh processes for every trial holds none between two."""
        warm = self._recipe.resources.isolation == "warm"
        return self._slivers.shapes(self._waiting.idle()) if warm else []

    def _shape(self, state: TrialState) -> Shape:
        """What the trial takes from where it stands, to the next rung at least."""
        key = (*sorted(state.point.items()), state.fraction)
        if key not in self._shapes:  # asked for many times a second while a trial waits
            recipe = apply_point(self._recipe, state.point)
            self._shapes[key] = self._shape_of(with_workers(recipe, workers_at(recipe, state.fraction)))
        return self._shapes[key]

    def _config(self, state: TrialState, shape: Shape) -> dict[str, Any]:
        """What the slot must know; all of it from the journal."""
        # as it was admitted; one taken over from another trial, or taken up on a smaller cluster, may need repair or not fit
        admitted = self._admit(state.point)
        return {
            "trial": state.trial,
            "point": admitted.point,
            "failure": admitted.failure,
            "reached": state.fraction,
            "life": len(state.lineage),
            "lost": dict(state.losses),
            "adapted": dict(state.adapted),
            "workers": shape.workers,
            "run": self._run,
        }

    # What the conductor asks.

    def trial(self, name: str) -> Trial | None:
        """Tune's trial of that name, once it was handed to Tune."""
        return self._trials.get(name)

    def start(self, trials: Sequence[Trial]) -> Trial | None:
        """Take a place for the first of these waiting trials that fits, and give it what it has from there on.

        None: none fits, or the sweep is stopping.
        """
        if self._finished:
            return None
        too_big: set[Shape] = set()
        for trial in trials:
            shape = self._shape(self._state.trials[trial.trial_id])
            if shape not in too_big and self._places.has_room(shape):
                self.move(trial, trial.trial_id)
                self._places.take(trial, shape)
                return trial
            too_big.add(shape)
        return None

    def heed(self, entry: Mapping[str, Any]) -> None:
        """What a trial lost, and what it was adapted to, goes with it to its next slot. Called for every journal entry."""
        trial = self._trials.get(entry["trial"] or "")
        if trial is not None and entry["kind"] in {"lost", "adapted"}:
            state = self._state.trials[trial.trial_id]
            trial.set_config({**trial.config, "lost": dict(state.losses), "adapted": dict(state.adapted)})

    def workers(self, trial: Trial) -> int:
        """How many workers a trial that starts holds."""
        held = self._places.held(trial.trial_id)
        return (held or self._shape(self._state.trials[trial.trial_id])).workers

    def move(self, trial: Trial | None, name: str) -> None:
        """Give a trial the config, and the shape, of what the journal now says of it."""
        if trial is not None:
            state = self._state.trials[name]
            shape = self._shape(state)
            trial.set_config(self._config(state, shape))
            trial.placement_group_factory = self._slivers.request(shape)

    # What Tune tells.

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Its place is free again."""
        self._places.free(trial_id)
        self._open.discard(trial_id)

    def is_finished(self) -> bool:
        """Whether every trial has been handed out; where trials wait, also ended, since Tune throws slots away from then on."""
        if self._finished:
            return True
        handed_out = self._staged is None and not self._unfinished and self._index >= self._wanted
        return handed_out and not (self._waiting.pauses and self._open)

    def set_finished(self) -> None:
        """Hand out no more: the sweep is stopping."""
        super().set_finished()
        self._staged = None
