"""The families of our own train under ZeRO 1, 2 and 3 as in plain torch, on real gloo ranks, all in one pair of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rank_server import start

from tests.tiny_families import FAMILIES

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    cases: list[dict[str, Any]] = [{"family": family} for family in FAMILIES]
    [done] = start("ranks_own_families", [{"world": 2, "cases": cases}], tmp_path_factory.mktemp("families"))
    return dict(zip(FAMILIES, done, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_trains_it_as_plain_torch_does(results: dict[str, Any], family: str) -> None:
    plain = results[family].pop("plain")
    assert plain[-1] < plain[0]
    assert len(set(plain)) == len(plain), "equal losses prove nothing where the loss stands still"
    assert set(results[family]) == {"stage 1", "stage 2", "stage 3", "stage 3, recomputed"}
    for stage, losses in results[family].items():
        np.testing.assert_allclose(losses, plain, rtol=2e-4, err_msg=stage)
