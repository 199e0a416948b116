"""Whether `tlcore select` ranks sources as fine-tuning does: Kendall's tau between its scores and real results.

    python -m jobs.bench.select --json                  seven sources for movie snippets, three seeds each
    python -m jobs.bench.select --target photos --json  six for photos of six kinds

Owns the comparison and what is said of it; the sources and their data are `snippets.py`'s and `photos.py`'s, the trials
`candidates.py`'s. Each candidate is scored on the training rows as the command does, then fine-tuned on them by the target's
recipe, under each seed; its result is the mean accuracy on the test rows, which no score has seen.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.bench.agreement import Agreement, kendall
from jobs.bench.select.candidates import RESULT, Candidates, Size, fine_tune
from jobs.bench.select.photos import PHOTOS
from jobs.bench.select.snippets import SNIPPETS
from tlcore.recipe import Recipe

if TYPE_CHECKING:
    from tlcore.transfer.select import Candidate

TARGETS: Final[Mapping[str, Candidates]] = {"snippets": SNIPPETS, "photos": PHOTOS}
TARGET_P: Final = 0.05
SCORES: Final = ("logme", "h_score", "probe", "similarity")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    candidates = TARGETS[options.target]
    unknown = sorted(set(options.without) - set(candidates.names))
    if unknown:
        print(f"--without: no source {unknown[0]!r}; there are {', '.join(candidates.names)}", file=sys.stderr)
        return 2
    figures = measure(candidates, candidates.quick if options.quick else candidates.full, frozenset(options.without))
    print(json.dumps(figures, indent=1) if options.json else table(figures))
    return 0 if figures["p_order"] < TARGET_P else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.select", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--target", choices=tuple(TARGETS), default="snippets", help="what the sources are for")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="SOURCE", help="leave these out: smollm2 takes longest"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="one seed of few rows: does it run at all")
    return parser.parse_args(arguments)


def measure(candidates: Candidates, size: Size, without: frozenset[str]) -> dict[str, Any]:
    """Score every candidate, fine-tune every candidate, compare."""
    from tlcore.engine.process import prepare_process

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as name:
        home = Path(name)
        candidates.prepare(home, size)
        prepare_process(threads=2)
        from tlcore.train.group import process_group
        from tlcore.transfer.select import rank_sources

        with process_group():
            sources = candidates.make(home, without)
            recipes = {each: candidates.recipe_of(home, source, size.epochs) for each, source in sources.items()}
            ranked = rank_sources(next(iter(recipes.values())), list(recipes.values()), size.train_rows)
            for each in ranked:
                print(json.dumps(each.to_dict()), file=sys.stderr, flush=True)
            results = fine_tune_all(recipes, size.seeds)
    named = {source: each for each, source in sources.items()}
    figures = summarize({named[each.source]: each for each in ranked}, results)
    return {**figures, "size": vars(size), "wall_s": round(time.monotonic() - began)}


def fine_tune_all(recipes: Mapping[str, Recipe], seeds: int) -> dict[str, list[float]]:
    """Results by candidate; seeds are the outer loop, so that the log of a run that was stopped has whole comparisons."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in range(seeds):
        for name, recipe in recipes.items():
            found[name].append(fine_tune(recipe, seed, name))
    return found


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
