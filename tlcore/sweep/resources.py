"""What a trial asks of the cluster, whether the cluster can ever give it, and how many trials fit at once.

Owns the arithmetic of places: pure functions over node totals, so that tests need no cluster; `Cluster` at the end reads the live
one. Only workers count. A slot and its helpers take no CPU: they sit on the head node by a sliver of its own resource, a
different sliver for each shape, since Tune tells cached slots apart by what they asked for. Called by `runner.py`, `search.py`
and `group.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.tune import PlacementGroupFactory

from tlcore.errors import CannotPlace
from tlcore.recipe import Recipe

HEAD_RESOURCE: Final = "node:__internal_head__"
NODE_ID: Final = "ray.io/node-id"
"""The label by which Ray names every node."""
_SLIVER: Final = 0.0001
_MOST_SHAPES: Final = 64
_EPSILON: Final = 1e-6


@dataclass(frozen=True)
class Shape:
    """What the workers of one trial take: how many, what each reserves, and where they may sit."""

    workers: int
    cpus: float
    gpus: float
    placement: str
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def per_worker(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        place = f" on nodes labelled {dict(self.labels)}" if self.labels else ""
        return f"{self.workers} workers with {self.cpus:g} CPU{gpus} each{place}, {self.placement}"


@dataclass(frozen=True)
class Node:
    """One live node: what it has in all, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def shape_of(recipe: Recipe, cluster_has_gpus: bool) -> Shape:
    """The shape of a trial of this recipe; `gpus_per_worker: auto` is 1 where the cluster has GPUs."""
    asked = recipe.resources
    gpus = float(cluster_has_gpus) if asked.gpus_per_worker == "auto" else float(asked.gpus_per_worker)
    labels = tuple(sorted(asked.labels.items()))
    return Shape(asked.workers, float(asked.cpus_per_worker), gpus, asked.placement, labels)


def without(nodes: Sequence[Node], avoid: Iterable[str]) -> list[Node]:
    """The nodes but those of these ids."""
    kept_out = set(avoid)
    return [node for node in nodes if node.labels.get(NODE_ID) not in kept_out]


def can_avoid(nodes: Sequence[Node], avoid: Iterable[str], shape: Shape) -> bool:
    """Whether a trial of this shape can be placed on the other nodes."""
    return Plan(without(nodes, avoid)).put(shape)


def label_selector(shape: Shape, avoid: Sequence[str]) -> dict[str, str] | None:
    """What Ray asks of a worker's node: the shape's labels, and that it is none of those to avoid."""
    labels = dict(shape.labels)
    if avoid:
        labels[NODE_ID] = f"!in({', '.join(avoid)})"
    return labels or None


class Plan:
    """Node totals minus the shapes put in so far, first fit."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = list(nodes)
        self._left = [dict(node.resources) for node in self._nodes]

    def put(self, shape: Shape) -> bool:
        """Reserve a trial of this shape. False, and nothing reserved, when it does not fit."""
        left = [dict(node) for node in self._left]
        if shape.placement == "strict_pack":
            placed = any(self._take(left, shape, index) == shape.workers for index in range(len(left)))
        elif shape.placement == "strict_spread":
            placed = sum(self._take(left, shape, index, most=1) for index in range(len(left))) >= shape.workers
        else:
            missing = shape.workers
            for index in range(len(left)):
                missing -= self._take(left, shape, index, most=missing)
            placed = missing == 0
        if placed:
            self._left = left
        return placed

    def take_out(self, amounts: Mapping[str, float]) -> None:
        """Remove what others use, from wherever it is; which node they sit on is not known."""
        for resource, amount in amounts.items():
            for node in self._left:
                taken = min(amount, node.get(resource, 0.0))
                node[resource] = node.get(resource, 0.0) - taken
                amount -= taken

    def _take(self, left: list[dict[str, float]], shape: Shape, index: int, most: int | None = None) -> int:
        """Put up to `most` workers (default: all, or none when they do not all fit) on one node; how many it took."""
        if any(self._nodes[index].labels.get(key) != value for key, value in shape.labels):
            return 0
        node, needs = left[index], {key: amount for key, amount in shape.per_worker.items() if amount}
        room = min(
            (int((node.get(key, 0.0) + _EPSILON) / amount) for key, amount in needs.items()), default=shape.workers
        )
        all_or_none = shape.workers if room >= shape.workers else 0
        taken = all_or_none if most is None else min(room, most)
        for key, amount in needs.items():
            node[key] = node.get(key, 0.0) - taken * amount
        return taken


def check_placeable(shape: Shape, nodes: Sequence[Node], where: str = "") -> None:
    """Raise CannotPlace, with what was asked, what is there and what to change, when even the empty cluster is too small."""
    if Plan(nodes).put(shape):
        return
    fitting = [node for node in nodes if all(node.labels.get(key) == value for key, value in shape.labels)]
    there = ", ".join(_has(node, shape) for node in nodes) or "no node"
    raise CannotPlace(
        f"{where}a trial asks for {shape}; this cluster can never place it: it has {there}",
        hint=_advice(shape, fitting),
        shape=str(shape),
    )


def _has(node: Node, shape: Shape) -> str:
    kinds = ["CPU", "GPU"] if shape.gpus else ["CPU"]
    return "a node with " + " and ".join(f"{node.resources.get(kind, 0.0):g} {kind}" for kind in kinds)


def _advice(shape: Shape, fitting: Sequence[Node]) -> str:
    if not fitting:
        return f"no node has the labels of resources.labels={dict(shape.labels)}; label nodes or change it"
    fits = 0
    while fits < shape.workers and Plan(fitting).put(_with_workers(shape, fits + 1)):
        fits += 1
    if fits:
        return f"set resources.workers to {fits} or less, ask for less per worker, or add nodes"
    asked = f"resources.cpus_per_worker={shape.cpus:g}"
    if shape.gpus:
        asked += f" and resources.gpus_per_worker={shape.gpus:g}"
    return f"not even one worker fits: lower {asked}, or add nodes"


def _with_workers(shape: Shape, workers: int) -> Shape:
    return Shape(workers, shape.cpus, shape.gpus, shape.placement, shape.labels)


def has_room(
    shape: Shape, live: Sequence[Shape], nodes: Sequence[Node], available: Mapping[str, float] | None = None
) -> bool:
    """Whether one more trial of `shape` fits beside our `live` ones and what others use.

    Args:
        available: what is free in the cluster now, our own use excluded; None: nobody else is there.
    """
    plan = Plan(nodes)
    if available is not None:
        plan.take_out(_used_by_others(live, nodes, available))
    return all(plan.put(one) for one in [*live, shape])


def _used_by_others(live: Sequence[Shape], nodes: Sequence[Node], available: Mapping[str, float]) -> dict[str, float]:
    others: dict[str, float] = {}
    for kind in ("CPU", "GPU"):
        total = sum(node.resources.get(kind, 0.0) for node in nodes)
        ours = sum(shape.workers * shape.per_worker.get(kind, 0.0) for shape in live)
        # our own workers may not be placed yet: then they are not missing from what is available
        others[kind] = max(0.0, total - available.get(kind, 0.0) - ours)
    return others


class Cluster:
    """The live Ray cluster, as much of it as admission needs."""

    def nodes(self) -> list[Node]:
        """Every living node."""
        return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]

    def available(self) -> dict[str, float]:
        """What is free now, over all nodes."""
        return {str(key): float(value) for key, value in ray.available_resources().items()}

    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return any(node.resources.get("GPU", 0.0) > 0 for node in self.nodes())


class Slivers:
    """Which sliver of the head node each shape's slots ask for."""

    def __init__(self) -> None:
        self._known: dict[Shape, int] = {}

    def request(self, shape: Shape) -> Any:
        """Tune's resource request for a slot of this shape: equal for equal shapes only."""
        number = self._known.setdefault(shape, len(self._known) % _MOST_SHAPES)
        return PlacementGroupFactory([{HEAD_RESOURCE: round(_SLIVER * (number + 1), 4)}])
