"""Whether `tlcore select` ranks sources as fine-tuning does: Kendall's tau between its scores and real results.

    python -m jobs.bench.select --json      six candidates, three seeds each; 25 minutes beside other work

Owns the design and what is said of it; the candidates are `select_sources.py`'s. The movie snippets are fetched once
(`jobs.prepare_sentiment`). Each candidate is scored on the training snippets as the command does, then fine-tuned on them by the
sentiment recipe, under each seed; its result is the mean accuracy on the test snippets, which no score has seen. After one epoch of
480 snippets (27 steps) the cut models still gave every snippet the same class, so that their results were no order: hence two
epochs of 960 (108 steps).

The order that `select` prints is compared with that of the results, and each score by itself. The p is exact: the share of all
orders of so many candidates that agree as well with the results, so six in full agreement give 1/720.

`p_order` below 0.05 is asked for: then the exit status is 0, else 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.bench.agreement import Agreement, kendall
from jobs.bench.snippets import prepare_snippets
from tlcore.recipe import Recipe, apply_point, load_recipe, recipe_from_dict

if TYPE_CHECKING:
    from tlcore.transfer.select import Candidate

RECIPE: Final = Path(__file__).resolve().parents[1] / "recipes" / "sentiment_minilm.yaml"
TARGET_P: Final = 0.05
SCORES: Final = ("logme", "h_score", "probe", "similarity")
RESULT: Final = "test_accuracy"
_HELD_OUT: Final = 0.1
"""Of the training rows: no result is taken from them, but training asks for some."""
_TUNING_EPOCHS: Final = 1


@dataclass(frozen=True)
class Size:
    """Rows to train on and for how many epochs, rows to judge by, seeds."""

    train_rows: int
    epochs: int
    test_rows: int
    seeds: int


FULL: Final = Size(960, 2, 800, 3)
QUICK: Final = Size(64, 1, 64, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    figures = measure(QUICK if options.quick else FULL)
    print(json.dumps(figures, indent=1) if options.json else table(figures))
    return 0 if figures["p_order"] < TARGET_P else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.select", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="one seed of few rows: does it run at all")
    return parser.parse_args(arguments)


def measure(size: Size) -> dict[str, Any]:
    """Score every candidate, fine-tune every candidate, compare."""
    from tlcore.engine.process import prepare_process

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as name:
        home = Path(name)
        prepare(home, size)
        prepare_process(threads=2)
        from jobs.bench.select_sources import make_candidates
        from tlcore.train.group import process_group
        from tlcore.transfer.select import rank_sources

        with process_group():
            sources = make_candidates(home / "sources", tuning(home))
            recipes = {each: recipe_of(home, source, epochs=size.epochs) for each, source in sources.items()}
            ranked = rank_sources(recipes["minilm"], list(recipes.values()), size.train_rows)
            for each in ranked:
                print(json.dumps(each.to_dict()), file=sys.stderr, flush=True)
            results = fine_tune_all(recipes, size.seeds)
    named = {source: each for each, source in sources.items()}
    figures = summarize({named[each.source]: each for each in ranked}, results)
    return {**figures, "size": vars(size), "wall_s": round(time.monotonic() - began)}


def prepare(home: Path, size: Size) -> None:
    """Movie and product snippets below a directory, of movies as many as the size has. Raises RuntimeError."""
    import pyarrow.parquet as pq

    for domain in ("movie", "product"):
        prepare_snippets(home, domain)
    for name, rows in (("train", size.train_rows), ("test", size.test_rows)):
        path = home / "movie" / f"{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, rows), path)


def recipe_of(home: Path, source: str, domain: str = "movie", epochs: int = 1) -> Recipe:
    """The sentiment recipe in one process, from a source, on a part of a domain's snippets."""
    recipe = load_recipe(RECIPE).to_dict()
    data = {"train": f"{home / domain}/train.parquet", "test": f"{home / domain}/test.parquet", "validation": _HELD_OUT}
    changes: dict[str, Any] = {
        "name": "bench-select",
        "model": {"source": source},
        "data": data,
        "train": {"epochs": epochs, "global_batch_size": 16},
        "resources": {"workers": 1},
        "storage": str(home / "store"),
    }
    for section, values in changes.items():
        recipe[section] = {**recipe[section], **values} if isinstance(values, Mapping) else values
    return recipe_from_dict({**recipe, "search": {}})


def tuning(home: Path) -> Recipe:
    """How the tuned candidate came about."""
    from jobs.bench.select_sources import MINILM

    return recipe_of(home, MINILM, "product", _TUNING_EPOCHS)


def fine_tune_all(recipes: Mapping[str, Recipe], seeds: int) -> dict[str, list[float]]:
    """Results by candidate; seeds are the outer loop, so that the log of a run that was stopped has whole comparisons."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in range(seeds):
        for name, recipe in recipes.items():
            found[name].append(fine_tune(recipe, seed, name))
    return found


def fine_tune(recipe: Recipe, seed: int, name: str) -> float:
    """The result under a seed, which draws the head, the held-out rows and the order."""
    from jobs.bench.select_sources import open_session

    session = open_session(apply_point(recipe, {"train.seed": seed}))
    while session.step < session.total_steps:
        session.train_step()
    result: float = session.test()[RESULT]
    session.close()
    print(f"{name}, seed {seed}: {RESULT} {result:.4f}", file=sys.stderr, flush=True)
    return result


def summarize(ranked: Mapping[str, Candidate], results: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Tau and p of the order and of each score; the candidates, the best ranked first."""
    names = sorted(ranked, key=lambda name: ranked[name].rank or len(ranked))
    failed = {name: ranked[name].error for name in names if ranked[name].error}
    if failed:
        raise RuntimeError(f"candidates that could not be scored: {failed}")
    means = {name: statistics.fmean(results[name]) for name in names}
    order = _agreement([-float(ranked[name].rank or 0) for name in names], names, means)
    scores = {key: _agreement([getattr(ranked[name], key) for name in names], names, means) for key in SCORES}
    rows = [
        {
            "name": name,
            "rank": ranked[name].rank,
            **{key: round(getattr(ranked[name], key), 4) for key in SCORES},
            RESULT: round(means[name], 4),
            "seeds": [round(value, 4) for value in results[name]],
        }
        for name in names
    ]
    said = {"tau_order": order.to_dict()["tau"], "p_order": order.to_dict()["p"], "target_p": TARGET_P}
    return {**said, "scores": {key: each.to_dict() for key, each in scores.items()}, "candidates": rows}


def _agreement(scores: Sequence[float], names: Sequence[str], means: Mapping[str, float]) -> Agreement:
    return kendall(scores, [means[name] for name in names])


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'rank':>4}  {'source':<16}" + "".join(f"{key:>12}" for key in (*SCORES, "accuracy"))]
    for row in figures["candidates"]:
        values = "".join(f"{row[key]:12.4f}" for key in (*SCORES, RESULT))
        lines.append(f"{row['rank']:>4}  {row['name']:<16}{values}")
    lines.append(f"order against results: tau {figures['tau_order']:+.3f}, p {figures['p_order']:.4f}")
    lines += [f"{key}: tau {each['tau']:+.3f}, p {each['p']:.4f}" for key, each in figures["scores"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
