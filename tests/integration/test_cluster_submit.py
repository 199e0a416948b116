"""A cluster of two real Ray nodes on this machine, from `up` to `down`, with jobs submitted to it as a user would.

The tests share one cluster and one store of their own and run in the order they stand: the last one takes it down.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from cluster import local, processes
from tlcore.errors import RequestError
from tlcore.remote.address import ClusterAddress, find_cluster
from tlcore.remote.jobs import JobServer
from tlcore.remote.local_cluster import LocalCluster, cluster_directory, read_note, token_path
from tlcore.remote.preflight import preflight
from tlcore.remote.submit import attach, start, stop
from tlcore.storage import EmbeddedStore

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
            patch.delenv(name)
        patch.setenv("TLCORE_CLUSTER_DIR", str(tmp_path_factory.mktemp("cluster") / "state"))
        patch.setenv("TLCORE_STORE_DIR", str(tmp_path_factory.mktemp("store")))
        try:
            yield local.up(nodes=2, cpus_per_node=1)
        finally:
            local.down()
            EmbeddedStore().down()


@pytest.fixture
def server(two_nodes: LocalCluster) -> JobServer:
    return JobServer(find_cluster())


def test_no_token_no_entry(two_nodes: LocalCluster) -> None:
    assert token_path().stat().st_mode & 0o077 == 0
    for token, status in ((None, 401), ("0" * 64, 403)):
        with pytest.raises(RequestError, match=f"answered {status}: "):
            JobServer(ClusterAddress(two_nodes.job_server, "this test", token))


def test_up_again_is_the_same_cluster(two_nodes: LocalCluster) -> None:
    assert local.up(nodes=2, cpus_per_node=1) == read_note()
    with pytest.raises(RequestError, match="a local cluster is up: 2 nodes with 1 CPUs each, not 3 with 1"):
        local.up(nodes=3, cpus_per_node=1)


def test_log_and_exit_code_come_home(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import sys; print('first', flush=True); print('läst'); sys.exit(7)")
    job = start(server, "Try it", "python job.py", {"working_dir": str(tmp_path)})
    assert job.startswith("try-it-")
    followed: list[str] = []
    facts = server.follow(job, followed.append)
    assert (facts.status, facts.exit_code, facts.to_exit_code()) == ("FAILED", 7, 7)
    assert "".join(followed).endswith("first\nläst\n")
    again: list[str] = []
    assert attach(job, again.append, lambda line: None) == 7
    assert "".join(again) == "".join(followed)


def test_job_carries_no_secret(server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    (tmp_path / "job.py").write_text("pass")
    job = start(server, "quiet", "python job.py", {"working_dir": str(tmp_path)})
    assert server.follow(job, lambda text: None).to_exit_code() == 0
    shown = json.dumps(_ask(server.address, f"/api/jobs/{job}"))
    assert "RAY_JOB_STOP_WAIT_TIME_S" in shown
    assert "hush-hush" not in shown
    assert server.address.token is not None
    assert server.address.token not in shown


def test_unknown_job_is_named(server: JobServer) -> None:
    with pytest.raises(RequestError, match="knows no job 'nonesuch'"):
        server.facts("nonesuch")


def test_stop_lets_the_job_finish_its_work(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(4); print('committed', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(600)\n"
    )
    job = start(server, "endless", "exec python job.py", {"working_dir": str(tmp_path)})
    while "ready" not in server.log(job):
        assert not server.facts(job).ended
        time.sleep(0.2)
    said: list[str] = []
    assert stop(None, said.append).status == "STOPPED"
    assert said[-1] == f"job {job} stopped"
    assert "committed" in server.log(job)


def test_preflight_sees_both_nodes_and_joins_them(two_nodes: LocalCluster) -> None:
    report = preflight("s3://tlcore/preflight")
    assert report.problems == ()
    assert sorted(node.address for node in report.nodes) == ["127.0.0.2", "127.0.0.3"]
    assert all(node.facts and node.facts.storage_s for node in report.nodes)
    assert (report.collective.backend, report.collective.world_size) == ("gloo", 2)
    assert report.collective.seconds


def test_submitted_sweep_spans_two_nodes(two_nodes: LocalCluster) -> None:
    # Only the head is trained, so that the time goes into what is tested: two nodes, not two CPUs' matrix products.
    settings = ["resources.workers=2", "transfer.strategy=head", "search.first=[]", "search.trials=1"]
    settings += [
        "search.space={train.learning_rate: {choice: [0.001]}}",
        "report={baselines: [scratch], baseline_seeds: 1}",
    ]
    words = ["submit", "jobs/recipes/tiny.yaml", *(word for setting in settings for word in ("--set", setting))]
    done = subprocess.run(
        [sys.executable, "-m", "tlcore", *words], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "python -m jobs.sweep jobs/recipes/tiny.yaml --set resources.workers=2" in done.stdout
    assert "t000 completed" in done.stdout
    assert "best model as files: tlcore export" in done.stdout, "a directory on the head would go with the job"
    assert re.search(
        r"\nwas it worth it\? eval_accuracy at the end, 1 seed, .*\n  head +0\.\d+ \(one\)\n  scratch +0\.\d+ \(one\) ",
        done.stdout,
    )
    job = next(word for word in done.stderr.split() if word.startswith("tiny-"))
    nodes = _nodes_of_workers(job)
    assert len(nodes) == 2, f"the trial's workers sat on {nodes}"


def test_down_leaves_nothing(two_nodes: LocalCluster) -> None:
    members = processes.members(two_nodes.mark, two_nodes.sessions, two_nodes.booted)
    directory = cluster_directory()
    assert len(members) > 10
    assert Path(two_nodes.scratch).exists()
    assert two_nodes.store_started

    # Not all of them: Ray's helpers may leave by themselves while the first ones are stopped.
    assert local.down() > 10

    assert not [process for process in members if process.is_running() and process.status() != "zombie"]
    assert not processes.members(two_nodes.mark, two_nodes.sessions, two_nodes.booted)
    assert not Path(two_nodes.scratch).exists()
    assert not directory.exists()
    assert not EmbeddedStore().status().running
    assert local.down() == 0


def _ask(address: ClusterAddress, path: str) -> Any:
    with urlopen(Request(f"{address.job_server}{path}", headers=address.headers), timeout=30) as answer:
        return json.load(answer)


def _nodes_of_workers(job: str) -> set[str]:
    """The nodes Ray itself says the training workers of a job ran on, dead ones included."""
    address = find_cluster()
    driver = _ask(address, f"/api/jobs/{job}")["driver_info"]["id"]
    actors = _ask(address, "/api/v0/actors?limit=10000")["data"]["result"]["result"]
    return {
        actor["node_id"] for actor in actors if actor["class_name"] == "RayTrainWorker" and actor["job_id"] == driver
    }
