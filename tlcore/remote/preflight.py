"""Is this cluster fit for a sweep? Every node: versions, devices, storage; across them: one all-reduce.

Owns the questions, the verdict and its table; `checks.py` does the measuring on the nodes. Called by the command.
Takes no CPU of the cluster, so that it answers while sweeps run; a GPU collective does need the free GPUs and says so
when there are none.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

import tlcore
from tlcore.errors import SweepError
from tlcore.remote.address import NoCluster, find_cluster
from tlcore.remote.checks import NodeFacts, Rank, look
from tlcore.remote.jobs import JobServer
from tlcore.remote.submit import start

_NODE_TIMEOUT_S = 90.0
_COLLECTIVE_TIMEOUT_S = 120.0
_ANSWER = "preflight-report "


@dataclass(frozen=True)
class NodeReport:
    """One node; `facts` is None where it gave no answer, `error` then says why."""

    node: str
    address: str
    cpus: float
    gpus: float
    facts: NodeFacts | None
    error: str = ""


@dataclass(frozen=True)
class Collective:
    """The all-reduce: `seconds` for one of `size_bytes` over `world_size` ranks, one rank per GPU or else per node."""

    backend: str
    world_size: int
    seconds: float | None
    size_bytes: int
    error: str = ""


@dataclass(frozen=True)
class PreflightReport:
    """Everything found. `problems` is empty when the cluster is fit; `notes` are what to know of one that is."""

    nodes: tuple[NodeReport, ...]
    collective: Collective
    storage: str | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreflightReport:
        nodes = tuple(_node_from(node) for node in data["nodes"])
        collective, found = Collective(**data["collective"]), tuple(data["problems"])
        return cls(nodes, collective, data["storage"], found, tuple(data["notes"]))


def _node_from(data: dict[str, Any]) -> NodeReport:
    facts = data["facts"]
    return NodeReport(**data | {"facts": NodeFacts(**facts | {"devices": tuple(facts["devices"])}) if facts else None})


def preflight(storage: str | None, address: str | None = None) -> PreflightReport:
    """Look at every live node of the cluster that `submit` would use; without any, at this machine alone.

    A cluster is looked at from inside, by a job on its head: this machine may be no part of it.
    Raises SweepError when that job fails.
    """
    try:
        cluster = find_cluster(address)
    except NoCluster:
        return look_around(storage)
    server = JobServer(cluster)
    words = ["python", "-m", "tlcore.remote.preflight", *([storage] if storage else [])]
    job = start(server, "preflight", shlex.join(words), {"py_modules": [str(Path(tlcore.__file__).parent)]})
    output: list[str] = []
    facts = server.follow(job, output.append)
    for line in reversed("".join(output).splitlines()):
        if line.startswith(_ANSWER):
            return PreflightReport.from_dict(json.loads(line.removeprefix(_ANSWER)))
    last = facts.message or "".join(output[-3:])
    raise SweepError(
        f"preflight did not run on {cluster.job_server}: {last.strip()}", hint=f"tlcore attach {job} shows all"
    )


def look_around(storage: str | None) -> PreflightReport:
    """The same from within: every live node of RAY_ADDRESS, else of a Ray started here for the purpose."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"address": "local", "include_dashboard": False}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise SweepError(f"Ray cannot be joined: {error}") from error
    try:
        live = [node for node in ray.nodes() if node["Alive"]]
        nodes = _look_at(live, storage)
        report = PreflightReport(nodes, _collective(live), storage)
        return replace(report, problems=tuple(problems(report)), notes=tuple(notes(report)))
    finally:
        ray.shutdown()


def _look_at(live: list[dict[str, Any]], storage: str | None) -> tuple[NodeReport, ...]:
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = [task.options(scheduling_strategy=_on(node["NodeID"])).remote(storage) for node in live]
    ray.wait(asked, num_returns=len(asked), timeout=_NODE_TIMEOUT_S)
    return tuple(_report(node, answer) for node, answer in zip(live, asked, strict=True))


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _report(node: dict[str, Any], answer: Any) -> NodeReport:
    facts, error = None, ""
    try:
        facts = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        error = f"no answer in {_NODE_TIMEOUT_S:.0f} s"
    except ray.exceptions.RayError as failure:
        error = str(failure).strip().splitlines()[-1]
    resources = node["Resources"]
    name, address = node["NodeID"][:8], node["NodeManagerAddress"]
    return NodeReport(name, address, resources.get("CPU", 0.0), resources.get("GPU", 0.0), facts, error)


def _collective(live: list[dict[str, Any]]) -> Collective:
    """One rank per GPU with NCCL where there are any, else one per node with gloo."""
    gpus = sum(int(node["Resources"].get("GPU", 0)) for node in live)
    backend, per_rank = ("nccl", {"num_cpus": 0, "num_gpus": 1}) if gpus else ("gloo", {"num_cpus": 0})
    places = [node["NodeID"] for node in live for _ in range(int(node["Resources"].get("GPU", 0)) if gpus else 1)]
    actor = ray.remote(Rank)
    ranks = [actor.options(scheduling_strategy=_on(place), **per_rank).remote() for place in places]
    world_size = len(ranks)
    try:
        meeting = ray.get(ranks[0].rendezvous.remote(), timeout=_COLLECTIVE_TIMEOUT_S)
        asked = [member.all_reduce.remote(rank, world_size, meeting, backend) for rank, member in enumerate(ranks)]
        answers = ray.get(asked, timeout=_COLLECTIVE_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        busy = " (are all GPUs in use?)" if gpus else ""
        return Collective(backend, world_size, None, 0, f"no answer in {_COLLECTIVE_TIMEOUT_S:.0f} s{busy}")
    except ray.exceptions.RayError as failure:
        return Collective(backend, world_size, None, 0, str(failure).strip().splitlines()[-1])
    finally:
        for member in ranks:
            ray.kill(member)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        return Collective(backend, world_size, None, 0, errors[0])
    return Collective(backend, world_size, max(answer["seconds"] for answer in answers), answers[0]["bytes"])


def problems(report: PreflightReport) -> list[str]:
    """What stands against a sweep on this cluster, one sentence each."""
    found = [f"node {node.address}: {node.error}" for node in report.nodes if node.error]
    found += _version_differences(report.nodes)
    for node in report.nodes:
        found += [f"node {node.address}: {text}" for text in _node_problems(node, report.storage)]
    if report.collective.error:
        ranks = report.collective.world_size
        found.append(f"{report.collective.backend} all-reduce over {ranks} ranks: {report.collective.error}")
    return found


def notes(report: PreflightReport) -> list[str]:
    """What a sweep can do with, and its owner should know: once, however many nodes found it."""
    found = dict.fromkeys(node.facts.storage_weakness for node in report.nodes if node.facts)
    return [f"storage {report.storage}: {weakness}" for weakness in found if weakness]


def _node_problems(node: NodeReport, storage: str | None) -> list[str]:
    if node.facts is None:
        return []
    found = [
        f"{package} is not installed"
        for package, number in node.facts.versions.items()
        if number == "absent" and package != "tlcore"
    ]
    if node.facts.storage_error:
        found.append(f"storage {storage}: {node.facts.storage_error}")
    if len(node.facts.devices) < node.gpus:
        found.append(f"Ray offers {node.gpus:g} GPUs, torch sees {len(node.facts.devices)}")
    return found


def _version_differences(nodes: tuple[NodeReport, ...]) -> list[str]:
    held: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for node in nodes:
        for package, number in node.facts.versions.items() if node.facts else ():
            held[package][number].append(node.address)
    return [
        f"{package} differs: "
        + "; ".join(f"{number} on {', '.join(where)}" for number, where in sorted(numbers.items()))
        for package, numbers in held.items()
        if len(numbers) > 1
    ]


def preflight_table(report: PreflightReport) -> Table:
    """The report for a terminal; the collective as its caption."""
    table = Table("node", "address", "CPUs", "GPUs", "torch", "deepspeed", "ray", "storage", caption=_caption(report))
    for node in report.nodes:
        versions = node.facts.versions if node.facts else {}
        numbers = [versions.get(package, "?") for package in ("torch", "deepspeed", "ray")]
        devices = "; ".join(node.facts.devices) if node.facts and node.facts.devices else f"{node.gpus:g}"
        table.add_row(node.node, node.address, f"{node.cpus:g}", devices, *numbers, _storage_cell(node))
    return table


def _storage_cell(node: NodeReport) -> str:
    if node.facts is None:
        return "no answer"
    if node.facts.storage_error:
        return "FAILED"
    if node.facts.storage_s is None:
        return "not asked"
    return f"ok, {node.facts.storage_s:.2f} s" + (" (see below)" if node.facts.storage_weakness else "")


def _caption(report: PreflightReport) -> str:
    collective = report.collective
    name = f"{collective.backend} all-reduce over {collective.world_size} ranks"
    if collective.seconds is None:
        return f"{name}: FAILED"
    return f"{name}: {collective.size_bytes / (1 << 20):.0f} MiB in {collective.seconds * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.stdout.write(_ANSWER + json.dumps(look_around(sys.argv[1] if len(sys.argv) > 1 else None).to_dict()) + "\n")
