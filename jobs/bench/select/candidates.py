"""What a set of candidates is, and how one of them is trained: for `__main__.py`, by `snippets.py` and `photos.py`.

Owns the size of a comparison, the trial that fine-tunes, and how a candidate is tuned on other data than the target's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tlcore.recipe import Recipe, apply_point, load_recipe, recipe_from_dict

if TYPE_CHECKING:
    from tlcore.train.session import TrialSession

RECIPES: Final = Path(__file__).resolve().parents[2] / "recipes"
RESULT: Final = "test_accuracy"


@dataclass(frozen=True)
class Size:
    """Rows to train on and for how many epochs, rows to judge by, seeds."""

    train_rows: int
    epochs: int
    test_rows: int
    seeds: int


@dataclass(frozen=True)
class Candidates:
    """Sources for one target.

    Args:
        prepare: puts the data below a directory, which `make` and `recipe_of` are then given.
        make: name -> source, but for those to be left out; needs a process group.
        recipe_of: the target's training from a source, for some epochs.
        names: of all sources.
    """

    prepare: Callable[[Path, Size], None]
    make: Callable[[Path, frozenset[str]], dict[str, str]]
    recipe_of: Callable[[Path, str, int], Recipe]
    names: tuple[str, ...]
    full: Size
    quick: Size


def one_process(recipe: str, changes: Mapping[str, Any], home: Path) -> Recipe:
    """A recipe of `jobs/recipes`, changed section by section, in one process and without a search."""
    raw = load_recipe(RECIPES / recipe).to_dict()
    alone = {"name": "bench-select", "resources": {"workers": 1}, "storage": str(home / "store")}
    for section, values in {**changes, **alone}.items():
        raw[section] = {**raw[section], **values} if isinstance(values, Mapping) else values
    return recipe_from_dict({**raw, "search": {}, "report": {}})


def open_session(recipe: Recipe) -> TrialSession:
    """A trial of its own run, from the start."""
    from tlcore.storage import create_run
    from tlcore.train.session import TrialSession

    run = create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "bench")
    return TrialSession(recipe, run.url, "t000", resume_step=0)


def fine_tune(recipe: Recipe, seed: int, name: str) -> float:
    """The result under a seed, which draws the head, the held-out rows and the order."""
    session = open_session(apply_point(recipe, {"train.seed": seed}))
    while session.step < session.total_steps:
        session.train_step()
    result = float(session.test(session.step)[RESULT])
    session.close()
    print(f"{name}, seed {seed}: {RESULT} {result:.4f}", file=sys.stderr, flush=True)
    return result


def tuned(home: Path, recipe: Recipe) -> str:
    """Trained by this recipe and exported, as `tlcore train` and `tlcore export` do; the source it is now."""
    from tlcore.train.export import export_checkpoint

    session = open_session(recipe)
    while session.step < session.total_steps:
        session.train_step()
    saved = session.save()
    session.close()
    return export_checkpoint(str(saved), str(home))
