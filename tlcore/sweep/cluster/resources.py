"""What a trial asks of the cluster, whether the cluster can ever give it, and how many trials fit at once.

Owns the arithmetic of places: pure functions over node totals, so that tests need no cluster; `Cluster` at the end reads the live
one, `growth.py` what an autoscaler could add. A fraction of a GPU lies on one device, as Ray has it: two workers of 0.6 need two.
Only workers count. A slot and its helpers take no CPU: they sit on the head node by a sliver of its own resource, a
different sliver for each shape, since Tune tells cached slots apart by what they asked for. Called by `runner.py`, `search.py`
and `group.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
from ray.tune import PlacementGroupFactory

from tlcore.errors import CannotPlace, RequestError
from tlcore.recipe import Recipe

HEAD_RESOURCE: Final = "node:__internal_head__"
NODE_ID: Final = "ray.io/node-id"
"""The label by which Ray names every node."""
ACCELERATOR: Final = "accelerator_type:"
"""Prefix of the resource by which Ray marks nodes of an accelerator type."""
_SLIVER: Final = 0.0001
_SLIVERS: Final = 64
_NO_LABEL: Final = "tlcore-shapes"
_EPSILON: Final = 1e-6


@dataclass(frozen=True)
class Shape:
    """What the workers of one trial take: how many, what each reserves, and where they may sit."""

    workers: int
    cpus: float
    gpus: float
    placement: str
    labels: tuple[tuple[str, str], ...] = ()
    accelerator: str | None = None

    @property
    def per_worker(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    @property
    def bundle(self) -> dict[str, float]:
        """One worker as Ray reserves it: its resources, and a sliver of its accelerator type's."""
        return self.per_worker | ({f"{ACCELERATOR}{self.accelerator}": 0.001} if self.accelerator else {})

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        kind = f" ({self.accelerator})" if self.accelerator else ""
        place = f" on nodes labelled {dict(self.labels)}" if self.labels else ""
        count = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{count} with {self.cpus:g} CPU{gpus}{kind} each{place}, {self.placement}"

    def may_use(self, node: Node) -> bool:
        """Whether a node is of the kind asked for, whatever room it has."""
        if self.accelerator and not node.resources.get(f"{ACCELERATOR}{self.accelerator}"):
            return False
        return not node.labels_known or all(_selects(wanted, node.labels.get(key)) for key, wanted in self.labels)


@dataclass(frozen=True)
class Node:
    """One node: what it has in all, its labels, where they are known, and the memory of its smallest GPU, likewise."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]
    labels_known: bool = True
    gpu_bytes: float | None = None


def _selects(wanted: str, value: str | None) -> bool:
    """Ray's label selectors: `a`, `!a`, `in(a, b)`, `!in(a, b)`; a label that is not there meets the negative ones."""
    positive = wanted.removeprefix("!")
    inside = positive.startswith("in(") and positive.endswith(")")
    values = [word.strip() for word in positive[3:-1].split(",")] if inside else [positive]
    return (value in values) is not wanted.startswith("!")


def shape_of(recipe: Recipe, cluster_has_gpus: bool | None) -> Shape:
    """The shape of a trial of this recipe; `gpus_per_worker: auto` is 1 where the cluster has GPUs or an accelerator is named.

    Args:
        cluster_has_gpus: as `Growth.gpus` says.

    Raises:
        RequestError: auto, where nobody can say whether GPUs will come: a guess would train on the head's CPUs, or wait for ever.
    """
    asked = recipe.resources
    labels = tuple(sorted(asked.labels.items()))
    gpus = _gpus_of(asked.accelerator, cluster_has_gpus) if asked.gpus_per_worker == "auto" else asked.gpus_per_worker
    return Shape(asked.workers, float(asked.cpus_per_worker), float(gpus), asked.placement, labels, asked.accelerator)


def _gpus_of(accelerator: str | None, cluster_has_gpus: bool | None) -> bool:
    """What `auto` is."""
    if accelerator is None and cluster_has_gpus is None:
        raise RequestError(
            "resources.gpus_per_worker is auto, but the cluster has no GPU now, and its autoscaler does not say which nodes it "
            "can add",
            hint="set resources.gpus_per_worker to 1 if it can add nodes with GPUs, or to 0 to train on CPUs",
        )
    return accelerator is not None or bool(cluster_has_gpus)


class _Room:
    """What is left of one node: CPUs in all, GPUs by device."""

    def __init__(self, node: Node) -> None:
        gpus = node.resources.get("GPU", 0.0)
        self.cpus = node.resources.get("CPU", 0.0)
        self.devices = [1.0] * int(gpus + _EPSILON)

    def copy(self) -> _Room:
        """The same, to try something out on."""
        other = object.__new__(_Room)
        other.cpus, other.devices = self.cpus, list(self.devices)
        return other

    def take(self, shape: Shape, most: int) -> int:
        """Put up to `most` workers here; how many it took."""
        taken = 0
        while taken < most and self.cpus + _EPSILON >= shape.cpus and self._take_device(shape.gpus):
            self.cpus -= shape.cpus
            taken += 1
        return taken

    def _take_device(self, share: float) -> bool:
        """Put a worker on the device that is left fullest, as Ray does."""
        if not share:
            return True
        fitting = [index for index, free in enumerate(self.devices) if free + _EPSILON >= share]
        if not fitting:
            return False
        self.devices[min(fitting, key=lambda index: self.devices[index])] -= share
        return True

    def lose(self, kind: str, amount: float) -> float:
        """Take away what others use; what is still to be taken elsewhere."""
        if kind == "CPU":
            taken = min(amount, self.cpus)
            self.cpus -= taken
            return amount - taken
        for index, free in enumerate(self.devices):
            taken = min(amount, free)
            self.devices[index] -= taken
            amount -= taken
        return amount


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
        self._left = [_Room(node) for node in self._nodes]

    def put(self, shape: Shape) -> bool:
        """Reserve a trial of this shape. False, and nothing reserved, when it does not fit."""
        left = [room.copy() for room in self._left]
        usable = [room for node, room in zip(self._nodes, left, strict=True) if shape.may_use(node)]
        if shape.placement == "strict_pack":
            usable = [room for room in usable if room.copy().take(shape, shape.workers) == shape.workers][:1]
        each = 1 if shape.placement == "strict_spread" else shape.workers
        missing = shape.workers
        for room in usable:
            missing -= room.take(shape, min(each, missing))
        if missing == 0:
            self._left = left
        return missing == 0

    def take_out(self, amounts: Mapping[str, float]) -> None:
        """Remove what others use, from wherever it is; which node they sit on is not known."""
        for kind, amount in amounts.items():
            for room in self._left:
                amount = room.lose(kind, amount)


def check_placeable(
    shape: Shape, nodes: Sequence[Node], could_come: Sequence[Node] = (), setting: str = "resources.workers"
) -> None:
    """Raise CannotPlace, with what was asked, what is there and what to change, when even the empty cluster is too small.

    Args:
        could_come: what an autoscaler could add (`growth.py`).
        setting: where the recipe says how many workers.
    """
    every = [*nodes, *could_come]
    if Plan(every).put(shape):
        return
    there = ", ".join(_has(node, shape) for node in nodes) or "no node"
    more = f", and its autoscaler can add {_count(could_come, shape)}" if could_come else ""
    raise CannotPlace(
        f"a trial asks for {shape}; this cluster can never place it: it has {there}{more}",
        hint=_advice(shape, every, setting),
        shape=str(shape),
    )


def _has(node: Node, shape: Shape) -> str:
    kinds = ["CPU", "GPU"] if shape.gpus else ["CPU"]
    has = "a node with " + " and ".join(f"{node.resources.get(kind, 0.0):g} {kind}" for kind in kinds)
    types = [name.removeprefix(ACCELERATOR) for name in node.resources if name.startswith(ACCELERATOR)]
    return f"{has} ({', '.join(types)})" if shape.accelerator and types else has


def _count(nodes: Sequence[Node], shape: Shape) -> str:
    found: dict[str, int] = {}
    for node in nodes:
        text = _has(node, shape).removeprefix("a ")
        found[text] = found.get(text, 0) + 1
    return ", ".join(f"{number} x {text}" for text, number in found.items())


def _advice(shape: Shape, nodes: Sequence[Node], setting: str) -> str:
    if not any(shape.may_use(node) for node in nodes):
        bare = replace(shape, accelerator=None)
        if shape.accelerator and any(bare.may_use(node) for node in nodes):
            return f"no node has accelerators of type resources.accelerator={shape.accelerator}; change it or add nodes"
        return f"no node has the labels of resources.labels={dict(shape.labels)}; label nodes or change it"
    fits = 0
    while fits < shape.workers and Plan(nodes).put(replace(shape, workers=fits + 1)):
        fits += 1
    if fits:
        return f"set {setting} to {fits} or less, ask for less per worker, or add nodes"
    asked = f"resources.cpus_per_worker={shape.cpus:g}"
    if shape.gpus:
        asked += f" and resources.gpus_per_worker={shape.gpus:g}"
    return f"not even one worker fits: lower {asked}, or add nodes"


def has_room(
    shape: Shape,
    live: Sequence[Shape],
    nodes: Sequence[Node],
    available: Mapping[str, float] | None = None,
    idle: Sequence[Shape] = (),
    avoided: Mapping[str, Mapping[str, float]] = {},
) -> bool:
    """Whether one more trial of `shape` fits beside our `live` ones and what others use.

    Args:
        available: what is free in the cluster now; None: nobody else is there.
        idle: what our slots without a trial hold: not free now, and given back as soon as a slot of another shape starts.
        avoided: what is free now on each node that gets none of ours, by its id.
    """
    plan = Plan(without(nodes, avoided))
    if available is not None:
        plan.take_out(_used_by_others([*live, *idle], nodes, available, avoided))
    return all(plan.put(one) for one in [*live, shape])


def _used_by_others(
    ours: Sequence[Shape],
    nodes: Sequence[Node],
    available: Mapping[str, float],
    avoided: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """What others may use on the nodes that are not avoided. Ours may be on avoided ones as well, where they ran before: what
    nobody knows to be ours there counts as if it were others' here."""
    others: dict[str, float] = {}
    shunned = [node for node in nodes if node.labels.get(NODE_ID) in avoided]
    for kind in ("CPU", "GPU"):
        used = _total(nodes, kind) - available.get(kind, 0.0)
        away = _total(shunned, kind) - sum(free.get(kind, 0.0) for free in avoided.values())
        held = sum(shape.workers * shape.per_worker.get(kind, 0.0) for shape in ours)
        # our own workers may not be placed yet: then they are not missing from what is available
        others[kind] = max(0.0, min(used - held, used - away))
    return others


def _total(nodes: Iterable[Node], kind: str) -> float:
    return sum(node.resources.get(kind, 0.0) for node in nodes)


class Cluster:
    """The live Ray cluster, as much of it as admission needs."""

    def nodes(self) -> list[Node]:
        """Every living node."""
        return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]

    def available(self) -> dict[str, float]:
        """What is free now, over all nodes."""
        return {str(key): float(value) for key, value in ray.available_resources().items()}

    def free_on(self, nodes: Iterable[str]) -> dict[str, Mapping[str, float]]:
        """What is free now on each of these nodes; nothing on one that is gone."""
        free = ray._private.state.available_resources_per_node()
        return {node: free.get(node, {}) for node in nodes}


class Slivers:
    """Which sliver of the head node each shape's slots ask for."""

    def __init__(self) -> None:
        self._known: dict[Shape, int] = {}
        self._by_request: dict[Any, Shape] = {}

    def request(self, shape: Shape) -> Any:
        """Tune's resource request for a slot of this shape: equal for equal shapes only.

        Slivers are few, since all slots' together are no more than the whole; shapes that share one differ in a label that no node
        has, whose absence each asks for.
        """
        number = self._known.setdefault(shape, len(self._known))
        turn, sliver = divmod(number, _SLIVERS)
        bundle = {HEAD_RESOURCE: round(_SLIVER * (sliver + 1), 4)}
        apart = {"bundle_label_selector": [{_NO_LABEL: f"!{turn}"}]} if turn else {}
        request = PlacementGroupFactory([bundle], **apart)
        self._by_request[request] = shape
        return request

    def shapes(self, requests: Sequence[Any]) -> list[Shape]:
        """The shape of each of these requests."""
        return [self._by_request[request] for request in requests]
