"""A slot: the Tune `Trainable` that runs one trial after another in one warm worker group.

Owns what a trial is to Tune: a step is the way to the next report fraction, a checkpoint is a pointer of a few bytes to a committed
manifest, a reset is the next trial in the same processes. Owns also what happens when a command is lost: the trial is started again
from its newest manifest, in the restarted group or a new one, and the command is repeated, as long as `recovery.py` says so.
Does not own the ranks (`group.py`), the training (`train/`) or any decision of the search. Made by Tune; its `config` is what
`search.py` put in: {"trial", "point", "failure", "reached", "life", "lost", "adapted", "workers", "run": {...}}, all plain JSON
values; with a failure the point cannot fit, and the trial ends as it is to begin. A life begins when the trial takes over another
one's state; its checkpoint is then in the store as the trial's own, and pointers of an earlier life say nothing. A trial that has
more workers from a rung on comes back to a slot of that shape and is restored there at that world size.

Where the scheduler may have a trial wait or take it as a donor, the report waits for the checkpoint to be committed.

When the sweep is being stopped the ranks end their step, commit it and say so; the step then raises `Cancelled`, as it does at once
where they are no longer waited for, and the driver knows that for no failure.

The worker group is replaced before the next trial when the trial failed, when a rank has kept too much of the trials before
(`slot_memory.py`), and always with `resources.isolation: process`.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune

from tlcore.checkpoint import newest_step
from tlcore.errors import (
    CannotFit,
    CheckpointIncompatible,
    StorageThrottled,
    StorageUnreachable,
    SweepError,
    TlcoreError,
)
from tlcore.recipe import Recipe, apply_point, recipe_from_dict, report_fractions, scheduler_fractions, with_workers
from tlcore.storage import open_store
from tlcore.sweep.cluster.resources import Cluster, Shape, can_avoid, shape_of
from tlcore.sweep.slots.board import find_board
from tlcore.sweep.slots.failures import StartFailed
from tlcore.sweep.slots.group import Cancelled, GroupLost, GroupSettings, WorkerGroup
from tlcore.sweep.slots.recovery import MENDABLE, Recovery
from tlcore.sweep.slots.slot_memory import Growth

POINTER: Final = "pointer.json"
TIME_ATTR: Final = "progress"
REPORT: Final = "report"
_EPSILON: Final = 1e-9


def next_fraction(fractions: tuple[float, ...], reached: float) -> float:
    """The first report fraction after `reached`; the last one when there is none."""
    return next((fraction for fraction in fractions if fraction > reached + _EPSILON), fractions[-1])


def slot_name(actor_id: str) -> str:
    """A slot's name in journal and logs, from its Ray actor's id (hex)."""
    return actor_id[:12]


class Slot(tune.Trainable):
    """One trial at a time, warm. Tune calls setup or reset_config, then load_checkpoint, step, save_checkpoint, and cleanup."""

    def setup(self, config: dict[str, Any]) -> None:
        """Note the first trial; the workers start with its first step."""
        self._slot = slot_name(ray.get_runtime_context().get_actor_id())
        self._group: WorkerGroup | None = None
        self._open: str | None = None  # the trial whose session the ranks hold
        self._groups = 0
        self._growth: Growth | None = None
        self._healthy = True
        self._board = find_board(config["run"]["board"])
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Note the next trial. Returns at once, so that Tune may hand on other cached slots meanwhile."""
        self._finish_trial()
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._run: dict[str, Any] = config["run"]
        self._trial: str = config["trial"]
        self._point: dict[str, Any] = config["point"]
        self._failure: dict[str, str] | None = config["failure"]
        self._workers: int = config["workers"]
        self._recipe: Recipe = apply_point(recipe_from_dict(self._run["recipe"]), self._point)
        recipe = with_workers(self._recipe, self._workers)
        self._recovery = Recovery(self._trial, recipe, config["lost"], config["adapted"], self._tell)
        self._fractions = report_fractions(self._recipe)
        self._commits = scheduler_fractions(self._recipe) if self._recipe.search.scheduler.pauses else ()
        self._reached: float = config["reached"]
        self._life: int = config["life"]
        self._checkpoint_step: int | None = None
        self._started = False
        self._replaced: str | None = None
        self._told = False

    def step(self) -> dict[str, Any]:
        """Train to the next report fraction and say how it stands there.

        Returns:
            The metrics, flat; `progress` (fraction of the trial's own epochs), `step`, `done`; and `report`, all of it as JSON
            text, which Tune does not take apart.
        """
        if self._failure is not None:
            raise CannotFit(self._failure["message"], hint=self._failure["hint"])
        fraction = next_fraction(self._fractions, self._reached)
        done = fraction >= self._fractions[-1] - _EPSILON
        self._healthy = False
        command = {"op": "advance", "fraction": fraction, "commit": fraction in self._commits}
        report: dict[str, Any] = self._command(command)
        if report.get("interrupted"):
            self._healthy = True
            raise Cancelled("the sweep is being stopped")
        self._check_metric(report["metrics"])
        if done:
            self._end_session()
        self._healthy = True
        self._reached, self._checkpoint_step = fraction, report["checkpoint_step"]
        facts = {**report, "fraction": fraction, "group": self._group_name(), "told": self._told}
        self._told = False
        if self._replaced is not None:
            facts["group_replaced"], self._replaced = self._replaced, None
        return {
            **report["metrics"],
            TIME_ATTR: fraction,
            "step": report["step"],
            "done": done,
            REPORT: json.dumps(facts),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the pointer to the newest committed manifest; the bytes are in the store already."""
        pointer = {
            "run": self._run["url"],
            "trial": self._trial,
            "life": self._life,
            "step": self._checkpoint_step,
            "fraction": self._reached,
        }
        Path(checkpoint_dir, POINTER).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue after the report that a pointer names. Raises CheckpointIncompatible for another trial's pointer."""
        pointer = json.loads(Path(checkpoint_dir, POINTER).read_text())
        if (pointer["run"], pointer["trial"]) != (self._run["url"], self._trial):
            raise CheckpointIncompatible(
                f"trial {self._trial} was given the checkpoint of trial {pointer['trial']} of {pointer['run']}"
            )
        if pointer["life"] != self._life:
            return  # the state was taken over from another trial since
        # a slot killed between a report and its pointer: the journal, and so the config, knows better than the pointer
        self._reached = max(self._reached, pointer["fraction"])
        self._checkpoint_step = pointer["step"]

    def cleanup(self) -> None:
        """End the session and the worker group."""
        self._close_group()

    def _command(self, command: dict[str, Any]) -> Any:
        """Perform a command in the started trial; after a loss start it again from its newest manifest and repeat."""
        while True:
            try:
                return self._ensure_started().run(command)
            except MENDABLE as error:
                again = self._recovery.mend(error, self._known_step())
                if again.anew:
                    self._close_group()
                time.sleep(again.pause_s)
            self._recipe, self._started, self._open = self._recovery.recipe, False, None

    def _end_session(self) -> None:
        """Have the ranks close their session. Its trial is over, or has committed what it needs: an error now is told as a warning
        of it, and fails neither that trial nor the one that is next here."""
        trial, self._open, self._started = self._open, None, False
        if self._group is None or trial is None:
            return
        try:
            self._group.run({"op": "close"})
        except GroupLost:
            pass  # a rank that died with nothing left to do takes nothing with it
        except StartFailed:
            self._close_group()  # nor does a group that could not be started again; the next trial has another one
        except Cancelled:
            raise
        except TlcoreError as error:
            self._close_group()
            facts = {"error": type(error).__name__, "message": error.message, "rank": error.fields.get("rank")}
            self._tell("warned", **{**facts, "trial": trial})

    def _ensure_started(self) -> WorkerGroup:
        if not self._started:
            self._end_session()
        group = self._ensure_group()
        if not self._started:
            group = self._replace_if_grown(group)
            group.run(
                {
                    "op": "start",
                    "recipe": with_workers(recipe_from_dict(self._run["recipe"]), self._workers).to_dict(),
                    "point": {**self._point, **self._recovery.adapted},
                    "trial": self._trial,
                    "run_url": self._run["url"],
                    "resume_step": self._newest_step(),
                    "inherits": self._life > 0,
                }
            )
            self._started, self._open = True, self._trial
            self._recovery.started()
        return group

    def _replace_if_grown(self, group: WorkerGroup) -> WorkerGroup:
        """Between two trials: the group, or another one where a rank has kept too much of the trials before."""
        if self._growth is None:
            self._growth = Growth(self._recipe.resources.slot_growth_bytes)
            return group
        ranks = group.run_all({"op": "measure"})
        reason = self._growth.judge([ranks[rank] for rank in sorted(ranks)])
        if reason is None:
            return group
        logging.getLogger(__name__).warning("slot %s: the workers are replaced: %s", self._slot, reason)
        self._replaced = reason
        self._close_group()
        self._growth = Growth(self._recipe.resources.slot_growth_bytes)
        return self._ensure_group()

    def _ensure_group(self) -> WorkerGroup:
        shape = shape_of(with_workers(self._recipe, self._workers), self._run["cluster_has_gpus"])
        avoid = self._avoid(shape) if not self._started else ()
        if self._group is not None and not self._group.serves(shape, avoid):
            self._close_group()
        if self._group is None:
            self._groups += 1
            settings = GroupSettings(
                shape,
                self._run["session"],
                self._run["board"],
                Path(self._run["scratch"]),
                self._group_name(),
                self._recipe.failures.hang_minutes * 60,
                avoid,
            )
            self._group = WorkerGroup(settings)
            if not ray.get(self._board.register.remote(self._slot, self._group.mailbox)):
                raise Cancelled("the sweep is being stopped")
            self._group.launch()
        self._group.await_ranks(self._recovery.room)
        return self._group

    def _avoid(self, shape: Shape) -> tuple[str, ...]:
        """Nodes that the sweep avoids, unless a trial of this shape has nowhere else to go."""
        avoid: list[str] = ray.get(self._board.avoided.remote())
        return tuple(avoid) if avoid and can_avoid(Cluster().nodes(), avoid, shape) else ()

    def _tell(self, kind: str, **facts: Any) -> None:
        """Have the driver write this into the journal; it is on its way when this returns."""
        ray.get(self._board.tell.remote({"kind": kind, "trial": self._trial, **facts}))
        self._told = True

    def _newest_step(self) -> int | None:
        return newest_step(open_store(self._run["url"]), self._trial)

    def _known_step(self) -> int | None:
        """The newest step to go on from; None also where the store does not say."""
        with suppress(StorageUnreachable, StorageThrottled):
            return self._newest_step()
        return None

    def _check_metric(self, metrics: dict[str, float]) -> None:
        for wanted in self._run["metrics"]:
            if wanted not in metrics:
                raise SweepError(
                    f"search.metric {wanted!r} is not among what trial {self._trial} measured: {', '.join(sorted(metrics))}",
                    hint="set search.metric to one of these",
                )

    def _finish_trial(self) -> None:
        if not self._healthy or self._recipe.resources.isolation == "process":
            self._close_group()

    def _close_group(self) -> None:
        group, self._group, self._growth, self._open = self._group, None, None, None
        if group is not None:
            group.close(self._healthy)

    def _group_name(self) -> str:
        return f"{self._slot}-{self._groups}"
