"""Which point is tried next: one small interface over random, grid, Optuna and BOHB's model.

Owns the interface and the choice. A searcher knows what it was told, in the journal's own entries, and nothing else: a fresh one
told the same entries suggests the same points, so a resumed sweep has no searcher state to load. The points of `search.first` come
first whatever the searcher. Called by `driver.py` (makes, tells) and `search.py` (asks).
"""

from __future__ import annotations

from typing import Protocol

from tlcore.recipe import Point, Recipe, grid_points, trial_point
from tlcore.storage.journal import Entry


class Searcher(Protocol):
    """Suggests points; every call in the driver's thread."""

    def suggest(self, index: int) -> Point:
        """The point of trial number `index`, which follows from the recipe, the index and what was told so far."""

    def observe(self, entry: Entry) -> None:
        """Take one journal entry, in order; called for every entry, also for those of drivers before this one."""


class Drawn:
    """Random and grid: a point is a pure function of recipe, seed and index, so nothing is learnt."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._grid = grid_points(recipe) if recipe.search.algorithm.grid is not None else None

    def suggest(self, index: int) -> Point:
        """The recipe's own point of that number."""
        if self._grid is not None:
            return dict(self._grid[index])
        return trial_point(self._recipe, self._recipe.train.seed, index)

    def observe(self, entry: Entry) -> None:
        """Nothing is learnt."""


def make_searcher(recipe: Recipe) -> Searcher:
    """The searcher that the recipe names."""
    algorithm = recipe.search.algorithm
    if algorithm.optuna is not None:
        from tlcore.sweep.search.optuna_search import OptunaSearcher

        return OptunaSearcher(recipe)
    if algorithm.bohb is not None:
        from tlcore.sweep.search.densities import DensitySearcher

        return DensitySearcher(recipe)
    return Drawn(recipe)
