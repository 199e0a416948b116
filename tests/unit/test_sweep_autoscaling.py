"""What an autoscaler could add, told by what the cluster reports: pure."""

from __future__ import annotations

import pytest
from tiny_text_model import tiny_recipe

from tlcore.errors import CannotPlace, RequestError
from tlcore.sweep.cluster.fit import FitCheck
from tlcore.sweep.cluster.growth import ANONYMOUS, MOST_NODES, Growth, check_can_come, could_come, reported_kinds
from tlcore.sweep.cluster.resources import Node, Shape, check_placeable, shape_of

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
    known, open_, none = Growth(True, could_come([(WORKER, 1)], [HEAD])), Growth(True, None), Growth()
    assert [growth.gpus([HEAD]) for growth in (known, open_, none)] == [True, None, False]
    with_gpu = [HEAD, Node({"CPU": 8.0, "GPU": 1.0}, {})]
    assert [growth.gpus(with_gpu) for growth in (known, open_, none)] == [True, True, True]
    assert Growth(True, could_come([({"CPU": 8}, 1)], [HEAD])).gpus([HEAD]) is False


AUTO = (("auto", None, True, 1.0), ("auto", None, False, 0.0), ("auto", "L4", False, 1.0), ("auto", "L4", None, 1.0))
SAID = ((0, None, None, 0.0), (1, None, None, 1.0), (0.5, None, False, 0.5))


@pytest.mark.parametrize(("gpus", "accelerator", "cluster_has_gpus", "expected"), [*AUTO, *SAID])
def test_a_named_accelerator_is_a_gpu_and_what_is_said_needs_no_guess(
    tmp_path, gpus, accelerator, cluster_has_gpus, expected
):
    recipe = tiny_recipe(tmp_path, resources__gpus_per_worker=gpus, resources__accelerator=accelerator)
    assert shape_of(recipe, cluster_has_gpus).gpus == expected


def test_auto_is_not_guessed_where_gpus_may_come_that_nobody_names(tmp_path):
    """Else trials train on the head's CPUs, and no node with a GPU is ever asked for."""
    with pytest.raises(RequestError, match=r"gpus_per_worker is auto, but the cluster has no GPU now") as refused:
        shape_of(tiny_recipe(tmp_path), Growth(True, None).gpus([HEAD]))
    assert refused.value.hint.startswith("set resources.gpus_per_worker to 1")
    check = FitCheck(tiny_recipe(tmp_path), [HEAD], None, lambda recipe, on_gpu: {}, Growth(True, None))
    with pytest.raises(RequestError, match="gpus_per_worker is auto"):
        check.verdict({"train.learning_rate": 1e-4})


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
    kinds = reported_kinds({"time": 1.0, "autoscaler_report": summary})
    assert any(not kind.startswith(ANONYMOUS) for kind in kinds) is expected
