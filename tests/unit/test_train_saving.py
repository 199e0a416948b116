"""What a recipe's checkpoint section becomes for the writer, and how a session counts its saves."""

from __future__ import annotations

import pytest
from recipe_cases import changed

from tlcore.checkpoint import SaveReport
from tlcore.recipe import recipe_from_dict
from tlcore.train.saving import SaveTotals, writer_settings

pytestmark = pytest.mark.unit


def settings(ranks_on_host: int, **section):
    recipe = recipe_from_dict(changed({f"checkpoint.{name}": value for name, value in section.items()}))
    return writer_settings(recipe, ranks_on_host)


@pytest.mark.parametrize(
    ("asked", "ranks", "each"), [("auto", 1, 32), ("auto", 2, 16), ("auto", 8, 4), ("auto", 16, 4), (3, 8, 3)]
)
def test_ranks_of_a_host_share_its_connections(asked, ranks, each):
    assert settings(ranks, connections=asked).connections == each


def test_the_section_reaches_the_writer():
    found = settings(1, snapshot="lazy", memory_bytes=1 << 30)
    assert (found.snapshot, found.memory_bytes) == ("lazy", 1 << 30)
    assert settings(1).memory_bytes is None


def test_totals_count_every_kind_of_end():
    totals = SaveTotals()
    totals.add(SaveReport(1, "committed", 0.5, 3.0, upload_s=2.0, bytes_new=100, bytes_reused=7, retries=1, repeated=2))
    totals.add(SaveReport(2, "uploaded", 0.25, 3.0, upload_s=1.0, bytes_new=50))
    totals.add(SaveReport(4, "failed", 0.0, 1.0, error="away"))
    assert totals.to_dict() == {
        "saves": 2, "failed": 1, "stall_s": 0.75, "bytes_new": 150, "bytes_reused": 7, "upload_s": 3.0,
        "retries": 3,
    }  # fmt: skip
    assert (totals.last_stall_s, totals.last_bytes_per_s) == (0.25, 50.0)
