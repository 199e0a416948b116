"""Nodes on a real cluster: workers on one or two; one with a label, one that keeps failing, one that dies with two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlcore.storage.account import Account

pytestmark = [pytest.mark.integration, pytest.mark.long]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nodes")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    words = [sys.executable, str(HERE / "node_driver.py"), str(directory)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((directory / "found.json").read_text())


def of(events, kind):
    return [event for event in events if event["kind"] == kind]


def test_workers_are_packed_on_a_node_or_spread_over_two(found):
    seen = found["placed"]
    assert {each["status"] for each in seen.values()} == {"completed"}
    assert [len(each["ranks"]) for each in seen.values()] == [2, 2]
    assert {placement: len(set(each["ranks"])) for placement, each in seen.items()} == {"strict_pack": 1, "spread": 2}


def test_workers_wait_for_the_node_with_their_label_while_another_is_free_and_that_costs_nothing(found):
    seen = found["labelled"]
    assert seen["status"] == "completed"
    assert set(seen["nodes"]) == {seen["wanted"]}
    kinds = [event["kind"] for event in seen["events"] if event["kind"] in ("started", "queued", "placed", "result")]
    assert kinds[:4] == ["started", "queued", "placed", "result"]
    account, unpaid = Account(), Account()
    for event in seen["events"]:
        account.apply(event)
        if event["kind"] not in ("queued", "placed"):
            unpaid.apply(event)
    assert account.used().worker_hours < unpaid.used().worker_hours


def test_a_node_that_keeps_failing_gets_no_more_workers_where_another_one_will_do(found):
    seen = found["avoided"]
    assert seen["status"] == "completed"
    (entry,) = of(seen["events"], "avoided")
    assert (entry["node"], entry["losses"], entry["trials"]) == (seen["bad"], 3, ["t000"])
    lost = of(seen["events"], "lost")
    assert {(event["loss"], event["node"], event["rank"]) for event in lost} == {("worker", seen["bad"], 1)}
    assert 3 <= len(lost) <= 5
    assert set(seen["nodes"][:-1]) == {seen["bad"]}
    assert seen["nodes"][-1] != seen["bad"]


def test_a_node_that_dies_with_two_ranks_is_one_loss_of_a_node(found):
    seen = found["lost"]
    assert seen["status"] == "completed"
    (entry,) = of(seen["events"], "lost")
    assert (entry["loss"], entry["node"]) == ("node", seen["gone"][0])
    assert entry["step"] in (5, 10), "the newest commit: the ranks go on while their node is taken away"
    assert "died with rank 0, 1" in entry["cause"]
    assert seen["nodes"][-1] != seen["gone"][0]


def test_what_a_sweep_cannot_do_without_is_beside_its_driver_and_no_other_node_ends_it(found):
    assert found["beside"] == dict.fromkeys(("Board", "Mailbox", "Slot"), found["driver"])
