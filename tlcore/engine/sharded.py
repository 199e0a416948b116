"""A model under DeepSpeed: build, step, give its state out, take it back.

Owns the DeepSpeed engine of one trial in one process. Does not own data, the schedule of saves, or metrics (`train/`), nor the
format of what is saved (`checkpoint/`). Called by `train/`. Needs torch.distributed to be initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import deepspeed
import torch

from tlcore.checkpoint import CheckpointReader, Peers
from tlcore.checkpoint.device import StatePiece
from tlcore.engine import state
from tlcore.engine.activations import checkpoint_activations
from tlcore.engine.carry import CarriedState, StateSource
from tlcore.engine.config import deepspeed_config
from tlcore.engine.device import TorchDevice
from tlcore.engine.formats import move_buffers, move_parameters
from tlcore.engine.gather import gather_by_broadcast
from tlcore.engine.muon import Exchange, MuonWithAdamW, Part
from tlcore.engine.optimizer import build_optimizer, learning_rate
from tlcore.engine.partition import partition
from tlcore.engine.peers import restoring_peers
from tlcore.engine.precision import MODEL_DTYPES, choose_precision
from tlcore.engine.restore import (
    as_stored,
    base_optimizer,
    let_go_of_gathered,
    optimizer_steps,
    prime_optimizer,
    read_intervals,
    refresh_working_weights,
    scaler_state,
    set_optimizer_steps,
    set_scaler_state,
    states_of_masters,
    stored_steps,
)
from tlcore.engine.scalars import allow_scalars
from tlcore.engine.stale import forget_engine
from tlcore.recipe import BatchPlan, Recipe

Batch = dict[str, torch.Tensor]
Loss = Callable[[torch.nn.Module, Batch], torch.Tensor]


class ShardedModel:
    """One trial's model, optimizer and ZeRO state on this rank.

    Args:
        recipe: gives stage, offload, precision, optimizer and schedule.
        model: with requires_grad already set by the transfer strategy; moved to `device` and cast here.
        groups: parameter groups for the optimizer.
        batch: the batch arithmetic; DeepSpeed counts micro-steps by it.
        device: this rank's device.
        memory: what copies from it, the writer's own; None makes one. A trial that changes engines keeps one: the writer orders
            copies by it, and would not see those of another.

    Raises:
        RequestError: a precision the device does not have.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: torch.nn.Module,
        groups: Sequence[dict[str, Any]],
        batch: BatchPlan,
        device: torch.device,
        memory: TorchDevice | None = None,
    ) -> None:
        self.recipe = recipe
        self.stage = recipe.deepspeed.zero_stage
        self.device = device
        self.precision = choose_precision(recipe, device)
        if recipe.train.activation_checkpointing:
            checkpoint_activations(model)
        if recipe.train.compile:
            model.compile()
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        _skip_inference_op()
        gather_by_broadcast()
        allow_scalars()
        # Stage 3 replaces it for good, by one that rounds otherwise: the next trial of this process must not meet that.
        self._linear = torch.nn.functional.linear
        config = deepspeed_config(recipe, batch, self.precision, device.type, trained)
        if self.stage == 3:
            partition(model, config, device, MODEL_DTYPES[self.precision])
        else:
            # DeepSpeed broadcasts and shards only what is trained; frozen weights must be cast here.
            move_parameters(model, device, MODEL_DTYPES[self.precision])
            move_buffers(model, device, MODEL_DTYPES[self.precision])
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=build_optimizer(recipe, groups), config=config, dist_init_required=False
        )
        self.parameters = state.parameter_table(self._engine.module)
        self._share_matrices()
        if self.precision == "fp16":
            # While the first steps overflow, the optimizer makes no state, and a checkpoint needs it.
            prime_optimizer(self._engine, self.stage)
            set_optimizer_steps(self._engine, self.stage, lambda names: 0)
        self.memory = memory or TorchDevice(device)

    @property
    def module(self) -> torch.nn.Module:
        """The model as the task knows it; under stage 3 its weights are gathered as its modules run."""
        module: torch.nn.Module = self._engine
        return module

    def train_step(
        self,
        step: float,
        total_steps: int,
        micro_batches: Iterable[tuple[Batch, float]],
        loss_of: Loss,
        before_update: Callable[[], object] = lambda: None,
    ) -> torch.Tensor:
        """One optimizer step over this rank's micro-batches.

        Args:
            step: global step from 0, of `total_steps` (a place between two, where the batch changed); decides the learning rate.
            micro_batches: exactly accumulation_steps pairs of a batch and its weight. The gradient is the mean over ranks and
                micro-steps of weight * loss: weights of samples * ranks * micro-steps / global samples make it the mean over the
                global batch however unevenly it is dealt; 0 for a filler batch.
            before_update: called when all gradients are there, right before masters and moments change: nothing that `pieces`
                gives but buffers changes earlier.

        Returns:
            This rank's share of the mean loss over the global batch, a detached scalar on the device: the mean over ranks of it.
        """
        self.set_learning_rate(learning_rate(self.recipe, step, total_steps))
        total = torch.zeros((), device=self.device)
        count = 0
        for batch, weight in micro_batches:
            loss = loss_of(self._engine, batch) * weight
            self._engine.backward(loss)
            if self._engine.is_gradient_accumulation_boundary():
                before_update()
            self._engine.step()
            total += loss.detach()
            count += 1
        return total / max(1, count)

    def set_learning_rate(self, rate: float) -> None:
        """Rate of the next step; each parameter group takes its own share of it."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)

    def _share_matrices(self) -> None:
        """Tell Muon where DeepSpeed has left the parts of its matrices."""
        optimizer = base_optimizer(self._engine)
        if not isinstance(optimizer, MuonWithAdamW) or self.stage == 0:
            return
        matrices = {name for group in optimizer.param_groups if group["muon"] for name in group["names"]}
        parts: dict[torch.Tensor, list[Part]] = {flat: [] for flat in state.flat_partitions(self._engine, self.stage)}
        for name, parameter in self._engine.module.named_parameters():
            place = state.place_of(self._engine, self.stage, parameter) if name in matrices else None
            if place is not None:
                parts[place.flat].append(Part(name, place.start, place.offset, place.count))
        shapes = {name: tuple(facts["shape"]) for name, facts in self.parameters.items() if name in matrices}
        optimizer.share(Exchange(list(parts.items()), shapes, self.device))

    def pieces(self) -> list[StatePiece]:
        """This rank's part of the whole state, as views on live memory, the host's or the device's. Rank order is by the owner
        of each interval; together the ranks' pieces cover every state of every parameter exactly once."""
        trained = state.trained_intervals(self._engine, self.stage)
        if self.stage == 0:
            trained = state.share_out(trained)
        frozen = state.frozen_intervals(self._engine.module, self.stage)
        pieces = [state.to_piece(each, self.memory) for each in trained]
        pieces += [state.to_piece(each, self.memory, immutable=each.state == state.FROZEN) for each in frozen]
        return pieces

    def scalars(self) -> dict[str, Any]:
        """What belongs to the state and is no tensor (JSON-able)."""
        steps, late = optimizer_steps(self._engine, self.stage)
        more = {"late_steps": late} if late else {}
        return {"optimizer_steps": steps, "loss_scaler": scaler_state(self._engine), **more}

    def restore(self, reader: CheckpointReader, *, allow_refreeze: bool = False) -> None:
        """Take the state back from a checkpoint written at any stage and world size. All ranks together; each stored byte is read
        by one of them.

        With `allow_refreeze` parameters may be trained here that were frozen there, or the other way: the former begin with fresh
        optimizer state (its step count too, where all of a parameter group does), the latter stay as they were.

        Raises:
            CheckpointIncompatible: the stored parameters are not this model's.
            CheckpointCorrupt: stored bytes do not match their digests. On every rank, whichever found it.
        """
        manifest = reader.manifest
        state.check_fits(self.parameters, manifest.parameters, allow_refreeze=allow_refreeze)
        reader.begin(peers := restoring_peers())
        self._take(reader, manifest.parameters, manifest.scalars, peers)

    def carry(self) -> CarriedState:
        """The state as it is now, this rank's part, in memory that outlives `close`."""
        return CarriedState.of(self.pieces(), self.memory, self.parameters, self.scalars())

    def adopt(self, carried: CarriedState) -> None:
        """Take over what an engine of the same model carried, whatever of it trained there. All ranks together."""
        state.check_fits(self.parameters, carried.parameters, allow_refreeze=True)
        self._take(carried, carried.parameters, carried.scalars, restoring_peers())

    def _take(
        self, source: StateSource, stored: Mapping[str, Any], scalars: Mapping[str, Any], peers: Peers | None
    ) -> None:
        """Fill this engine's state. `stored` describes the parameters of `source`: name -> facts."""
        let_go_of_gathered(self._engine, self.stage)
        prime_optimizer(self._engine, self.stage)
        trained = state.trained_intervals(self._engine, self.stage)
        others = state.whole_or_partitioned(self._engine.module, self.stage)
        read_intervals(
            source,
            as_stored(chain(trained, others), stored),
            peers,
            states_of_masters(self.parameters, stored, self.stage),
            lambda: refresh_working_weights(self._engine, self.stage),
        )
        set_optimizer_steps(self._engine, self.stage, stored_steps(stored, scalars))
        set_scaler_state(self._engine, scalars["loss_scaler"])

    def close(self) -> None:
        """Drop the engine, its hooks and its memory."""
        model = self._engine.module
        self._engine.destroy()
        torch.nn.functional.linear = self._linear
        del self._engine
        forget_engine(model)


def _skip_inference_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce on CPU machines: minutes of g++ at first use, and only its
    inference engine calls it."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
