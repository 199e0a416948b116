"""Which trial is next: our own `SearchAlgorithm`, so that trials bear our names and a resume needs nothing of Tune's.

Owns the order (after a resume the unfinished trials first, then new ones up to `search.trials`; ended ones never again), the
number of trials at a time, and the journal entry of each suggestion, written before Tune hears of it. A point is a pure
function of recipe, seed and index (`recipe/`), so there is no state to restore but the count. Called by Tune's controller,
from the driver's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from tlcore.recipe import Recipe, apply_point, grid_points, trial_point
from tlcore.storage.journal import TrialState
from tlcore.sweep.resources import Shape, Slivers

Room = Callable[[Shape, Sequence[Shape]], bool]
Record = Callable[..., Any]


def trial_name(index: int) -> str:
    """The name of trial number `index`: t000, t001, ..."""
    return f"t{index:03d}"


def trials_wanted(recipe: Recipe) -> int:
    """How many trials the sweep has in all; a grid has as many points as it has."""
    if recipe.search.algorithm == "grid":
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


class TrialSource(SearchAlgorithm):
    """Hands Tune one trial after another.

    Args:
        recipe: the whole sweep's.
        run: what every slot must know of the run, plain JSON; goes into each trial's config.
        unfinished: trials of an interrupted driver, in order; they start first.
        known: how many trials were suggested before.
        shape_of: the shape of a trial's recipe.
        room: whether one more trial of a shape fits beside the live ones.
        record: writes a journal entry: (kind, trial, **facts).
    """

    def __init__(
        self,
        recipe: Recipe,
        run: dict[str, Any],
        unfinished: Sequence[TrialState],
        known: int,
        *,
        shape_of: Callable[[Recipe], Shape],
        room: Room,
        record: Record,
    ) -> None:
        self._recipe, self._run = recipe, run
        self._waiting = deque(unfinished)
        self._index = known
        self._wanted = trials_wanted(recipe)
        self._shape_of, self._room, self._record = shape_of, room, record
        self._slivers = Slivers()
        self._live: dict[str, Shape] = {}
        self._spec: dict[str, Any] = {}
        self._staged: TrialState | None = None

    @property
    def total_samples(self) -> int:
        """How many trials this driver will start."""
        return len(self._waiting) + max(0, self._wanted - self._index)

    def add_configurations(self, experiments: Any) -> None:
        """Take Tune's description of the experiment: where its scratch files go, and what to run."""
        experiment = experiments[0] if isinstance(experiments, list) else experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        """The next trial, or None while there is no room for it or none is left."""
        staged = self._next_state()
        if staged is None:
            return None
        shape = self._shape_of(apply_point(self._recipe, staged.point))
        if self._live and not self._room(shape, list(self._live.values())):
            return None
        self._staged = None
        if staged.trial == trial_name(self._index):
            self._record("suggested", staged.trial, point=staged.point)
            self._index += 1
        self._live[staged.trial] = shape
        return self._trial(staged, shape)

    def _next_state(self) -> TrialState | None:
        if self._staged is not None or self._finished:
            return self._staged
        if self._waiting:
            self._staged = self._waiting.popleft()
        elif self._index < self._wanted:
            point = trial_point(self._recipe, self._recipe.train.seed, self._index)
            self._staged = TrialState(trial_name(self._index), point)
        return self._staged

    def _trial(self, state: TrialState, shape: Shape) -> Trial:
        return SlotTrial(
            self._spec["run"],
            config={"trial": state.trial, "point": state.point, "reached": state.fraction, "run": self._run},
            trial_id=state.trial,
            storage=self._spec["storage"],
            evaluated_params=state.point,
            experiment_tag=state.trial,
            placement_group_factory=self._slivers.request(shape),
            checkpoint_config=self._spec["checkpoint_config"],
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=self._recipe.failures.max_lost_workers,
        )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Its place is free again."""
        self._live.pop(trial_id, None)

    def is_finished(self) -> bool:
        """Whether every trial has been handed out."""
        return bool(self._finished) or (self._staged is None and not self._waiting and self._index >= self._wanted)

    def set_finished(self) -> None:
        """Hand out no more: the sweep is stopping."""
        super().set_finished()
        self._staged = None
