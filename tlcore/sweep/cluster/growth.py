"""What an autoscaler could add to the cluster, and the requests that make it do so.

Owns three answers. Could a shape that the present nodes cannot hold ever be placed (`Growth`)? How is an autoscaler told that more
trials would run (`Demand`)? And is a worker group still waiting for room (`waits_for_room`)? Called by `driver.py`, `runner.py` and
`group.py`.

Ray's open autoscalers (cluster launcher, KubeRay) act on demand that cannot be met: actors and placement groups that wait. So a
request is a placement group of a trial's shape, with its strategy and selectors. As soon as it is placed there is room: it is
removed, and admission starts the trial there. `ray.autoscaler.sdk.request_resources` is not used: each call overrides all earlier
ones of the whole cluster, Ray Train's own among them.

Which node types an autoscaler has is known only where the platform reports them to Ray (`get_cluster_config`, as Ray Train and Ray
Data read it). The open autoscalers report none: then a shape that fits nowhere today is not refused, and waits, and whether a trial
takes a GPU must be said while there is none. (Their node types stand in a file on the head node, whose path no driver is told.)
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util import placement_group, placement_group_table, remove_placement_group

from tlcore.errors import CannotPlace
from tlcore.sweep.cluster.resources import Node, Plan, Shape, check_placeable

STATUS_KEY: Final = "__autoscaling_status"
"""Where the first autoscaler's monitor on the head node leaves its report, JSON."""
ANONYMOUS: Final = "node_"
"""Type name of a node that no autoscaler made: this and the node's id."""
MOST_NODES: Final = 256
"""Nodes of one type counted where the platform names no limit."""
MOST_REQUESTS: Final = 16
"""Trials for which room is asked at once: what comes is asked for again, and a wrong guess costs so many nodes at most."""
QUIET_S: Final = 5.0
"""After a request was met: time in which its room shows as free, and in which asking again would take it."""


@dataclass(frozen=True)
class Growth:
    """Whether the cluster has an autoscaler, and the nodes that it could add: None where it does not say."""

    exists: bool = False
    could_come: tuple[Node, ...] | None = ()

    @property
    def is_open(self) -> bool:
        """Whether nobody can say what will never come."""
        return self.exists and self.could_come is None

    def gpus(self, nodes: Sequence[Node]) -> bool | None:
        """Whether the cluster of these nodes has GPUs, or will where they are asked for; None where nobody can say."""
        if any(node.resources.get("GPU", 0.0) > 0 for node in (*nodes, *(self.could_come or ()))):
            return True
        return None if self.is_open else False


def read_growth(nodes: Sequence[Node]) -> Growth:
    """What the connected cluster says of its autoscaler."""
    config = ray._private.state.state.get_cluster_config()
    groups = list(config.node_group_configs) if config is not None else []
    if groups:
        kinds = [(dict(group.resources), int(group.max_count)) for group in groups]
        return Growth(True, could_come(kinds, nodes))
    made = ray.is_initialized() and any(not kind.startswith(ANONYMOUS) for kind in _kinds_of_nodes())
    return Growth(True, None) if made else Growth()


def _kinds_of_nodes() -> set[str]:
    """Type names of the nodes that are there or on their way. The first autoscaler's monitor leaves a report; the second, which Ray
    takes by default, is asked. On a cluster made by hand nodes are named by their ids, and a monitor only watches."""
    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        lists = (status.active_nodes, status.idle_nodes, status.pending_nodes, status.pending_launches)
        return {each.ray_node_type_name for kinds in lists for each in kinds}
    report = _internal_kv_get(STATUS_KEY)
    return reported_kinds(json.loads(report)) if report else set()


def check_can_come(shape: Shape, nodes: Sequence[Node], growth: Growth, setting: str) -> None:
    """Raise CannotPlace for what neither these nodes nor those to come can ever hold; say so where nobody knows what can come.

    Args:
        setting: where the recipe says how many workers.
    """
    try:
        check_placeable(shape, nodes, growth.could_come or (), setting)
    except CannotPlace:
        if not growth.is_open:
            raise
        logging.getLogger(__name__).warning(
            "a trial asks for %s, which the present nodes cannot hold: it waits for what the autoscaler adds", shape
        )


def could_come(kinds: Sequence[tuple[dict[str, float], int]], nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes that are not there yet, of types with these resources and most nodes (-1: any number). Their labels are not known."""
    found: list[Node] = []
    for resources, most in kinds:
        there = sum(_alike(resources, node.resources) for node in nodes)
        number = MOST_NODES if most < 0 else max(0, most - there)
        found += [Node(resources, {}, labels_known=False)] * number
    return tuple(found)


def _alike(one: Any, other: Any) -> bool:
    return all(one.get(kind, 0.0) == other.get(kind, 0.0) for kind in ("CPU", "GPU"))


def reported_kinds(report: dict[str, Any]) -> set[str]:
    """The type names in a report of the first autoscaler's monitor."""
    summary = report.get("autoscaler_report") or {}
    kinds = {*(summary.get("active_nodes") or {}), *(summary.get("idle_nodes") or {})}
    kinds |= {kind for _, kind, *_ in summary.get("pending_nodes") or ()} | {*(summary.get("pending_launches") or {})}
    return kinds | {*(summary.get("node_type_mapping") or {}).values()}


class Demand:
    """Asks an autoscaler for the room of trials that wait for it. Safe to call from the driver's threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: list[tuple[Shape, Any]] = []
        self._quiet_until = 0.0
        self._lock = threading.Lock()

    def ask(self, shape: Shape, trials: int) -> None:
        """There was no room for a trial of this shape, the first of `trials` that would run if they could."""
        with self._lock:
            if self._clock() < self._quiet_until:
                return
            while len(self._asked) < min(trials, MOST_REQUESTS):
                self._asked.append((shape, _request(shape)))

    def settle(self, trials: int) -> None:
        """Take back what was met, and what is more than the `trials` that still wait."""
        with self._lock:
            met = [asked for asked in self._asked if asked[1].wait(0)]
            kept = [asked for asked in self._asked if asked not in met]
            for _, place in [*met, *kept[trials:]]:
                remove_placement_group(place)
            self._asked = kept[:trials]
            if met:
                self._quiet_until = self._clock() + QUIET_S


def _bundles(shape: Shape) -> list[dict[str, float]]:
    return [dict(shape.bundle) for _ in range(shape.workers)]


def _request(shape: Shape) -> Any:
    selectors = [dict(shape.labels)] * shape.workers if shape.labels else None
    return placement_group(_bundles(shape), shape.placement.upper(), bundle_label_selector=selectors)


def waits_for_room(shape: Shape) -> bool:
    """Whether some placement group of this shape waits while its room is held by others, or is still to be made.

    Ray Train does not tell which group is its own; one of the same bundles and strategy stands for it.
    """
    wanted, strategy = sorted(map(sorted, map(dict.items, _bundles(shape)))), shape.placement.upper()
    pending = any(
        place["state"] == "PENDING"
        and place["strategy"] == strategy
        and sorted(map(sorted, map(dict.items, place["bundles"].values()))) == wanted
        for place in placement_group_table().values()
    )
    if not pending:
        return False
    nodes = [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]
    return Plan(nodes).put(shape) or read_growth(nodes).exists
