"""Muon for the matrices of the blocks, AdamW for the rest, at every ZeRO stage.

Owns their steps, and the exchange that gives Muon whole matrices where ZeRO leaves each rank a part. `optimizer.py` makes it;
`sharded.py` tells it, once DeepSpeed has cut the parameters, which part of which matrix lies where.

Momentum is kept where DeepSpeed keeps everything else: flat, a part per rank, so that checkpoints find it as they find Adam's
moments. What needs a whole matrix is its orthogonalization. The ranks send their parts of the update to one of them, which
orthogonalizes and sends the parts back (the "Distributed Muon" of Liu et al. 2025 gathers every matrix on every rank that holds a
part of it; here each is computed once). At stages 1 and 2 the partition's cuts go through few matrices and the rest stay where
they are; at stage 3 a rank sends and receives its whole part, in bf16, which is what the iteration works in anyway: no result
differs by it. A round takes as many matrices as fill `_ROUND_ELEMENTS` per rank, and at least one for each rank.

DeepSpeed's own Muon (0.19) keeps out of this on purpose: it folds gradients into the momentum before the norm is clipped, works on
gradients that it must keep whole, and its momentum is found in another place at each stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from tlcore.engine.own_optimizers import ByGroup, Group

_MOMENTUM: Final = 0.95
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5
_SMALLEST_NORM: Final = 1e-7
_ROUND_ELEMENTS: Final = 1 << 24
"""Elements of a round for each rank, where its matrices are no larger: 32 MB of bf16 to send and as much to receive."""


@dataclass(frozen=True)
class Part:
    """Elements `[start, start + count)` of a flattened matrix: of the flat partition of this rank those from `offset` on."""

    matrix: str
    start: int
    offset: int
    count: int


@dataclass(frozen=True)
class Shared:
    """A matrix that ranks hold parts of: `counts[r]` elements lie on rank `r`, in the order of ranks."""

    matrix: str
    rows: int
    columns: int
    counts: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Of all ranks together."""
        return self.rows * self.columns

    @property
    def flops(self) -> float:
        """What orthogonalizing costs, but for a factor that all have alike."""
        return self.elements * min(self.rows, self.columns)


@dataclass(frozen=True)
class Round:
    """Matrices that are exchanged together, and the rank that computes each."""

    matrices: tuple[Shared, ...]
    owners: tuple[int, ...]

    def of(self, owner: int) -> list[Shared]:
        """The matrices that a rank computes, in order."""
        return [each for each, rank in zip(self.matrices, self.owners, strict=True) if rank == owner]


def plan_rounds(matrices: Sequence[Shared], world_size: int, most: int = _ROUND_ELEMENTS) -> list[Round]:
    """Cut matrices into rounds and give each an owner: among the ranks that hold at least half as much of it as the one that holds
    most, the one with the least to compute so far. The same on every rank."""
    rounds: list[Round] = []
    load = [0.0] * world_size
    for some in _fill(matrices, world_size, most):
        owners = {}
        for each in sorted(some, key=lambda one: (-one.flops, one.matrix)):
            near = [rank for rank, count in enumerate(each.counts) if 2 * count >= max(each.counts)]
            owner = min(near, key=lambda rank: load[rank])
            load[owner] += each.flops
            owners[each.matrix] = owner
        rounds.append(Round(tuple(some), tuple(owners[each.matrix] for each in some)))
    return rounds


def _fill(matrices: Sequence[Shared], world_size: int, most: int) -> Iterator[list[Shared]]:
    some: list[Shared] = []
    for each in matrices:
        some.append(each)
        if len(some) >= world_size and sum(one.elements for one in some) >= most * world_size:
            yield some
            some = []
    if some:
        yield some


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly (singular values between 0.7 and 1.2), in bf16.

    The quintic Newton-Schulz iteration of Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.mT if tall else matrix).bfloat16()
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if tall else wide


def _scale(rows: int, columns: int) -> float:
    return 0.2 * math.sqrt(max(rows, columns))


class MuonWithAdamW(ByGroup):
    """Muon (Jordan et al. 2024) for the groups that say `muon`, AdamW for the others, at one learning rate.

    Muon's update is scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982), so rate
    and decay mean the same for both. A step of flat partitions is for all ranks together.
    """

    def __init__(self, groups: Sequence[Group], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        others = [group for group in self.param_groups if not group["muon"]]
        self._adamw = torch.optim.AdamW(others, lr=lr, fused=True) if others else None
        if self._adamw is not None:
            self._adamw.state = self.state
        self._exchange: Exchange | None = None

    def share(self, exchange: Exchange) -> None:
        """Where the parts of the matrices are, once a ZeRO stage has cut them."""
        self._exchange = exchange

    def _update(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        if group["muon"]:
            for weights, gradient in zip(parameters, gradients, strict=True):
                self._step(group, weights, gradient)
        elif self._adamw is not None:
            self._adamw.param_groups = [group]
            self._adamw.step()

    def _step(self, group: Group, weights: Tensor, gradient: Tensor) -> None:
        state = self.state[weights]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        if weights.ndim == 2:
            update = orthogonalized(gradient.lerp(momentum, _MOMENTUM))
            weights.add_(update, alpha=-group["lr"] * _scale(*weights.shape))
            return
        assert self._exchange is not None, "a flat partition, and nobody has told where its matrices are"

        def update_of(part: Part) -> Tensor:
            here = slice(part.offset, part.offset + part.count)
            return gradient[here].lerp(momentum[here], _MOMENTUM)

        for part, matrix, update in self._exchange.updates(weights, update_of):
            here = weights[part.offset : part.offset + part.count]
            here.add_(update.to(here.device), alpha=-group["lr"] * _scale(matrix.rows, matrix.columns))


class Exchange:
    """The rounds of every flat partition, and this rank's parts in them.

    Args:
        flats: each flat partition that holds matrices, and this rank's parts in it; the same partitions in the same order on every
            rank. All ranks together make one.
        shapes: rows and columns of every matrix.
        device: where matrices are computed, and what the ranks' collectives reach.
    """

    def __init__(
        self,
        flats: Sequence[tuple[Tensor, Sequence[Part]]],
        shapes: Mapping[str, tuple[int, int]],
        device: torch.device,
    ) -> None:
        self._rank, self._world, self._device = dist.get_rank(), dist.get_world_size(), device
        told: list[Any] = [None] * self._world
        dist.all_gather_object(told, [{part.matrix: part.count for part in parts} for _, parts in flats])
        self._parts = {flat: {part.matrix: part for part in parts} for flat, parts in flats}
        self._rounds: dict[Tensor, list[Round]] = {}
        for number, (flat, _) in enumerate(flats):
            counts = [each[number] for each in told]
            names = [name for name in shapes if any(name in held for held in counts)]
            shared = [Shared(name, *shapes[name], tuple(held.get(name, 0) for held in counts)) for name in names]
            self._rounds[flat] = plan_rounds(shared, self._world)

    def updates(self, flat: Tensor, update_of: Callable[[Part], Tensor]) -> Iterator[tuple[Part, Shared, Tensor]]:
        """Each part of this rank with its orthogonalized update (1-D, bf16). All ranks together, to the end."""
        for each in self._rounds[flat]:
            yield from self._round(each, self._parts[flat], update_of)

    def _round(
        self, now: Round, parts: Mapping[str, Part], update_of: Callable[[Part], Tensor]
    ) -> Iterator[tuple[Part, Shared, Tensor]]:
        everyone = range(self._world)
        mine = [[one for one in now.of(owner) if one.counts[self._rank]] for owner in everyone]
        theirs = [[(one, rank) for one in now.of(self._rank) if one.counts[rank]] for rank in everyone]
        send = self._joined(update_of(parts[one.matrix]) for owned in mine for one in owned)
        send_counts = [sum(one.counts[self._rank] for one in owned) for owned in mine]
        receive_counts = [sum(one.counts[rank] for one, _ in held) for rank, held in enumerate(theirs)]
        received = self._swap(send, send_counts, receive_counts)
        pieces = iter(received.split([one.counts[rank] for held in theirs for one, rank in held]))
        found = {(one.matrix, rank): next(pieces) for held in theirs for one, rank in held}
        for one in now.of(self._rank):
            ranks = [rank for rank in everyone if one.counts[rank]]
            whole = torch.cat([found[one.matrix, rank] for rank in ranks]).view(one.rows, one.columns)
            cut = orthogonalized(whole).reshape(-1).split([one.counts[rank] for rank in ranks])
            found.update({(one.matrix, rank): values for rank, values in zip(ranks, cut, strict=True)})
        back = self._joined(found[one.matrix, rank] for held in theirs for one, rank in held)
        returned = self._swap(back, receive_counts, send_counts)
        order = [one for owned in mine for one in owned]
        values = returned.split([one.counts[self._rank] for one in order])
        yield from ((parts[one.matrix], one, update) for one, update in zip(order, values, strict=True))

    def _joined(self, values: Iterable[Tensor]) -> Tensor:
        parts = [each.to(self._device, torch.bfloat16) for each in values]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bfloat16, device=self._device)

    def _swap(self, values: Tensor, counts: Sequence[int], back: Sequence[int]) -> Tensor:
        """Send `counts[r]` elements to each rank `r` and receive `back[r]` from it."""
        if self._world == 1:
            return values
        found = torch.empty(sum(back), dtype=values.dtype, device=values.device)
        # as bytes: gloo moves no bf16, nor whole numbers of that size
        width = values.element_size()
        incoming, outgoing = ([width * count for count in each] for each in (back, counts))
        dist.all_to_all_single(found.view(torch.uint8), values.view(torch.uint8), incoming, outgoing)
        return found
