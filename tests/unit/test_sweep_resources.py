"""Places: what fits, how many at once, and what a refusal says."""

from __future__ import annotations

import pytest
from ray._private.label_utils import validate_label_selector

from tlcore.errors import CannotPlace
from tlcore.sweep.cluster.resources import (
    NODE_ID,
    Node,
    Shape,
    Slivers,
    can_avoid,
    check_placeable,
    has_room,
    label_selector,
    without,
)

pytestmark = pytest.mark.unit


def node(cpu, gpu=0.0, kind=None, **labels):
    has = {"CPU": cpu, "GPU": gpu} if gpu else {"CPU": cpu}
    return Node(has | ({f"accelerator_type:{kind}": 1.0} if kind else {}), labels)


def shape(workers, cpus=1.0, gpus=0.0, placement="pack", kind=None, **labels):
    return Shape(workers, cpus, gpus, placement, tuple(sorted(labels.items())), kind)


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        (shape(2), [node(2)], True),
        (shape(3), [node(2)], False),
        (shape(3), [node(2), node(1)], True),
        (shape(2, cpus=2), [node(3), node(1)], False),
        (shape(4, cpus=0.5), [node(2)], True),
        (shape(3, cpus=0.1), [node(0.3)], True),
        (shape(2, gpus=1), [node(8)], False),
        (shape(2, gpus=0.5), [node(8, 1)], True),
        (shape(3, gpus=0.5), [node(8, 1)], False),
        (shape(2, placement="strict_pack"), [node(1), node(1)], False),
        (shape(2, placement="strict_pack"), [node(1), node(2)], True),
        (shape(2, placement="strict_spread"), [node(8)], False),
        (shape(2, placement="strict_spread"), [node(1), node(1)], True),
        (shape(2, placement="spread"), [node(8)], True),
        (shape(1, zone="a"), [node(8, zone="b")], False),
        (shape(1, zone="a"), [node(8, zone="b"), node(1, zone="a")], True),
        (shape(1), [], False),
        (shape(2, gpus=0.6), [node(8, 1)], False),
        (shape(2, gpus=0.6), [node(8, 2)], True),
        (shape(3, gpus=0.6), [node(8, 2)], False),
        (shape(6, gpus=0.3), [node(8, 2)], True),
        (shape(7, gpus=0.3), [node(8, 2)], False),
        (shape(4, gpus=0.6, placement="strict_pack"), [node(8, 3), node(8, 4)], True),
        (shape(1, zone="!a"), [node(8, zone="a")], False),
        (shape(1, zone="!a"), [node(8)], True),
        (shape(1, zone="in(a, b)"), [node(8, zone="b")], True),
        (shape(1, zone="in(a, b)"), [node(8, zone="c"), node(8)], False),
        (shape(1, zone="!in(a,b)"), [node(8, zone="b")], False),
        (shape(1, zone="!in(a,b)"), [node(8, zone="c")], True),
        (shape(1, gpus=1, kind="A100"), [node(8, 1, "T4")], False),
        (shape(2, gpus=1, kind="A100"), [node(8, 1, "T4"), node(8, 2, "A100")], True),
        (shape(3, gpus=1, kind="A100"), [node(8, 1, "T4"), node(8, 2, "A100")], False),
    ],
)
def test_placeable(asked, nodes, fits):
    if fits:
        check_placeable(asked, nodes)
    else:
        with pytest.raises(CannotPlace):
            check_placeable(asked, nodes)


def test_a_refusal_says_what_was_asked_what_is_there_and_what_to_change():
    with pytest.raises(CannotPlace) as refusal:
        check_placeable(shape(4), [node(2)])
    assert refusal.value.message == (
        "a trial asks for 4 workers with 1 CPU each, pack; this cluster can never place it: it has a node with 2 CPU"
    )
    assert refusal.value.hint == "set resources.workers to 2 or less, ask for less per worker, or add nodes"
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("asked", "nodes", "hint"),
    [
        (shape(1, cpus=16), [node(2)], "not even one worker fits: lower resources.cpus_per_worker=16, or add nodes"),
        (shape(2, gpus=1), [node(2)], "lower resources.cpus_per_worker=1 and resources.gpus_per_worker=1"),
        (shape(1, zone="a"), [node(2)], "resources.labels={'zone': 'a'}"),
        (shape(5, placement="strict_spread"), [node(9), node(9)], "set resources.workers to 2 or less"),
        (
            shape(1, gpus=1, kind="A100"),
            [node(2, 1, "T4")],
            "no node has accelerators of type resources.accelerator=A100",
        ),
        (shape(1, gpus=0.6, kind="T4", zone="a"), [node(2, 1, "T4")], "resources.labels={'zone': 'a'}"),
        (shape(3, gpus=0.6), [node(9, 2)], "set resources.workers to 2 or less"),
    ],
)
def test_the_advice_fits_the_reason(asked, nodes, hint):
    with pytest.raises(CannotPlace) as refusal:
        check_placeable(asked, nodes)
    assert hint in refusal.value.hint


def most_at_once(asked, nodes, available=None):
    live = []
    while has_room(asked, live, nodes, available):
        live.append(asked)
    return len(live)


@pytest.mark.parametrize(
    ("asked", "nodes", "most"),
    [
        (shape(2), [node(2)], 1),
        (shape(2), [node(8)], 4),
        (shape(2, cpus=3), [node(4), node(4)], 1),
        (shape(3), [node(2)], 0),
    ],
)
def test_trials_at_a_time(asked, nodes, most):
    assert most_at_once(asked, nodes) == most


def test_what_others_use_is_not_ours_to_give():
    assert most_at_once(shape(2), [node(8)], {"CPU": 8}) == 4
    assert not has_room(shape(2), [], [node(8)], {"CPU": 1})
    assert has_room(shape(2), [], [node(8)], {"CPU": 2})


def test_our_own_workers_are_not_counted_as_others_whether_placed_or_not():
    live = [shape(2)]
    assert has_room(shape(2), live, [node(4)], {"CPU": 2})
    assert has_room(shape(2), live, [node(4)], {"CPU": 4})
    assert not has_room(shape(2), live, [node(4)], {"CPU": 1})


def test_different_shapes_share_what_there_is():
    assert has_room(shape(1, cpus=2), [shape(2)], [node(4)])
    assert not has_room(shape(1, cpus=3), [shape(2)], [node(4)])


def test_a_node_is_avoided_where_the_others_will_do():
    nodes = [Node({"CPU": 4.0}, {NODE_ID: name}) for name in ("aa", "bb")]
    assert can_avoid(nodes, ["aa"], shape(4))
    assert not can_avoid(nodes, ["aa"], shape(5))
    assert not can_avoid(nodes, ["aa", "bb"], shape(1))
    assert without(nodes, ["aa"]) == nodes[1:]


def test_ray_is_asked_for_the_labels_and_for_other_nodes():
    assert label_selector(shape(1), []) is None
    assert label_selector(shape(1, disk="fast"), []) == {"disk": "fast"}
    assert label_selector(shape(1, disk="fast"), ["aa", "bb"]) == {"disk": "fast", NODE_ID: "!in(aa, bb)"}
    assert validate_label_selector(label_selector(shape(1), ["aa" * 28])) is None


def test_a_fraction_of_a_device_that_is_left_is_used_by_a_fraction_alone():
    """Two devices, of each 0.4 is left: a pool of 0.8 would take a worker of 0.5."""
    assert not has_room(shape(1, gpus=0.5), [shape(2, gpus=0.6)], [node(8, 2)])
    assert has_room(shape(2, gpus=0.4), [shape(2, gpus=0.6)], [node(8, 2)])
    assert not has_room(shape(1, gpus=1), [shape(1, gpus=0.1)], [node(8, 1)])
    assert has_room(shape(1, gpus=1), [shape(2, gpus=0.1)], [node(8, 2)]), "fractions go to one device"


def test_what_idle_slots_hold_is_neither_free_nor_others():
    assert not has_room(shape(2), [shape(2)], [node(4)], {"CPU": 1})
    assert has_room(shape(2), [shape(2)], [node(4)], {"CPU": 1}, [shape(1)])
    assert not has_room(shape(4), [shape(2)], [node(4)], {"CPU": 1}, [shape(1)])


def test_a_refusal_names_the_setting_that_asks_and_what_could_come():
    with pytest.raises(CannotPlace) as refusal:
        check_placeable(shape(8), [node(2)], [node(2), node(2)], "search.scheduler.asha.workers")
    assert refusal.value.message == (
        "a trial asks for 8 workers with 1 CPU each, pack; this cluster can never place it: it has a node with 2 CPU, "
        "and its autoscaler can add 2 x node with 2 CPU"
    )
    assert refusal.value.hint == "set search.scheduler.asha.workers to 6 or less, ask for less per worker, or add nodes"
    check_placeable(shape(6), [node(2)], [node(2), node(2)])


def room_beside(free, free_on_b, live=0):
    """Whether a trial of two CPUs fits on A beside `live` of ours, B being avoided; 8 CPUs each."""
    nodes = [Node({"CPU": 8.0}, {NODE_ID: name}) for name in ("aa", "bb")]
    return has_room(shape(1, cpus=2), [shape(1, cpus=2)] * live, nodes, {"CPU": free}, (), {"bb": {"CPU": free_on_b}})


def test_what_is_free_on_a_node_that_is_avoided_makes_no_room_elsewhere():
    """Another sweep has 4 of A's 8 CPUs, and B is idle: two trials fit."""
    assert [room_beside(12 - 2 * live, 8, live) for live in range(4)] == [True, True, False, False]


def test_what_others_use_on_a_node_that_is_avoided_takes_no_room_elsewhere():
    assert room_beside(8, 0)


def test_more_shapes_than_there_are_slivers_are_told_apart():
    """A searched share of a GPU has any number of values."""
    slivers, shapes = Slivers(), [shape(1, gpus=n / 1000) for n in range(1, 200)]
    requests = [slivers.request(each) for each in shapes]
    assert len(set(requests)) == len(shapes)
    assert slivers.shapes(requests) == shapes
    assert [slivers.request(each) for each in shapes] == requests
    assert max(sum(request.required_resources.values()) for request in requests) <= 0.0064
    selectors = [(request._bound.kwargs.get("bundle_label_selector") or [{}])[0] for request in requests]
    assert all(validate_label_selector(selector) is None for selector in selectors)
    assert not any(selectors[:64])
