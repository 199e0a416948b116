"""The live table and what the recipe's `track` asks for, as one display.

Owns the choice of boards. One that cannot be written at all is refused before the sweep begins. Called by the commands.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlcore.errors import RequestError
from tlcore.recipe import Recipe
from tlcore.report.tracking.behind import Behind
from tlcore.report.tracking.curves import Board, BoardLost, Curves, Shown
from tlcore.report.view import SweepView
from tlcore.storage.journal import Entry


class Together:
    """Several displays as one."""

    def __init__(self, displays: Sequence[Shown]) -> None:
        self._displays = displays

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        for display in self._displays:
            display.on_event(event)

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress of running trials."""
        for display in self._displays:
            display.on_progress(snapshot)

    def close(self) -> None:
        """Close all."""
        for display in self._displays:
            display.close()


@contextmanager
def tracked(recipe: Recipe, view: SweepView, display: Shown, say: Callable[[str], None]) -> Iterator[Shown]:
    """`display`, which its opener closes, and beside it what the recipe's `track` asks for.

    Args:
        say: is told at the end what could not be written.

    Raises:
        RequestError: a tracker's package is not installed, or it lets nobody write.
    """
    boards = _boards(recipe, view, say)
    if not boards:
        yield display
        return
    try:
        yield Together([display, *boards])
    finally:
        Together(boards).close()


def _boards(recipe: Recipe, view: SweepView, say: Callable[[str], None]) -> list[Shown]:
    track, place = recipe.track, Path("runs") / recipe.name
    boards: list[Shown] = []
    if track.tensorboard:
        from tlcore.report.tracking.tensorboard import TensorBoard

        board = _made("tensorboard", "false", lambda: TensorBoard(place / "tensorboard"))
        boards.append(Behind(Curves(board, view), "tensorboard", say))
    if track.mlflow is not None:
        _need("mlflow")
        from tlcore.report.tracking.mlflow import Mlflow

        experiment = track.mlflow
        board = _made("mlflow", "null", lambda: Mlflow(experiment, recipe.name))
        boards.append(Behind(Curves(board, view), "mlflow", say))
    if track.wandb is not None:
        _need("wandb")
        from tlcore.report.tracking.wandb import WeightsAndBiases

        project = track.wandb
        board = _made("wandb", "null", lambda: WeightsAndBiases(project, recipe.name, place))
        boards.append(Behind(Curves(board, view), "wandb", say))
    return boards


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RequestError(
            f"track.{package}: the package {package} is not installed here",
            hint="pip install 'tlcore[tracking]', where the command runs; or set it to null",
        )


def _made(name: str, off: str, make: Callable[[], Board]) -> Board:
    try:
        return make()
    except BoardLost as lost:
        raise RequestError(f"track.{name}: {lost}", hint=f"mend that, or set track.{name} to {off}") from lost
