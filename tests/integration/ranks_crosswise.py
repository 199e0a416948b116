"""What each rank does in test_restore_crosswise.py: a small model under DeepSpeed, saved at one topology, restored at another.

Run by `rank_server.py`. A case names its `kind`, a function of this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tlcore.checkpoint import CheckpointReader, CheckpointWriter, Piece, WriterSettings, read_manifest
from tlcore.engine import peers, state
from tlcore.engine.sharded import ShardedModel
from tlcore.errors import CheckpointIncompatible
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict
from tlcore.storage import open_store
from tlcore.train.evaluation import evaluate
from tlcore.train.group import agree, sum_over_ranks
from tlcore.transfer import parameter_groups

SAMPLES, WIDTH, BEFORE, AFTER = 12, 9, 3, 2
SETTINGS = WriterSettings(chunk_bytes=64 << 10)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 31), nn.Linear(31, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Small(nn.Module):
    """Embedding tied to the output, blocks, a frozen block, scales of one element, with and without a dimension, and a buffer that
    training changes; odd sizes, so that partitions cut through parameters."""

    def __init__(self, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(701, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.out = nn.Linear(width, 701, bias=False)
        self.out.weight = self.embed.weight
        self.scale, self.heat = nn.Parameter(torch.ones(1)), nn.Parameter(torch.tensor(0.1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.blocks[1].requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return (self.out(x) * self.scale * self.heat.exp()).float()


def recipe_for(case: dict[str, Any]) -> Recipe:
    settings = case["config"]
    return recipe_from_dict(
        {
            "name": "crosswise",
            "task": "text-classification",
            "model": {"source": "some/where"},
            "data": {"train": "x.csv"},
            "train": {
                "global_batch_size": SAMPLES,
                "micro_batch_size": SAMPLES // dist.get_world_size() // settings.get("accumulation", 1),
                "optimizer": settings.get("optimizer", "adamw"),
                "precision": settings.get("precision", "fp32"),
                "learning_rate": 3e-3,
                "warmup_ratio": 0.0,
            },
            "deepspeed": {
                "zero_stage": settings["stage"],
                "offload_optimizer": "cpu" if settings.get("offload") else "none",
                "offload_param": "cpu" if settings.get("offload") and settings["stage"] == 3 else "none",
            },
            "resources": {"workers": dist.get_world_size()},
            "storage": "runs",
        }
    )


def build(case: dict[str, Any], module: nn.Module) -> ShardedModel:
    recipe = recipe_for(case)
    batch = plan_batch(recipe, dist.get_world_size())
    return ShardedModel(recipe, module, parameter_groups(module, recipe), batch, torch.device("cpu"))


def steps(model: ShardedModel, first: int, count: int) -> list[str]:
    """Global losses of these steps, exact. The global batch of a step is the same whatever the world size."""
    rank, world = dist.get_rank(), dist.get_world_size()
    accumulation = model.recipe.train.global_batch_size // world // int(model.recipe.train.micro_batch_size)
    losses = []
    for step in range(first, first + count):
        tokens = torch.randint(0, 701, (SAMPLES, 7), generator=torch.Generator().manual_seed(step))
        own = tokens.chunk(world)[rank].chunk(accumulation)
        loss = model.train_step(step, BEFORE + AFTER, [({"tokens": each}, 1.0) for each in own], _loss)
        losses.append((sum_over_ranks(loss.clone() / accumulation) / world * accumulation).item().hex())
    return losses


def _loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = batch["tokens"]
    logits = module(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def save_at(model: ShardedModel, url: str, step: int) -> None:
    rank = dist.get_rank()
    common = {"parameters": model.parameters, "scalars": model.scalars(), "zero_stage": model.stage}
    with CheckpointWriter(open_store(url), "t000", rank, dist.get_world_size(), 1, SETTINGS) as writer:
        writer.save(step, model.pieces(), common if rank == 0 else None)
        writer.wait()


def save(case: dict[str, Any]) -> list[str]:
    """Train, save, train on: the losses after the save, which a restored run must repeat."""
    model = build(case, Small())
    steps(model, 0, BEFORE)
    save_at(model, case["url"], BEFORE)
    losses = steps(model, BEFORE, AFTER)
    model.close()
    return losses


def restore(case: dict[str, Any]) -> dict[str, Any]:
    """Restore into a model of other weights; the losses from there, and every element of state that is not what was stored."""
    store = open_store(case["url"])
    manifest = agree(read_manifest(store, "t000", BEFORE) if dist.get_rank() == 0 else None)
    model = build(case, Small(seed=1))
    model.restore(CheckpointReader(store, manifest))
    wrong, held = compare(model, CheckpointReader(store, manifest))
    losses = steps(model, BEFORE, AFTER)
    model.close()
    return {"losses": losses, "wrong": wrong, "held": held}


def compare(model: ShardedModel, reader: CheckpointReader) -> tuple[list[str], dict[str, int]]:
    """Live state against stored bytes, read alone and whole: what differs on any rank, and elements per state over all ranks."""
    live = list(state.trained_intervals(model._engine, model.stage))
    live += state.whole_or_partitioned(model._engine.module, model.stage)
    pieces = [state.to_piece(each, model.memory) for each in live]
    stored = [Piece(piece.row, np.zeros(piece.row.size_bytes, np.uint8)) for piece in pieces]
    reader.read_into(stored)
    wrong: list[str] = []
    held: dict[str, int] = {}
    for here, there in zip(pieces, stored, strict=True):
        assert isinstance(here, Piece)
        if not np.array_equal(here.data, there.data):
            wrong.append(f"rank {dist.get_rank()}: {here.row}")
        held[here.row.state] = held.get(here.row.state, 0) + here.row.end - here.row.start
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (wrong, held))
    total: dict[str, int] = {}
    for _, counts in everyone:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return [each for faults, _ in everyone for each in faults], total


def refuse(case: dict[str, Any]) -> str:
    """Restore into a model of another width: the message, which must be the same on all ranks."""
    store = open_store(case["url"])
    manifest = agree(read_manifest(store, "t000", BEFORE) if dist.get_rank() == 0 else None)
    model = build(case, Small(width=WIDTH + 1))
    message = ""
    try:
        model.restore(CheckpointReader(store, manifest))
    except CheckpointIncompatible as error:
        message = str(error)
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, message)
    assert set(said) == {message}
    model.close()
    return message


class Normed(nn.Module):
    """Its running statistics differ from rank to rank, since each counts its own samples."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).float()


class Points:
    """A task as `evaluate` needs one: 40 points, each rank's share counted, the mean loss over all of them."""

    def __init__(self) -> None:
        self.x = torch.randn(40, 4, generator=torch.Generator().manual_seed(7))
        self.counts = torch.zeros(2, dtype=torch.float64)

    def lengths(self, split: str) -> np.ndarray:
        return np.ones(len(self.x), np.int32)

    def collate(self, split: str, indices: np.ndarray, draws: Any = None) -> dict[str, torch.Tensor]:
        return {"x": self.x[indices]}

    def metrics(self) -> Points:
        self.counts.zero_()
        return self

    def update(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.counts += torch.tensor([_spread(model, batch).item() * len(batch["x"]), len(batch["x"])])

    def merge(self, sum_over_ranks: Any) -> None:
        self.counts = sum_over_ranks(self.counts)

    def compute(self) -> dict[str, float]:
        return {"spread": (self.counts[0] / self.counts[1]).item()}


def _spread(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (module(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()


def normed(case: dict[str, Any]) -> dict[str, Any]:
    """Train with a batch norm, save, restore: running statistics and metrics of every rank, before and after."""
    rank, world = dist.get_rank(), dist.get_world_size()

    def statistics(model: ShardedModel) -> list[dict[str, list[float]]]:
        own = {
            name: buffer.double().flatten().tolist() for name, buffer in state.persistent_buffers(model._engine.module)
        }
        found: list[Any] = [None] * world
        dist.all_gather_object(found, own)
        return found

    def metrics(model: ShardedModel) -> list[Any]:
        found: list[Any] = [None] * world
        dist.all_gather_object(found, evaluate(Points(), model.module, "x", model.device, 4, rank, world))
        return found

    model = build(case, Normed())
    for step in range(BEFORE):
        x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(step)) * (rank + 1)
        model.train_step(step, BEFORE, [({"x": x.chunk(world)[rank]}, 1.0)], _spread)
    trained = statistics(model)
    save_at(model, case["url"], BEFORE)
    evaluated = metrics(model)
    model.close()
    store = open_store(case["url"])
    fresh = build(case, Normed(seed=1))
    fresh.restore(CheckpointReader(store, read_manifest(store, "t000", BEFORE)))
    restored = statistics(fresh)
    result = {"trained": trained, "evaluated": evaluated, "restored": restored, "again": metrics(fresh)}
    fresh.close()
    return result


def transport(case: dict[str, Any]) -> str:
    """What ranks say and hand to each other: words of any length, parcels of any size."""
    rank, world, words = dist.get_rank(), dist.get_world_size(), peers.restoring_peers()
    assert words is not None
    for size in (0, 1, 248, 249, 100_000):
        assert words.gather(bytes([rank]) * size * rank) == [bytes([other]) * size * other for other in range(world)]
    for turn in range(3):
        sent = [parcel(rank, to, turn) for to in range(world)]
        wanted = [parcel(sender, rank, turn) for sender in range(world)]
        sizes = [part.nbytes for part in sent], [part.nbytes for part in wanted]
        arrived = words.exchange(np.concatenate(sent), *sizes)
        assert all(np.array_equal(one, other) for one, other in zip(arrived, wanted, strict=True))
    return "the same"


def parcel(sender: int, to: int, turn: int) -> np.ndarray:
    """What one rank sends to another: nothing to itself, nor from rank 0 to rank 1; else more than a page, from odd places on."""
    size = 0 if sender == to or (sender, to) == (0, 1) else 5000 * (sender + 1) + 701 * to + turn
    return np.full(size, 16 * sender + 4 * to + turn, np.uint8)


def run(case: dict[str, Any]) -> Any:
    return globals()[case["kind"]](case)
