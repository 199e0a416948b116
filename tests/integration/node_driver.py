"""A driver with a cluster of several nodes of its own: `node_driver.py DIRECTORY` leaves what befell its sweeps in `found.json`.

Two have their workers on one node, and on two. The next asks for a node by its label, which somebody else holds until the sweep
says that it waits, while the other node is free. In another, workers die again and again on one node, the only one with free
processors, until those of another one are given back when the sweep says that it avoids the first. In the last, the node on
which a trial's ranks are dies.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from sweep_bench import Notes, make_recipe, read_trace

from tlcore.sweep import SweepOptions, run_sweep

HERE = Path(__file__).parent


def run(directory, act, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    notes = Notes(act)
    recipe = make_recipe(directory, [5e-4], **changes)
    options = SweepOptions(display=notes, logs=directory / "logs", session="faulty_session:FaultySession")
    outcome = run_sweep(recipe, options)
    nodes = [line["node"] for line in read_trace(directory) if (line["event"], line["rank"]) == ("settings", 0)]
    return {"status": outcome.trials[0].status, "nodes": nodes, "events": notes.events}


@ray.remote(num_cpus=4)
class Tenant:
    """Holds a whole node."""

    def ready(self):
        return True


def tenant_on(node):
    where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    tenant = Tenant.options(scheduling_strategy=where).remote()
    ray.get(tenant.ready.remote())
    return tenant


def placed(directory, placement):
    """The node of each rank."""
    resources = {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2, "placement": placement}
    found = run(directory, lambda event: None, resources=resources)
    ranks = {line["rank"]: line["node"] for line in read_trace(directory) if line["event"] == "settings"}
    return {"status": found["status"], "ranks": [ranks[rank] for rank in sorted(ranks)]}


def labelled(cluster, directory):
    disks = {node["NodeID"]: node["Labels"].get("disk") for node in ray.nodes()}
    wanted = next(node for node in cluster.worker_nodes if disks[node.node_id] == "fast")
    tenant = tenant_on(wanted)

    def act(event):
        if event["kind"] == "queued":
            ray.kill(tenant)

    resources = {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 2, "labels": {"disk": "fast"}}
    return {"wanted": wanted.node_id, **run(directory, act, resources=resources)}


def avoided(cluster, directory):
    bad, good = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
    tenant = tenant_on(good)
    directory.mkdir(parents=True)
    fault = {"kind": "kill", "rank": 1, "step": 3, "times": 9, "node": bad.node_id}
    (directory / "t000.fault").write_text(json.dumps(fault))

    def act(event):
        if event["kind"] == "avoided":
            ray.kill(tenant)

    return {"bad": bad.node_id, **run(directory, act, failures={"max_lost_workers": 8})}


def lost(cluster, directory):
    gone = []

    def act(event):
        if (event["kind"], event.get("fraction")) == ("result", 0.25) and not gone:
            node_id = ranks_node()
            gone.append(node_id)
            node = next(node for node in cluster.worker_nodes if node.node_id == node_id)
            cluster.remove_node(node, allow_graceful=False)

    return {**run(directory, act), "gone": gone}


def ranks_node():
    alive = [one for one in ray._private.state.actors().values() if one["State"] == "ALIVE"]
    return next(one["Address"]["NodeID"] for one in alive if one["ActorClassName"] == "RayTrainWorker")


def main(directory):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for disk in ("fast", "slow"):
        cluster.add_node(num_cpus=4, labels={"disk": disk})
    cluster.wait_for_nodes()
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        found = {
            "placed": {each: placed(Path(directory) / each, each) for each in ("strict_pack", "spread")},
            "labelled": labelled(cluster, Path(directory) / "labelled"),
            "avoided": avoided(cluster, Path(directory) / "avoided"),
            "lost": lost(cluster, Path(directory) / "lost"),
            "driver": ray.get_runtime_context().get_node_id(),
            "beside": {
                one["ActorClassName"]: one["Address"]["NodeID"]
                for one in ray._private.state.actors().values()
                if one["ActorClassName"] in ("Board", "Mailbox", "Slot")
            },
        }
    finally:
        ray.shutdown()
        cluster.shutdown()
    (Path(directory) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
