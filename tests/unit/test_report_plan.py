"""The plan's table."""

from __future__ import annotations

import io

from rich.console import Console

from tlcore.report.plan_table import plan_parts

NEEDS = {"device_bytes": 0, "host_bytes": 2_000_000_000}
ROW = {
    "point": {"train.global_batch_size": 64},
    "trials": 3,
    "fits": False,
    "reason": "a worker needs 2.00 GB of memory and has 1.00 GB",
    "changes": {"train.micro_batch_size": 8, "train.activation_checkpointing": True},
    "batch": {"global": 64, "workers": 2, "micro": 32, "accumulation": 1},
    "stage": 2,
    "room": {"host_bytes": 1_000_000_000, "device_bytes": None, "source": "Ray"},
    "by_stage": [NEEDS, NEEDS, NEEDS, {"unknown": "x"}],
}


def shown(*rows, storage=None):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_parts({"site": "this machine", "storage": storage, "fits": False, "points": list(rows)}))
    return console.export_text()


def test_a_point_with_what_to_change():
    text = shown(ROW)
    assert "train.global_batch_size=64" in text
    assert "64 = 2 x 32 x 1" in text
    assert "2.00*" in text
    assert "does not fit" in text
    assert "1: a worker needs 2.00 GB of memory and has 1.00 GB" in text
    assert "fits with --set train.micro_batch_size=8 --set train.activation_checkpointing=true" in text
    assert "storage can be written" in text


def test_a_point_for_which_nothing_helps_and_a_batch_that_does_not_divide():
    text = shown({**ROW, "changes": None}, {"point": {}, "trials": 1, "fits": False, "reason": "7", "changes": None})
    assert text.count("no milder settings fit") == 1
    assert "as the recipe says" in text


def test_the_unknown_is_marked_and_the_storage_named():
    text = shown(
        {**ROW, "fits": None, "reason": "GPU memory of a worker is unknown", "changes": None}, storage="denied"
    )
    assert "unknown" in text
    assert "1: GPU memory of a worker is unknown" in text
    assert "storage cannot be written" in text
    assert "denied" in text
