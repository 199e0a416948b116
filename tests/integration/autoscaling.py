"""A Ray head whose autoscaler makes nodes on this machine, beside the Ray of the other tests and without touching it.

`ray.cluster_utils.AutoscalingCluster` does the same, but stops every Ray of the machine first; its node provider is used here.
As a script it is a driver on that cluster: `autoscaling.py DIRECTORY` runs the sweep and prints what was seen.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.v2.sdk import get_cluster_status
from sweep_bench import Notes, make_recipe, options

from cluster.processes import MARK, end
from tlcore.sweep import run_sweep
from tlcore.sweep.cluster.growth import STATUS_KEY

HERE = Path(__file__).parent
HEAD = "ray.head.default"
"""What the node provider calls the head, whatever the configuration says."""
_UNUSED = ("initialization_commands", "setup_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
_UNUSED_TOO = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


def _config(address, head, workers):
    kinds = {name: {"resources": has, "min_workers": 0, "max_workers": most} for name, (has, most) in workers.items()}
    kinds[HEAD] = {"resources": head, "max_workers": 0}
    return {
        "cluster_name": "growing",
        "max_workers": 8,
        "upscaling_speed": 9999,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True},
        "head_node_type": HEAD,
        "available_node_types": {name: {"node_config": {}, **kind} for name, kind in kinds.items()},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in (*_UNUSED, *_UNUSED_TOO)},
    }


_SECOND = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_NODE_TYPE_NAME": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
"""Of a head with Ray's second autoscaler, which the cluster launcher and KubeRay take by default."""


@contextmanager
def growing_cluster(head, workers, second=False):
    """The environment for drivers on a cluster with a head of these resources; `workers`: type -> (resources, most nodes)."""
    with socket.socket() as probe, socket.socket() as another:
        probe.bind(("", 0))
        another.bind(("", 0))
        address, client = f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}", another.getsockname()[1]
    mark, scratch = secrets.token_hex(8), Path(tempfile.mkdtemp(prefix="tlg-"))
    config = _config(address, head, workers)
    if second:
        # by its module: for its type, this autoscaler wants a file of defaults that Ray's wheel lacks
        provider = {"type": "external", "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider"}
        config["provider"] |= {**provider, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
    (scratch / "autoscaling.json").write_text(json.dumps(config))
    ours = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled", MARK: mark}
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = inherited | ours | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={address.rpartition(':')[2]}"]
    command += [f"--num-cpus={head['CPU']}", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--autoscaling-config={scratch / 'autoscaling.json'}", f"--temp-dir={scratch}/ray"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"]
    command += [
        "--dashboard-agent-listen-port=0",
        "--dashboard-agent-grpc-port=0",
        f"--ray-client-server-port={client}",
    ]
    log = (scratch / "start.log").open("w+b")
    of_head = environment | (_SECOND if second else {})
    started = subprocess.Popen(command, env=of_head, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        assert started.wait(600) == 0, (scratch / "start.log").read_text()
        (await_nodes if second else await_report)(address)
        yield {**environment, "RAY_ADDRESS": address}
    finally:
        end(mark, [started.pid], int(psutil.boot_time()))
        log.close()
        shutil.rmtree(scratch, ignore_errors=True)


def await_report(address):
    """The autoscaler's first report comes some seconds after the head is up."""
    gcs, deadline = GcsClient(address), time.monotonic() + 600
    while b"node_type_mapping" not in (gcs.internal_kv_get(STATUS_KEY.encode(), None) or b""):
        assert time.monotonic() < deadline, "no report of the autoscaler"
        time.sleep(0.5)


def await_nodes(address):
    """As `await_report`, of the second autoscaler, which tells who asks."""
    deadline = time.monotonic() + 600
    while HEAD not in _kinds(get_cluster_status(address)):
        assert time.monotonic() < deadline, "the autoscaler knows no head"
        time.sleep(0.5)


def _kinds(status):
    return {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}


def drive(directory):
    """Two trials of some seconds, each of which needs a node that is not there yet."""
    wants = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 2}
    train = {"global_batch_size": 8, "epochs": 60}
    recipe = make_recipe(directory, [5e-4, 6e-4], resources=wants, train=train)
    recipe = recipe.model_copy(
        update={"search": recipe.search.model_copy(update={"scheduler": type(recipe.search.scheduler)()})}
    )
    nodes = []
    notes = Notes(lambda event: nodes.append(len(ray.nodes())) if event["kind"] == "result" else None)
    outcome = run_sweep(recipe, options(directory, notes))
    sys.stdout.write(json.dumps({"nodes": max(nodes), "complete": outcome.complete}))


if __name__ == "__main__":
    drive(sys.argv[1])
