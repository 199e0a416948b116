"""Every family that says it works: loss falls, ZeRO 1, 2 and 3 agree with plain torch, restores are bit-exact, exports load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_server import start

from tests.families import images, speech, text
from tlcore.recipe.task_table import TASK_TABLE
from tlcore.tasks.families import FAMILIES

pytestmark = pytest.mark.integration

MAKERS = {**text.MAKERS, **images.MAKERS, **speech.MAKERS}
WORKING = [family.name for family in FAMILIES if not family.lacks]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found for each family chosen in this session of tests, all from one launch."""
    chosen = [item.callspec.params["name"] for item in request.session.items if is_proof(item)]  # type: ignore[attr-defined]
    home = tmp_path_factory.mktemp("families")
    return {
        found["name"]: found
        for found in start("ranks_families", [{"world": 2, "cases": cases(chosen, home)}], home / "ranks")[0]
    }


def is_proof(item: pytest.Item) -> bool:
    return item.name.startswith("test_the_family_works[") and Path(item.path) == Path(__file__)


def cases(names: list[str], home: Path) -> list[dict[str, Any]]:
    made = []
    for name in names:
        place = home / name.replace("/", "-")
        place.mkdir()
        task = name.partition("/")[2]
        made.append({"name": name, "task": task, "storage": f"file://{home}/store", "sections": MAKERS[name](place)})
    return made


def test_what_says_that_it_works_is_what_is_tried_here() -> None:
    assert sorted(MAKERS) == sorted(WORKING)


@pytest.mark.parametrize("name", WORKING)
def test_the_family_works(results: dict[str, Any], name: str) -> None:
    found = results[name]
    plain = found["plain"]
    third = len(plain) // 3
    assert np.mean(plain[-third:]) < 0.95 * np.mean(plain[:third]), "the loss does not fall"
    for stage in (1, 2, 3):
        sharded = found[f"stage{stage}"]
        np.testing.assert_allclose(sharded["whole"], plain, rtol=5e-3, err_msg=f"ZeRO {stage} and plain torch")
        assert sharded["pieced"] == sharded["whole"][len(plain) // 2 :], f"ZeRO {stage}, restored in the middle"
        assert sharded["metrics"] == sharded["metrics_again"]
        expected = TASK_TABLE[name.partition("/")[2]].metrics
        assert set(expected) <= set(sharded["metrics"]), "every metric that the recipe may name is reported"
        assert all(math.isfinite(value) for value in sharded["metrics"].values())
    assert found["losses"][0] == found["losses"][1], "the export and the trained model differ"
    assert found["weights_equal"]
    assert found["answers"]
