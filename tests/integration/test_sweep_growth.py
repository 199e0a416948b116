"""Room that is not there yet: a real autoscaler makes it, and what waits for it is told from what hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import autoscaling
import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
from ray_fixtures import CPUS

from tlcore.sweep.cluster.growth import Demand, read_growth, waits_for_room
from tlcore.sweep.cluster.resources import Cluster, Shape

pytestmark = pytest.mark.integration


def eventually(condition):
    deadline = time.monotonic() + 300
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def free():
    return ray.available_resources().get("CPU", 0.0)


def test_a_cluster_made_by_hand_has_no_autoscaler(ray_session):
    growth = read_growth(Cluster().nodes())
    assert (growth.exists, growth.could_come) == (False, ())


def test_a_request_waits_until_there_is_room_and_then_gives_it_back(ray_session):
    now = [100.0]
    demand, shape = Demand(lambda: now[0]), Shape(1, float(CPUS), 0.0, "strict_pack")
    held = ray.util.placement_group([{"CPU": 1}])
    assert held.wait(300)
    demand.ask(shape, 2)
    assert eventually(lambda: waits_for_room(shape))
    assert not waits_for_room(Shape(1, 2.0, 0.0, "strict_pack")), "another shape's"
    demand.settle(2)
    assert waits_for_room(shape), "it still waits"
    ray.util.remove_placement_group(held)
    assert eventually(lambda: free() == 0), "the request was met"
    assert eventually(lambda: demand.settle(2) or free() == CPUS)
    demand.ask(shape, 2)
    assert free() == CPUS, "its room is not asked for again at once"
    now[0] += 60
    demand.ask(shape, 1)
    assert eventually(lambda: free() == 0)
    demand.settle(0)
    assert eventually(lambda: free() == CPUS)


def test_what_no_node_can_hold_does_not_wait_for_room(ray_session):
    shape, demand = Shape(1, 99.0, 0.0, "pack"), Demand()
    demand.ask(shape, 1)
    try:
        assert not waits_for_room(shape)
    finally:
        demand.settle(0)


@pytest.mark.long
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_an_autoscaler_makes_room_for_what_fits_no_present_node(tmp_path, second):
    with autoscaling.growing_cluster({"CPU": 1}, {"worker": ({"CPU": 2}, 2)}, second) as environment:
        command = [sys.executable, str(Path(autoscaling.__file__)), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["complete"]
    assert seen["nodes"] >= 2, "the head alone holds no trial"


@pytest.mark.long
def test_node_types_that_the_platform_reports_are_what_could_come(tmp_path):
    with autoscaling.growing_cluster({"CPU": 1}, {"worker": ({"CPU": 2}, 2)}) as environment:
        config = autoscaler_pb2.ClusterConfig()
        group = config.node_group_configs.add(name="gpu", max_count=3)
        group.resources["CPU"], group.resources["GPU"] = 8, 1
        GcsClient(environment["RAY_ADDRESS"]).report_cluster_config(config.SerializeToString())
        ask = (
            "import ray; ray.init(log_to_driver=False)\n"
            "from tlcore.sweep.cluster.growth import read_growth\n"
            "from tlcore.sweep.cluster.resources import Cluster\n"
            "growth = read_growth(Cluster().nodes())\n"
            "print(growth.exists, [sorted(node.resources.items()) for node in growth.could_come], growth.gpus([]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"True {[[('CPU', 8), ('GPU', 1)]] * 3} True"
