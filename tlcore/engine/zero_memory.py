"""What one rank holds while DeepSpeed trains a model: two optimizer steps as the allocations they make.

Owns what DeepSpeed keeps and makes on the way at each ZeRO stage, as read in its code (0.19.8, `runtime/engine.py`,
`zero/stage_1_and_2.py`, `zero/stage3.py`, `zero/partition_parameters.py`) and as `config.py` sets it up. DeepSpeed's own estimators
(`estimate_zero2_model_states_mem_needs`) count weights, gradients and Adam's state and take everything for sharded as told; with
fewer than 200 million parameters the buckets, which hold all gradients at once, and the copies that flatten them are as large as
that state, and at stage 3 larger. Two steps, since the optimizer makes its state in the first one.

Does not own activations (`activations.py`), nor the process, the snapshots and the data (`train/estimate.py`). Called there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tlcore.engine.activations import PassMemory
from tlcore.engine.heap import Heap
from tlcore.recipe import Recipe

MASTER_BYTES = 4
NORM_BYTES = 8
"""Gradient norms are taken of a copy in fp64."""
STAGE_0_BUCKET = 500_000_000
PREFETCH = 50_000_000
KEPT_GATHERED = 500_000_000
"""Stage 3 keeps a gathered weight that is used again within 1e9 elements: of a pass forward and back, the last half of them."""
STEPS = 2
_JOINS: Mapping[int, tuple[bool, ...]] = {0: (False,), 1: (False, True), 2: (True,), 3: (False,)}
"""Whether freed neighbours on the heap become one gap, by stage. Small objects that come between decide it, and with them the order
in which threads allocate; so it was measured, with 201 M parameters on two ranks, three runs a stage: 4.0 to 4.3 GB at stage 2,
where 4.1 are counted if they do and 4.9 if not; 5.4 to 6.7 at stage 3, of 4.3 and 6.0; 4.2 to 5.0 at stage 1, of 4.2 and 5.4,
where it goes both ways and the mean is told. At stage 0 it makes no difference."""

_STATES: Mapping[str, int] = {"adamw": 2, "adam": 2, "sgd": 1, "lion": 1, "adagrad": 1, "muon": 1}
"""Tensors of a trained parameter's size that each optimizer keeps; Muon's others are AdamW's and counted as such."""


def states_of(optimizer: str) -> int:
    """How many tensors of a trained parameter's size an optimizer keeps; of Muon's, those of AdamW's part are more."""
    return _STATES[optimizer]


_WORKING: Mapping[str, int] = {"lion": 1, "adagrad": 2}
"""Copies of a whole group that a step makes (`own_optimizers.py`); fused kernels make none."""


@dataclass(frozen=True)
class Weight:
    """One parameter: its elements, whether it trains, the number of its optimizer group, and whether it is Muon's."""

    name: str
    elements: int
    trained: bool
    group: int = 0
    muon: bool = False


@dataclass(frozen=True)
class Setup:
    """What decides a rank's memory besides the passes.

    `item_bytes` of a weight in forward and backward; `on_gpu`: two kinds of memory, else one; `bucket`: elements of DeepSpeed's
    buckets; `accumulates`: more than one micro-batch per step; `from_scratch`: no file has the weights.
    """

    stage: int
    world_size: int
    item_bytes: int
    on_gpu: bool
    bucket: int
    optimizer: str
    accumulates: bool
    offload_optimizer: bool
    offload_param: bool
    from_scratch: bool = False

    @classmethod
    def of(cls, recipe: Recipe, item_bytes: int, on_gpu: bool, bucket: int, accumulates: bool) -> Setup:
        """The setup of a recipe."""
        settings = recipe.deepspeed
        return cls(
            settings.zero_stage,
            recipe.resources.workers,
            item_bytes,
            on_gpu,
            bucket,
            recipe.train.optimizer,
            accumulates,
            settings.offload_optimizer == "cpu",
            settings.offload_param == "cpu",
            recipe.transfer.strategy == "scratch",
        )


@dataclass(frozen=True)
class RankMemory:
    """Most bytes that a rank holds: on its GPU (0 without one), and in host memory."""

    device_bytes: int
    host_bytes: int


def rank_memory(setup: Setup, weights: Sequence[Weight], buffer_bytes: int, passes: PassMemory) -> RankMemory:
    """The most of all ranks. `weights` in the model's order, each once."""
    ranks = {0, setup.world_size - 1} if setup.stage in (1, 2) else {0}
    ways = [
        [_simulated(setup, weights, buffer_bytes, passes, rank, joins) for rank in ranks]
        for joins in _JOINS[setup.stage]
    ]
    device = sum(max(one.device_bytes for one in way) for way in ways) // len(ways)
    return RankMemory(device, sum(max(one.host_bytes for one in way) for way in ways) // len(ways))


def _simulated(
    setup: Setup, weights: Sequence[Weight], buffer_bytes: int, passes: PassMemory, rank: int, joins: bool
) -> RankMemory:
    kind = {0: _Whole, 1: _Partitioned, 2: _Partitioned, 3: _Gathered}[setup.stage]
    trial = kind(setup, weights, passes, rank, joins)
    trial.home.take("buffers", buffer_bytes)
    trial.build()
    for step in range(STEPS):
        for micro in range(1 + setup.accumulates):
            trial.micro_step(first=micro == 0, last=micro == setup.accumulates)
        trial.update(first=step == 0)
    home, host = trial.home.peak_bytes, trial.host.peak_bytes
    return RankMemory(home, host) if setup.on_gpu else RankMemory(0, home)


class _Whole:
    """Stage 0: everything on every rank."""

    def __init__(self, setup: Setup, weights: Sequence[Weight], passes: PassMemory, rank: int, joins: bool) -> None:
        self.setup, self.weights, self.passes, self.rank = setup, weights, passes, rank
        self.trained = [weight for weight in weights if weight.trained]
        self.elements = {weight.name: weight.elements for weight in self.trained}
        self.home = Heap(setup.on_gpu, joins)
        self.host = Heap(joins=joins) if setup.on_gpu else self.home
        self.state_home = self.host if setup.offload_optimizer else self.home
        self.item = setup.item_bytes

    @property
    def groups(self) -> list[tuple[str, list[Weight]]]:
        """The optimizer's groups, in its order."""
        kinds: dict[int, list[Weight]] = {}
        for weight in self.trained:
            kinds.setdefault(weight.group, []).append(weight)
        return [(str(number), kinds[number]) for number in sorted(kinds)]

    def states(self, weight: Weight) -> int:
        """Tensors of the optimizer for a weight, and so for all of its group."""
        if self.setup.optimizer == "muon" and not weight.muon:
            return _STATES["adamw"]
        return states_of(self.setup.optimizer)

    def build(self) -> None:
        """Weights as they come."""
        for weight in self.weights:
            self.home.take(f"weight {weight.name}", self.item * weight.elements)

    def micro_step(self, first: bool, last: bool) -> None:
        """One pass forward and back; at the last one the gradients are averaged over ranks."""
        self.home.fluid(self.passes.forward_bytes)
        for arrival in self.passes.arrivals:
            self.home.fluid(arrival.peak_bytes)
            if first:
                self.home.take(f"gradient {arrival.name}", self.item * self.elements[arrival.name])
        if last:
            for bucket in _buckets([self.elements[weight.name] for weight in self.trained], STAGE_0_BUCKET, over=True):
                self.home.passing(self.item * bucket)

    def update(self, first: bool) -> None:
        """The optimizer's step."""
        if first:
            for weight in self.trained:
                for state in range(self.states(weight)):
                    self.home.take(f"state {state} {weight.name}", MASTER_BYTES * weight.elements)
        for _, group in self.groups:
            elements = sum(weight.elements for weight in group)
            self.home.passing(_WORKING.get(self.setup.optimizer, 0) * MASTER_BYTES * elements)
        self.home.give_all(f"gradient {weight.name}" for weight in self.trained)


class _Partitioned(_Whole):
    """Stages 1 and 2: each optimizer group is one flat tensor, cut into one partition per rank."""

    def build(self) -> None:
        """Loaded weights are copied into flat ones, group by group; each rank's masters are a copy of its part."""
        frozen = [weight for weight in self.weights if not weight.trained]
        for weight in frozen:
            self.home.take(f"weight {weight.name}", self.item * weight.elements)
        # what was loaded lies in the mapped file, or in blocks of its own
        loaded = sum(weight.elements for weight in self.trained) * self.item
        for key, group in self.groups:
            flat = self._padded(group)
            self.home.take(f"flat {key}", self.item * flat)
            self.home.fluid(loaded)
            if self.item != MASTER_BYTES:
                self.home.passing(self.item * flat / self.setup.world_size)
            self.state_home.take(f"masters {key}", MASTER_BYTES * flat / self.setup.world_size)
            if self.setup.offload_optimizer:
                self.host.take(f"cast {key}", self.item * flat / self.setup.world_size)
        if self.setup.offload_optimizer:
            largest = max(weight.elements for weight in self.trained)
            self.host.take("gradient on its way, host", self.item * largest)
            self.home.take("gradient on its way", self.item * largest)
        for key, group in self.groups:
            self.state_home.take(f"gradients {key}", MASTER_BYTES * self._padded(group) / self.setup.world_size)
        if not self.setup.offload_optimizer:
            self.home.give(*[f"gradients {key}" for key, _ in self.groups])

    def _padded(self, group: Sequence[Weight]) -> int:
        align = 2 * self.setup.world_size
        return -(-sum(weight.elements for weight in group) // align) * align

    def _owned(self, group: Sequence[Weight]) -> list[tuple[Weight, int]]:
        """Parameters of which this rank's partition has any part, and how much."""
        size = self._padded(group) // self.setup.world_size
        start, end = self.rank * size, (self.rank + 1) * size
        found, offset = [], 0
        for weight in group:
            part = min(end, offset + weight.elements) - max(start, offset)
            if part > 0:
                found.append((weight, part))
            offset += weight.elements
        return found

    def micro_step(self, first: bool, last: bool) -> None:
        """Gradients go through the bucket: at once at stage 2, and at stage 1 once all are there."""
        at_once = self.setup.stage == 2 or (last and self.setup.on_gpu)
        self.home.fluid(self.passes.forward_bytes)
        if last or self.setup.stage == 2:
            for buffer in range(1 + self.setup.on_gpu):
                self.home.take(f"bucket {buffer}", self.item * self.setup.bucket)
        for arrival in self.passes.arrivals:
            self.home.fluid(arrival.peak_bytes)
            if not at_once and not self.home.holds(f"gradient {arrival.name}"):
                self.home.take(f"gradient {arrival.name}", self.item * self.elements[arrival.name])
        if self.setup.stage == 2 or last:
            self._reduce("old" if self.setup.stage == 2 and not last else "new")
            self.home.give_all(("bucket 0", "bucket 1"))

    def _reduce(self, turn: str) -> None:
        order = [weight.elements for _, group in self.groups for weight in group]
        names = [weight.name for _, group in self.groups for weight in group]
        owned = sum(weight.elements for _, group in self.groups for weight, _ in self._owned(group))
        place = 0
        for bucket in _buckets(order, self.setup.bucket):
            moved = 0
            while place < len(order) and moved < bucket:
                self.home.give_all([f"gradient {names[place]}"])
                moved += order[place]
                place += 1
            if self.setup.world_size > 1:  # slices of several ranks are flattened
                self.home.passing(self.item * bucket)
            if not self.setup.offload_optimizer and not self.home.holds(f"own gradients {turn}"):
                self.home.take(f"own gradients {turn}", self.item * owned)
        if self.setup.offload_optimizer and self.setup.accumulates and not self.host.holds("accumulated"):
            self.host.take("accumulated", self.item * owned)

    def update(self, first: bool) -> None:
        """Norms in fp64, then group by group: gradients flattened, state made, masters changed."""
        parts = [part for _, group in self.groups for _, part in self._owned(group)]
        self.state_home.passing(NORM_BYTES * max(parts, default=0) if not self.setup.offload_optimizer else 0)
        for key, group in self.groups:
            part = self._padded(group) / self.setup.world_size
            if not self.setup.offload_optimizer:
                self.home.take("flat gradients", MASTER_BYTES * part)
                if self.item != MASTER_BYTES:
                    self.home.passing(self.item * part)
            if first:
                for state in range(self.states(group[0])):
                    self.state_home.take(f"state {state} {key}", MASTER_BYTES * part)
            self.state_home.passing(_WORKING.get(self.setup.optimizer, 0) * MASTER_BYTES * part)
            self.home.give_all(["flat gradients"])
        self.home.give_all(("own gradients old", "own gradients new"))


class _Gathered(_Whole):
    """Stage 3: every weight is cut by itself and gathered for its use."""

    def _part(self, weight: Weight) -> int:
        return -(-weight.elements // self.setup.world_size)

    def build(self) -> None:
        """Weights are cut one by one, then all parts moved into one buffer; masters are a copy of it."""
        home = self.host if self.setup.offload_param else self.home
        for weight in self.weights:
            home.take(f"part {weight.name}", self.item * self._part(weight))
        self.home.fluid(self.item * max(weight.elements for weight in self.weights))
        if self.setup.from_scratch:  # drawn whole, in fp32; else it lies in the mapped file (partition.py)
            self.host.fluid(MASTER_BYTES * sum(weight.elements for weight in self.weights))
        parts = sum(self._part(weight) for weight in self.trained)
        home.take("parts", self.item * parts)
        home.give(*[f"part {weight.name}" for weight in self.trained])
        for key, group in self.groups:
            # a copy in fp32, too: DeepSpeed means to share, and compares a torch.device with a name, which are never equal
            size = MASTER_BYTES * sum(self._part(weight) for weight in group)
            cast = self.item != MASTER_BYTES or (self.setup.offload_optimizer and self.setup.on_gpu)
            self.state_home.take(f"made {key}", size if cast else 0)
            self.state_home.take(f"masters {key}", size)
            self.state_home.give(f"made {key}")
        largest = max(sum(self._part(weight) for weight in group) for _, group in self.groups)
        self.state_home.passing(MASTER_BYTES * largest)
        if self.setup.offload_optimizer:
            self.host.take("gradients", MASTER_BYTES * parts)
        self.home.take("bucket", self.item * self.setup.bucket)
        self.state_home.take("own gradients", self.item * parts)

    def micro_step(self, first: bool, last: bool) -> None:
        """Weights are gathered on the way forward and let go on the way back, where each gradient goes into the bucket."""
        kept = self._gather()
        self.home.fluid(self.passes.forward_bytes)
        for arrival in self.passes.arrivals:
            self.home.fluid(arrival.peak_bytes)
            if arrival.name in kept:
                kept.remove(arrival.name)
                self.home.give_all([f"gathered {arrival.name}"])
        order = [self.elements[arrival.name] for arrival in self.passes.arrivals]
        for bucket in _buckets(order, self.setup.bucket):
            self.home.take("interleaved", self.item * bucket)
            if not self.setup.on_gpu:
                self.home.passing(self.item * bucket)  # gloo reduces in a copy
            self.home.give("interleaved")
        self.home.give_all(f"gathered {name}" for name in kept)

    def _gather(self) -> list[str]:
        """Gather in the model's order, a prefetch at a time; what is kept until the way back."""
        if self.setup.world_size == 1 and not self.setup.offload_param:
            return []
        kept: list[str] = []
        total = sum(weight.elements for weight in self.weights)
        for some in _runs(self.weights, PREFETCH):
            elements = sum(weight.elements for weight in some)
            self.home.take("gathering", self.item * elements)
            if not self.setup.on_gpu:
                self.home.passing(self.item * elements)  # gloo gathers into tensors of its own
            for weight in some:
                self.home.take(f"gathered {weight.name}", self.item * weight.elements)
            self.home.give("gathering")
            total -= elements
            if total > KEPT_GATHERED:
                self.home.give_all(f"gathered {weight.name}" for weight in some)
            else:
                kept += [weight.name for weight in some]
        return kept

    def update(self, first: bool) -> None:
        """As at stages 1 and 2, over this rank's parts."""
        if not self.setup.offload_optimizer:
            self.home.passing(NORM_BYTES * max(self._part(weight) for weight in self.trained))
        for key, group in self.groups:
            size = MASTER_BYTES * sum(self._part(weight) for weight in group)
            if not self.setup.offload_optimizer:
                self.home.take("flat gradients", size)
            if first:
                for state in range(self.states(group[0])):
                    self.state_home.take(f"state {state} {key}", size)
            self.state_home.passing(_WORKING.get(self.setup.optimizer, 0) * size)
            self.home.give_all(["flat gradients"])


def _buckets(elements: Sequence[int], most: int, over: bool = False) -> Iterator[int]:
    """Sums of what goes through a bucket of `most` elements in turn; with `over` one is full once it has more than that."""
    held = 0
    for count in elements:
        if not over and held and held + count > most:
            yield held
            held = 0
        held += count
        if over and held > most:
            yield held
            held = 0
    if held:
        yield held


def _runs(weights: Sequence[Weight], most: int) -> Iterator[list[Weight]]:
    """Weights in order, at least `most` elements to a run where there are as many."""
    run: list[Weight] = []
    for weight in weights:
        run.append(weight)
        if sum(each.elements for each in run) >= most:
            yield run
            run = []
    if run:
        yield run
