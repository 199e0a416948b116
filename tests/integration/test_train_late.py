"""`checkpoint.when_late` on two gloo ranks of which one is slow to store: all ranks save the same steps, and none in vain."""

from __future__ import annotations

from typing import Any

import pytest
from rank_server import start

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration

MODES = ("wait", "skip", "newest")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Any]:
    directory = tmp_path_factory.mktemp("late")
    model = str(make_small_bert(directory / "model"))
    asked = (*MODES, None)
    cases = [{"when_late": mode, "model": model, "storage": f"file://{directory}/store"} for mode in asked]
    return dict(zip(asked, start("ranks_late", [{"world": 2, "cases": cases}], directory / "ranks")[0], strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_save_that_begins_is_committed_on_every_rank(results: dict[str, Any], mode: str) -> None:
    """Ranks that drop saves of their own drop different ones: five commits in two thousand steps were seen."""
    found = results[mode]
    for totals in found["ended"]:
        assert totals["saves"] == len(found["committed"])
        assert totals["failed"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_report_is_saved_however_late_the_others_are(results: dict[str, Any], mode: str) -> None:
    found = results[mode]
    assert found["committed"][-1] == found["at_report"] == found["steps"]


def test_wait_saves_every_step_and_the_others_save_fewer(results: dict[str, Any]) -> None:
    assert results["wait"]["committed"] == list(range(1, results["wait"]["steps"] + 1))
    for mode in ("skip", "newest"):
        assert 2 <= len(results[mode]["committed"]) < results[mode]["steps"]


def test_what_rank_0_alone_meets_ends_it_on_every_rank(results: dict[str | None, Any]) -> None:
    assert results[None] == [["no such rights", "ask for them"]] * 2
