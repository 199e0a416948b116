"""BOHB's model: where good points are dense and bad ones are not (Falkner, Klein and Hutter 2018), in our code.

Owns the model. After the paper and its reference implementation: results are modelled at the deepest rung that has enough of
them; the good share and the rest each get a product of kernel densities, Gaussian for ranges (on a logarithmic scale where the
domain is), Aitchison and Aitken's for lists; candidates are drawn around good points with widened kernels and the one with the best
ratio of densities is taken; a fixed share of points is drawn at random. A setting that a point does not have is filled in at random
for the model. `TuneBOHB` needs hpbandster, of 2018; this needs numpy. Called by `searchers.py`.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.recipe import Domain, Point, Recipe, trial_point
from tlcore.recipe.domains import contains, draw, from_unit, same_value, unit_of
from tlcore.recipe.space import complete
from tlcore.storage.journal import Entry

Floats = npt.NDArray[np.float64]

CANDIDATES: Final = 64
WIDENED: Final = 3.0
"""Candidates are drawn with bandwidths this factor wider, so that they leave the good points."""
_SMALLEST: Final = 1e-3
"""Smallest bandwidth: all good points may agree."""
_TINY: Final = 1e-32
_DIGITS: Final = 9


class Density:
    """A product kernel density over points encoded as one number per setting: a place in [0, 1], or a list's index.

    Args:
        points: one row per point.
        sizes: per setting the length of its list, 0 for a range.
    """

    def __init__(self, points: Floats, sizes: Sequence[int]) -> None:
        self.points, self.sizes = points, sizes
        count, dimensions = points.shape
        spread = points.std(axis=0, ddof=1) if count > 1 else np.zeros(dimensions)
        scott = count ** (-1.0 / (4 + dimensions))
        self.widths = np.maximum(_SMALLEST, 1.06 * spread * scott)
        for column, size in enumerate(sizes):
            if size:
                self.widths[column] = min(self.widths[column], (size - 1) / size)

    def at(self, point: Floats) -> float:
        """The density at a point."""
        kernels = np.ones(len(self.points))
        for column, size in enumerate(self.sizes):
            width, away = self.widths[column], self.points[:, column] - point[column]
            if size > 1:
                kernels *= np.where(away == 0, 1 - width, width / (size - 1))
            elif not size:
                kernels *= np.exp(-0.5 * (away / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return float(kernels.mean())

    def draw(self, rng: random.Random) -> Floats:
        """A point near one of the density's own."""
        near: Floats = self.points[rng.randrange(len(self.points))].copy()
        for column, size in enumerate(self.sizes):
            width = self.widths[column]
            if size:
                near[column] = near[column] if rng.random() < 1 - width else rng.randrange(size)
            else:
                near[column] = _cut_normal(near[column], WIDENED * width, rng)
        return near


def _cut_normal(mean: float, width: float, rng: random.Random) -> float:
    """A normal draw inside [0, 1]."""
    for _ in range(100):
        if 0.0 <= (value := rng.gauss(mean, width)) <= 1.0:
            return value
    return rng.random()


class DensitySearcher:
    """BOHB's model over a recipe's space."""

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.search.algorithm.bohb
        assert settings is not None
        self._recipe, self._settings = recipe, settings
        self._space = dict(recipe.search.space)
        self._sign = -1.0 if recipe.search.mode == "max" else 1.0
        self._sizes = [len(domain.choice or domain.grid or ()) for domain in self._space.values()]
        self._points: dict[str, Point] = {}
        self._losses: dict[float, dict[str, float]] = defaultdict(dict)

    def suggest(self, index: int) -> Point:
        """A fixed first point; a random one now and then, and while there is no model; else the model's."""
        seed = self._recipe.train.seed
        rng = random.Random(f"{seed}/{index}/bohb")
        if index < len(self._recipe.search.first) or rng.random() < self._settings.random_share:
            return trial_point(self._recipe, seed, index)
        densities = self._densities(rng)
        if densities is None:
            return trial_point(self._recipe, seed, index)
        good, bad = densities
        candidates = [good.draw(rng) for _ in range(CANDIDATES)]
        best = max(candidates, key=lambda point: max(good.at(point), _TINY) / max(bad.at(point), _TINY))
        given = {key: self._decoded(column, best[column]) for column, key in enumerate(self._space)}
        return complete(self._recipe, given, lambda _, domain: draw(domain, rng))

    def observe(self, entry: Entry) -> None:
        """Suggestions and results."""
        kind, metric = entry["kind"], self._recipe.search.metric
        if kind == "warmed":
            for number, used in enumerate(entry["used"]):
                name = f"{entry['source']}#{number}"
                self._points[name] = dict(used["point"])
                self._note(name, used["fraction"], used["metrics"].get(metric))
        elif kind == "suggested":
            self._points[entry["trial"]] = dict(entry["point"])
        elif kind == "result":
            self._note(entry["trial"], entry["fraction"], entry["metrics"].get(metric))

    def _note(self, trial: str, fraction: float, value: float | None) -> None:
        # what was not finite is worse than anything
        self._losses[round(fraction, _DIGITS)][trial] = math.inf if value is None else self._sign * value

    def _densities(self, rng: random.Random) -> tuple[Density, Density] | None:
        """Of good and bad points at the deepest rung that has enough of both; None when none has."""
        least = len(self._space) + 1
        for depth in sorted(self._losses, reverse=True):
            losses = self._losses[depth]
            if len(losses) < least + 2:
                continue
            ordered = sorted(losses, key=lambda trial: (losses[trial], trial))
            good = max(least, int(self._settings.good_share * len(ordered)))
            bad = max(least, len(ordered) - good)
            parts = (ordered[:good], ordered[-bad:])
            rows = [np.array([self._encoded(self._points[trial], rng) for trial in part]) for part in parts]
            return Density(rows[0], self._sizes), Density(rows[1], self._sizes)
        return None

    def _encoded(self, point: Mapping[str, Any], rng: random.Random) -> list[float]:
        row = []
        for key, domain in self._space.items():
            value = point[key] if key in point and contains(domain, point[key]) else draw(domain, rng)
            row.append(_place(domain, value))
        return row

    def _decoded(self, column: int, place: float) -> Any:
        domain = list(self._space.values())[column]
        listed = domain.choice or domain.grid
        return listed[int(place)] if listed is not None else from_unit(domain, place)


def _place(domain: Domain, value: Any) -> float:
    listed = domain.choice or domain.grid
    if listed is not None:
        return float(next(place for place, one in enumerate(listed) if same_value(one, value)))
    return unit_of(domain, value)
