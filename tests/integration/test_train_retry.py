"""A save that fails at a trial's end, on either of two gloo ranks: it is begun again on both, and both decide the same."""

from __future__ import annotations

from typing import Any

import pytest
from rank_server import start

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration

CASES: dict[str, dict[str, Any]] = {
    "rank 1's index": {"rank": 1, "part": "rank-0001-", "times": 2, "max_storage": 2},
    "rank 1's chunks": {"rank": 1, "part": "cas/", "times": 1, "max_storage": 2},
    "rank 0's manifest": {"rank": 0, "part": "MANIFEST", "times": 2, "max_storage": 2},
    "too often": {"rank": 1, "part": "rank-0001-", "times": 3, "max_storage": 2},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("retry")
    given = {"model": str(make_small_bert(directory / "model")), "storage": f"file://{directory}/store"}
    cases = [{**case, **given, "name": name} for name, case in CASES.items()]
    return dict(zip(CASES, start("ranks_retry", [{"world": 2, "cases": cases}], directory / "ranks")[0], strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "too often"])
def test_a_failed_last_save_is_begun_again_on_all_ranks(results: dict[str, Any], name: str) -> None:
    found, case = results[name], CASES[name]
    assert found["refused"][case["rank"]] == case["times"]
    assert found["known"] == [found["last"]] * 2
    assert (found["intact"], found["attempt"]) == (found["last"], 1 + case["times"])


def test_where_too_many_fail_every_rank_is_told_the_same(results: dict[str, Any]) -> None:
    found = results["too often"]
    assert found["known"][0] == found["known"][1]
    assert f"3 saves in a row failed, the last at step {found['last']}" in found["known"][0]
    assert "given up by rank 1: no space left" in found["known"][0]
    assert found["intact"] is None
