"""A slot's ranks hold no more after many trials than after a few, whatever ZeRO stages the trials have."""

from __future__ import annotations

import pytest
from rank_server import start

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration


def held(directory, trials):
    """Resident bytes of each rank after each trial."""
    case = {"model": str(make_small_bert(directory / "model")), "storage": f"file://{directory}/store"}
    case |= {"trials": trials, "fraction": 0.1}
    ((found,),) = start("ranks_slot_memory", [{"world": 2, "cases": [case]}], directory / "ranks", timeout_s=3000)
    return found


@pytest.mark.parametrize("trials", [pytest.param(100, marks=pytest.mark.long), 12])
def test_memory_is_flat(tmp_path, trials):
    found = held(tmp_path, trials)
    early = found[7 if trials < 50 else 9]  # each stage twice, and what is loaded at first use with it
    for rank, (then, now) in enumerate(zip(early, found[-1], strict=True)):
        assert now < 1.05 * then, f"rank {rank}: {then} bytes after a few trials, {now} after {trials}"
