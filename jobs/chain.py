"""Recipes one after the other, each from the weights that the one before ended with: from domain to domain, or from task to task.

    python -m jobs.chain jobs/recipes/domain_movie.yaml jobs/recipes/domain_product.yaml jobs/recipes/domain_tweet.yaml

Owns the order, and what is handed on: the URL of the best trial's best checkpoint, as the `model.source` of the next recipe, in
place of its own. Everything else is the command's: a recipe with a search space is swept, another one trained, and each is a run
like any other. So every recipe is valid by itself, and run by itself it is what the chain's is to be compared with. Called by
`make chain`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tlcore import cli
from tlcore.checkpoint import CheckpointRef
from tlcore.commands.options import overrides
from tlcore.errors import CheckpointError, ObjectMissing, RequestError, TlcoreError
from tlcore.recipe import Recipe, load_recipe
from tlcore.report.runs import StoredRun, read_run
from tlcore.storage import ensure_embedded, newest_run

DATA: Final = "s3://tlcore/data"
"""Where the recipes of this repository have their data; what `--data` stands in place of."""


@dataclass(frozen=True)
class Link:
    """One run of the chain. `source` is what it started from, `checkpoint` what the next one starts from."""

    name: str
    source: str
    checkpoint: str
    metrics: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    links: list[Link] = []
    try:
        _check([_load(file, options, None) for file in options.recipes])
        for file in options.recipes:
            source = links[-1].checkpoint if links else None
            recipe = _load(file, options, source)
            if code := cli.main(_words(file, recipe, options, source)):
                return code
            links.append(_link(recipe))
    except TlcoreError as error:
        print(f"chain: {error}", file=sys.stderr)
        return error.exit_code
    print("")
    for link in links:
        told = ", ".join(f"{name} {value:.4f}" for name, value in link.metrics.items())
        print(f"{link.name}: {told}\n  from {link.source}\n  to   {link.checkpoint}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.chain", description=str(__doc__).partition("\n")[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files, in order")
    parser.add_argument("--storage", metavar="URL", help="where all runs are kept, in place of the recipes' own")
    parser.add_argument("--data", metavar="URL", help=f"where the data is that the recipes have at {DATA}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting of every recipe"
    )
    parser.add_argument("--resume", action="store_true", help="go on where a chain of these recipes stopped")
    return parser.parse_args(arguments)


def _load(file: str, options: argparse.Namespace, source: str | None) -> Recipe:
    """The recipe as it will run. Raises RecipeError."""
    return load_recipe(file, overrides(_settings(file, options, source), storage=options.storage))


def _settings(file: str, options: argparse.Namespace, source: str | None) -> list[str]:
    """`key=value` words; what the chain sets stands last and wins."""
    moved = []
    if options.data:
        data = load_recipe(file, overrides(options.set)).data
        places = {key: getattr(data, key) for key in ("train", "validation", "test")}
        moved = [f"data.{key}={place}" for key, given in places.items() if (place := _moved(given, options.data))]
    return [*options.set, *moved, *([f"model.source={source}"] if source else [])]


def _moved(place: Any, data: str) -> str | None:
    """The same place below `data`; None for one that is not the repository's."""
    if not isinstance(place, str) or not place.startswith(f"{DATA}/"):
        return None
    return data.rstrip("/") + place.removeprefix(DATA)


def _check(recipes: Sequence[Recipe]) -> None:
    """Raise RequestError for two runs of one name: the second would be taken for the first one's resume."""
    names = [recipe.name for recipe in recipes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"two recipes of the chain are named {twice!r}", hint="give each its own name")


def _words(file: str, recipe: Recipe, options: argparse.Namespace, source: str | None) -> list[str]:
    """The command that runs one recipe."""
    words = ["sweep" if recipe.search.space else "train", file]
    words += [word for setting in _settings(file, options, source) for word in ("--set", setting)]
    words += ["--storage", options.storage] if options.storage else []
    return [*words, "--resume"] if options.resume and _was_begun(recipe) else words


def _was_begun(recipe: Recipe) -> bool:
    ensure_embedded(recipe.storage)
    try:
        return bool(newest_run(recipe.storage, recipe.name).identity()["digest"] == recipe.digest())
    except ObjectMissing:
        return False


def _link(recipe: Recipe) -> Link:
    """What the newest run of this recipe came to, as the store has it. Raises CheckpointError where nothing can be handed on."""
    run = read_run(newest_run(recipe.storage, recipe.name))
    step = None if run.best is None else run.chosen_step(run.best.trial)
    if run.best is None or step is None:
        raise CheckpointError(f"{run.ref.url} has no checkpoint of a trial with a metric", hint="see tlcore show")
    checkpoint = CheckpointRef(run.ref.url, run.best.trial, step)
    return Link(recipe.name, recipe.model.source, str(checkpoint), _metrics(run))


def _metrics(run: StoredRun) -> dict[str, float]:
    best = run.best
    told = {} if best is None or best.metric is None else {run.view.metric: best.metric}
    return {**told, **run.final}


if __name__ == "__main__":
    sys.exit(main())
