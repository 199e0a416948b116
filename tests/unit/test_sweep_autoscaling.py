"""What an autoscaler could add, told by what the cluster reports: pure."""

from __future__ import annotations

import pytest

from tlcore.errors import CannotPlace
from tlcore.sweep.cluster.growth import MOST_NODES, Growth, check_can_come, could_come, is_autoscaled
from tlcore.sweep.cluster.resources import Node, Shape, check_placeable

pytestmark = pytest.mark.unit
HEAD = Node({"CPU": 2.0}, {})
WORKER = {"CPU": 8, "GPU": 1}


def test_what_could_come_is_what_is_not_there_yet():
    kinds = [({"CPU": 2}, 1), (WORKER, 3), ({"CPU": 64}, 0)]
    there = [HEAD, Node({"CPU": 8.0, "GPU": 1.0, "memory": 9.0}, {"zone": "a"})]
    assert [dict(node.resources) for node in could_come(kinds, there)] == [WORKER, WORKER]


def test_a_type_without_a_limit_stands_for_many_nodes():
    assert len(could_come([(WORKER, -1)], [HEAD])) == MOST_NODES


def test_labels_of_nodes_to_come_are_not_known_so_nothing_is_refused_for_them():
    shape = Shape(3, 1.0, 1.0, "pack", (("zone", "a"),))
    nodes = could_come([(WORKER, 3)], [HEAD])
    check_placeable(shape, [HEAD], nodes)
    with pytest.raises(CannotPlace, match="its autoscaler can add 2 x node with 8 CPU and 1 GPU"):
        check_placeable(shape, [HEAD], nodes[:2])


def test_what_does_not_fit_today_is_refused_unless_nobody_knows_what_can_come(caplog):
    shape = Shape(3, 1.0, 0.0, "pack")
    with pytest.raises(CannotPlace, match="can never place it"):
        check_can_come(shape, [HEAD], Growth(), "resources.workers")
    check_can_come(shape, [HEAD], Growth(True, could_come([(WORKER, 1)], [HEAD])), "resources.workers")
    assert caplog.messages == []
    check_can_come(shape, [HEAD], Growth(True, None), "resources.workers")
    (said,) = caplog.messages
    assert said.startswith("a trial asks for 3 workers with 1 CPU each, pack, which the present nodes cannot hold")


def test_gpus_may_come_where_none_are():
    assert Growth(True, could_come([(WORKER, 1)], [HEAD])).has_gpus()
    assert not Growth(True, None).has_gpus()
    assert not Growth().has_gpus()


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (None, False),
        ({"active_nodes": {"node_29a0": 1}}, False),
        ({"active_nodes": {}, "idle_nodes": {"node_29a0": 1, "node_77": 1}, "pending_launches": {}}, False),
        ({"active_nodes": {"ray.head.default": 1}}, True),
        ({"active_nodes": {}, "idle_nodes": {"head-group": 1}}, True),
        ({"active_nodes": {}, "pending_nodes": [["10.0.0.1", "gpu", "waiting"]]}, True),
        ({"active_nodes": {}, "pending_launches": {"gpu": 2}}, True),
        ({"active_nodes": {}, "node_type_mapping": {"ffff0": "ray.head.default"}}, True),
        ({"active_nodes": {}, "node_type_mapping": {"ffff0": "node_ffff0"}}, False),
    ],
)
def test_a_cluster_made_by_hand_has_nodes_without_a_type_name(summary, expected):
    assert is_autoscaled({"time": 1.0, "autoscaler_report": summary}) is expected
