"""Several real Ray nodes on this one machine: `python -m cluster.local up --nodes 2`, then `status`, then `down`.

Owns starting and stopping them; the note they leave is `tlcore/remote/local_cluster.py`'s. Called by `make
cluster-up`, by `make cluster-down` and by the tests. It is a cluster in all that matters to a sweep: every node has
its own raylet, its own workers and its own address, token authentication is on, jobs come in through the job server,
and a worker group can only span nodes by the network. What it is not: nodes share one disk, one home directory and
one set of cores.

Each node gets an address of its own from 127.0.0.0/8, which Linux routes to the loopback device as a whole; elsewhere
that block holds one address, so this runs on Linux. The dashboard and its job server listen on 127.0.0.1 alone. Ray's
own ports (head store, raylets) listen on every interface, with no setting against it in 2.60: there, the token is
what keeps others out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from cluster import processes
from tlcore.errors import RequestError, SweepError, TlcoreError
from tlcore.remote.address import find_cluster, job_server_answers
from tlcore.remote.local_cluster import (
    LocalCluster,
    LocalNode,
    cluster_directory,
    read_note,
    remove_note,
    token_path,
    visible_gpus,
    write_note,
)
from tlcore.storage import EmbeddedStore, ensure_embedded

_START_S = 120.0
# Weights never pass through Ray's object store, so a small one is enough; Ray's own default is 30 % of memory, per
# node.
_OBJECT_STORE_BYTES = 256 << 20


def up(nodes: int, cpus_per_node: int) -> LocalCluster:
    """Start a head and `nodes - 1` further nodes, and the embedded store unless AWS_ENDPOINT_URL names another.

    A second call with the same shape returns the cluster that runs. Raises RequestError when another one is up,
    SweepError when Ray does not start; whatever was started by then is stopped again.
    """
    if not sys.platform.startswith("linux"):
        raise RequestError(
            f"several nodes on one machine need Linux, this is {sys.platform}", hint="use `make sweep`, or a cluster"
        )
    standing = read_note()
    if standing is not None and alive(standing):
        return _same_shape(standing, nodes, cpus_per_node)
    if standing is not None:
        down()
    cluster = _prepare(nodes, cpus_per_node)
    complete = False
    try:
        for number in range(nodes):
            cluster = replace(cluster, sessions=(*cluster.sessions, _start_node(cluster, number)))
            write_note(cluster)
        cluster = _bring_store(cluster)
        _await_nodes(cluster)
        complete = True
    finally:
        if not complete:
            down(keep_logs=True)
    return cluster


def down(keep_logs: bool = False) -> int:
    """Stop what `up` started, remove its files, and return how many processes there were. Nothing up is no error."""
    cluster = read_note()
    if cluster is None:
        return 0
    ended = processes.end(cluster.mark, cluster.sessions, cluster.booted)
    if cluster.store_started:
        EmbeddedStore().down()
    shutil.rmtree(cluster.scratch, ignore_errors=True)
    remove_note()
    if not keep_logs:
        shutil.rmtree(cluster_directory() / "logs", ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's files may lie in a directory that TLCORE_CLUSTER_DIR names
            cluster_directory().rmdir()
    return ended


def alive(cluster: LocalCluster) -> bool:
    """Whether any process of it runs."""
    return bool(processes.members(cluster.mark, cluster.sessions, cluster.booted))


def _same_shape(cluster: LocalCluster, nodes: int, cpus_per_node: int) -> LocalCluster:
    shape = [node.cpus for node in cluster.nodes]
    if shape != [cpus_per_node] * nodes:
        raise RequestError(
            f"a local cluster is up: {len(shape)} nodes with {shape[0]} CPUs each, not {nodes} with {cpus_per_node}",
            hint="make cluster-down first",
        )
    return cluster


def _prepare(nodes: int, cpus_per_node: int) -> LocalCluster:
    """Directory, token and note: written before the first process, so that an interrupted `up` can still be taken
    down."""
    directory = cluster_directory()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    (directory / "logs").mkdir(exist_ok=True)
    token_path().unlink(missing_ok=True)
    with os.fdopen(os.open(token_path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    head_port, dashboard_port = _free_ports(2)
    devices = visible_gpus()
    members = tuple(
        LocalNode(f"127.0.0.{2 + number}", cpus_per_node, tuple(devices[number::nodes])) for number in range(nodes)
    )
    cluster = LocalCluster(
        mark=secrets.token_hex(8),
        booted=int(psutil.boot_time()),
        # Not below the home directory: Unix sockets in it may not have paths of more than 107 characters.
        scratch=tempfile.mkdtemp(prefix="tlray-", dir="/tmp"),
        job_server=f"http://127.0.0.1:{dashboard_port}",
        gcs=f"{members[0].address}:{head_port}",
        nodes=members,
    )
    write_note(cluster)
    return cluster


def _free_ports(count: int) -> list[int]:
    """Ports nobody holds now, all different. Another process may still take one before Ray does; then Ray says so."""
    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.bind(("", 0))
        return [int(holder.getsockname()[1]) for holder in holders]
    finally:
        for holder in holders:
            holder.close()


def _environment(cluster: LocalCluster, node: LocalNode) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    }
    return inherited | {
        processes.MARK: cluster.mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path()),
        # The nodes' addresses live on the loopback device alone; left to themselves gloo and NCCL look the host name
        # up.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": ",".join(node.gpus),
        # Ray starts as many processes at once as a node has CPUs: one by one here, and a sweep needs ten before its first step.
        "RAY_worker_maximum_startup_concurrency": "4",
        # Else the dashboard's helpers leave their directories in /tmp.
        "TMPDIR": _temporary(cluster),
        # A submitted entrypoint says `python`: this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _temporary(cluster: LocalCluster) -> str:
    directory = Path(cluster.scratch) / "tmp"
    directory.mkdir(exist_ok=True)
    return str(directory)


def _start_command(cluster: LocalCluster, number: int) -> list[str]:
    node = cluster.nodes[number]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={node.address}"]
    if number == 0:
        dashboard_port = cluster.job_server.rpartition(":")[2]
        command += [
            "--head",
            f"--port={cluster.gcs.rpartition(':')[2]}",
            f"--ray-client-server-port={_free_ports(1)[0]}",
        ]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    else:
        command.append(f"--address={cluster.gcs}")
    return [
        *command,
        f"--num-cpus={node.cpus}",
        f"--num-gpus={len(node.gpus)}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={cluster.scratch}/{number}",
        # Two raylets on one machine would both take these ports' defaults.
        "--dashboard-agent-listen-port=0",
        "--dashboard-agent-grpc-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
    ]


def _start_node(cluster: LocalCluster, number: int) -> int:
    """Run `ray start` for one node and return the process session its processes stay in."""
    node = cluster.nodes[number]
    log = cluster_directory() / "logs" / f"node-{number}.log"
    with log.open("wb") as output:
        starter = subprocess.Popen(
            _start_command(cluster, number),
            env=_environment(cluster, node),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = starter.wait(_START_S)
        except subprocess.TimeoutExpired:
            starter.kill()
            starter.wait()
            code = f"no answer in {_START_S:.0f} s"
    if code != 0:
        raise SweepError(
            f"Ray node {number} ({node.address}) did not start ({code}):\n{_last_lines(log)}",
            hint=f"the whole log is {log}",
        )
    return starter.pid


def _last_lines(log: Path, count: int = 5) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-count:])


def _bring_store(cluster: LocalCluster) -> LocalCluster:
    """The store is this cluster's to stop only if this cluster started it."""
    ran_before = EmbeddedStore().status().running
    ensure_embedded("s3://tlcore/")
    cluster = replace(cluster, store_started=EmbeddedStore().status().running and not ran_before)
    write_note(cluster)
    return cluster


def _await_nodes(cluster: LocalCluster) -> None:
    """Ray's job server answers a little after `ray start` returns."""
    deadline = time.monotonic() + _START_S
    while not job_server_answers(find_cluster(cluster.job_server)):
        if time.monotonic() > deadline:
            raise SweepError(f"Ray's job server at {cluster.job_server} did not answer in {_START_S:.0f} s")
        time.sleep(0.2)


def _describe(cluster: LocalCluster) -> str:
    lines = [
        f"{len(cluster.nodes)} Ray nodes on this machine, token authentication on",
        *(
            f"  {node.address}  {node.cpus} CPU{'s' if node.cpus != 1 else ''}"
            + (f", GPUs {','.join(node.gpus)}" if node.gpus else "")
            for node in cluster.nodes
        ),
        f"job server and dashboard: {cluster.job_server}",
        f"token:                    {token_path()}",
        "next: make submit RECIPE=jobs/recipes/sentiment_minilm.yaml   then: make cluster-down",
    ]
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description="A cluster of several Ray nodes on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    upward = commands.add_parser("up", help="start it")
    upward.add_argument("--nodes", type=int, default=2, help="Ray nodes, the head included (default 2)")
    upward.add_argument(
        "--cpus-per-node", type=int, help="CPUs each node offers (default: this machine's, dealt out evenly)"
    )
    commands.add_parser("down", help="stop it and remove what it left")
    commands.add_parser("status", help="what runs").add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.command == "up":
        if chosen.nodes < 1:
            parser.error(f"--nodes {chosen.nodes}: at least 1")
        chosen.cpus_per_node = chosen.cpus_per_node or max(1, (os.cpu_count() or 1) // chosen.nodes)
    return chosen


def _status(as_json: bool) -> int:
    cluster = read_note()
    running = cluster is not None and alive(cluster)
    if as_json:
        nodes = [node.__dict__ for node in cluster.nodes] if cluster is not None and running else []
        print(
            json.dumps(
                {"running": running, "job_server": cluster.job_server if cluster and running else None, "nodes": nodes}
            )
        )
    else:
        print(_describe(cluster) if cluster is not None and running else "no local cluster is up")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors become one message and their exit code."""
    chosen = _parse(arguments)
    try:
        if chosen.command == "status":
            return _status(chosen.json)
        if chosen.command == "up":
            print(_describe(up(chosen.nodes, chosen.cpus_per_node)))
        else:
            ended = down()
            print(
                f"local cluster down: {ended} processes stopped, its files removed"
                if ended
                else "no local cluster is up"
            )
    except TlcoreError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
