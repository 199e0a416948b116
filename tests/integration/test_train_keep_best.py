"""`checkpoint.keep_best` where the recipe also saves by epochs: a report's checkpoint says what was measured there.

One gloo rank in this process, a real DeepSpeed engine, a directory as the store.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.small_model import make_small_bert
from tlcore.checkpoint import list_manifests, read_manifest, verify
from tlcore.engine.process import prepare_process
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.storage import create_run, open_store

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"
EPOCHS = 4


def small_recipe(home: Path, **checkpoint: int) -> Recipe:
    return recipe_from_dict(
        {
            "name": "keep-best",
            "task": "text-classification",
            "model": {"source": str(make_small_bert(home / "model"))},
            "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
            "train": {"global_batch_size": 40, "epochs": EPOCHS},
            "search": {"metric": "eval_accuracy"},
            "checkpoint": checkpoint,
            "storage": f"file://{home}/store",
        }
    )


def test_the_best_checkpoint_stays_though_every_epoch_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save by epochs came first and had no metrics, and the report's, of the same step, was none."""
    prepare_process()
    from tlcore.train.group import process_group
    from tlcore.train.session import TrialSession

    recipe = small_recipe(tmp_path, every_epochs=1, every_steps=3, keep_last=1, keep_best=1)
    qualities = dict(zip(range(1, EPOCHS + 1), (0.3, 0.9, 0.5, 0.4), strict=True))
    url = create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "0").url
    with process_group():
        session = TrialSession(recipe, url, "t000", resume_step=0)
        measure = session._evaluate
        epoch = 0
        monkeypatch.setattr(session, "_evaluate", lambda: {**measure(), "eval_accuracy": qualities[epoch]})
        steps = []
        for epoch in qualities:
            steps.append(session.advance(epoch / EPOCHS).step)
        session.close()
    store = open_store(url)
    assert [step % 3 for step in steps] != [0] * EPOCHS
    assert list_manifests(store, "t000") == [steps[1], steps[-1]]
    assert read_manifest(store, "t000", steps[1]).metrics["eval_accuracy"] == 0.9


def test_a_checkpoint_left_at_a_reports_step_gets_its_metrics_after_the_resume(tmp_path: Path) -> None:
    """It was committed before the evaluation, and never was the best whatever the resumed trial measured there."""
    prepare_process()
    from tlcore.train.group import process_group
    from tlcore.train.session import TrialSession

    recipe = small_recipe(tmp_path, every_epochs=1)
    url = create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "0").url
    with process_group():
        session = TrialSession(recipe, url, "t000", resume_step=0)
        while session.step < session.order.steps_per_epoch:
            session.train_step()
        session.interrupt()
        assert session.advance(1 / EPOCHS).interrupted
        session.close()
        step = session.step
        assert not read_manifest(open_store(url), "t000", step).metrics
        session = TrialSession(recipe, url, "t000")
        assert session.step == step
        report = session.advance(1 / EPOCHS, commit=True)
        session.close()
    found = read_manifest(open_store(url), "t000", step)
    assert report.step == step and found.metrics == report.metrics
    assert not verify(open_store(url), found)
