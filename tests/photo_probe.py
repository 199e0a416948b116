"""How well frozen features tell the photos of Tux Paint apart, all six kinds of them: a linear probe, cross-validated.

The photos come as `jobs.prepare_photos` cuts them, and reach the model as the task brings them there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import prepare_photos
from jobs.fetch import ASSETS
from jobs.prepared import to_parquet
from tlcore.errors import DataError
from tlcore.recipe import Recipe, load_recipe, recipe_from_dict

RECIPE = Path(__file__).parents[1] / "jobs" / "recipes" / "photos_lite0.yaml"
SPLITS = ("train", "validation", "test")
BATCH = 24
FOLDS, REPEATS = 4, 2

Features = Callable[[Any, Any], dict[str, Any]]
"""From a model and pictures to features by name, each [B, F]."""


def write_photos(home: Path) -> None:
    """train.parquet and test.parquet. Skips the test where the photos cannot be had."""
    try:
        parts = prepare_photos.cut(prepare_photos.fetch_photos(ASSETS.expanduser()))
    except DataError as error:
        pytest.skip(f"no photos here: {error.message}")
    for name, part in zip(prepare_photos.FILES, parts, strict=True):
        (home / name).write_bytes(to_parquet(part, prepare_photos.COLUMNS))


def photo_recipe(home: Path, source: str, side: int, **train: Any) -> Recipe:
    """jobs/recipes/photos_lite0.yaml without its search, from another source, on what `write_photos` wrote."""
    raw = load_recipe(RECIPE).to_dict()
    files = {"train": str(home / "train.parquet"), "test": str(home / "test.parquet"), "image_size": side}
    raw |= {"data": raw["data"] | files, "train": raw["train"] | train, "model": {"source": source}}
    return recipe_from_dict({**raw, "search": {}, "report": {}, "storage": str(home / "store")})


def probe(recipe: Recipe, features: Features, from_scratch: bool = False) -> dict[str, float]:
    """Accuracy on the photos that were left out, by the features' names; `train.seed` draws the weights of a model from scratch."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tlcore.tasks import build_task

    task = build_task(recipe)
    counts = task.load_data(SPLITS)
    model = task.build_model(from_scratch).eval()
    found: dict[str, list[Any]] = {}
    labels: list[Any] = []
    for split in SPLITS:
        for start in range(0, counts[split], BATCH):
            batch = task.collate(split, range(start, min(start + BATCH, counts[split])))
            with torch.no_grad():
                for name, values in features(model, batch["pixel_values"]).items():
                    found.setdefault(name, []).append(values)
            labels.append(batch["labels"])
    folds = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    kinds = torch.cat(labels).numpy()
    return {
        name: float(np.mean(cross_val_score(linear, torch.cat(values).numpy(), kinds, cv=folds)))
        for name, values in found.items()
    }
