"""A checkpoint's weights as plain tensors, whatever stage and world size wrote them and whatever strategy trained them.

Owns the view: parameters by the names they have in a model without adapters, each either the master, the frozen weight or the
buffer; LoRA and DoRA updates merged into the layer they belong to, or given apart. Reads nothing into memory of its own but what
has to be cast or merged. Called by `build.py` (a checkpoint as a source) and by `train/` (export, evaluation).

peft's names: a layer `x` with an update has `x.base_layer.weight`, `x.lora_A.default.weight` [rank, in] and
`x.lora_B.default.weight` [out, rank]; its plain name is `x.weight` = base + scaling * B A. DoRA has
`x.lora_magnitude_vector.default.weight` [out] too, the length that each row of that sum is brought to. QLoRA's base is codes of
four bits beside `x.base_layer.scales` (`four_bit.py`); by its plain name it is the dense weight that these stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from tlcore.checkpoint import CheckpointReader, Manifest, Piece, Row
from tlcore.errors import CheckpointIncompatible
from tlcore.models.four_bit import unpack
from tlcore.models.weights import WEIGHTS, NodeWeights
from tlcore.recipe import Recipe, trial_recipe_from_dict
from tlcore.storage.base import ObjectStore

if TYPE_CHECKING:
    from torch import nn

ADAPTER = "default"
_BASE, _A, _B = ".base_layer.", f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}."
_LENGTHS = f".lora_magnitude_vector.{ADAPTER}."
_CASTING_BYTES = 32 << 20
"""Memory for what is read in another format than it is wanted in, before it is cast; one tensor may need more."""


@dataclass(frozen=True)
class _Update:
    """Names of a layer's stored update; `lengths` only where it is DoRA's."""

    a: str
    b: str
    lengths: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.a, self.b) if self.lengths is None else (self.a, self.b, self.lengths)


class StoredWeights:
    """The weights of one checkpoint, by plain name.

    Args:
        transposed: names of layers whose weight is [in, out] (transformers' Conv1D); see `transposed_layers`.
        connections: ranges read at a time; each takes up to a chunk of memory.
        reader: reads the weights from elsewhere than the store.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        transposed: frozenset[str] = frozenset(),
        connections: int = 4,
        reader: CheckpointReader | NodeWeights | None = None,
    ) -> None:
        self.manifest = manifest
        self._reader = reader or CheckpointReader(store, manifest, connections)
        self._transposed = transposed
        self._stored: dict[str, str] = {}
        self._updates: dict[str, _Update] = {}
        self._scales = _scales_of(manifest)
        for name in manifest.parameters:
            if _A in name:
                layer = name.partition(_A)[0]
                lengths = name.replace(_A, _LENGTHS)
                there = lengths in manifest.parameters
                self._updates[f"{layer}.weight"] = _Update(name, name.replace(_A, _B), lengths if there else None)
            elif _B not in name and _LENGTHS not in name and name not in self._scales.values():
                self._stored[name.replace(_BASE, ".")] = name

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that trained them."""
        return trial_recipe_from_dict(self.manifest.common["recipe"], source=f"recipe in {self.manifest.key}")

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter and buffer, by plain name."""
        return tuple(self._stored)

    @property
    def updated(self) -> tuple[str, ...]:
        """Plain names of the weights that have an update."""
        return tuple(self._updates)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of what is stored under a plain name; None when nothing is."""
        stored = self._stored.get(name)
        return None if stored is None else self._shape(stored)

    def check(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Raise CheckpointIncompatible, naming the first of a whole model's weights that is not stored, or in another shape, or the
        first stored update that is of none of them."""
        self._check_each(wanted)
        if lost := next((name for name in self._updates if name not in wanted), None):
            raise CheckpointIncompatible(
                f"{lost} has an update in the checkpoint and is not in the model",
                hint="the model's source changed since the checkpoint was written",
                parameter=lost,
            )

    def _check_each(self, wanted: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in wanted.items():
            shape = self.shape(name)
            if shape is None or list(shape) != list(tensor.shape):
                there = "absent" if shape is None else f"of shape {list(shape)}"
                raise CheckpointIncompatible(
                    f"{name} has shape {list(tensor.shape)} in the model and is {there} in the checkpoint",
                    hint="the model's source or the labels changed since the checkpoint was written",
                    parameter=name,
                )
        for name, owner in self._tied_updates():
            if owner in wanted:
                raise CheckpointIncompatible(
                    f"{name} has an update in the checkpoint and is tied to {owner}: no model can hold it merged",
                    hint="`tlcore export CHECKPOINT DIR --adapter` writes the updates apart; train anew without that layer among "
                    "transfer.target_modules",
                    parameter=name,
                )

    def _tied_updates(self) -> Iterator[tuple[str, str]]:
        """Plain names of a weight that has an update, and of the one that it is tied to, by which it would be read without it."""
        for name in self._updates:
            stored = self._stored.get(name)
            owner = self.manifest.parameters[stored].tied_to if stored else None
            if owner is not None:
                yield name, owner.replace(_BASE, ".")

    def read_into(self, wanted: Mapping[str, torch.Tensor], *, merge: bool = True) -> None:
        """Fill contiguous CPU tensors of any floating format, by plain name; updates are merged unless told not to.

        Raises:
            CheckpointIncompatible: not stored, in another shape, or tied to what has an update.
            CheckpointCorrupt: stored bytes are not what they were.
        """
        self._check_each(wanted)
        direct: list[Piece] = []
        casting: dict[str, torch.Tensor] = {}
        held = 0
        for name, tensor in wanted.items():
            if not tensor.numel():
                continue
            stored = self._stored[name]
            if self._dtype(stored) == tensor.dtype and not (merge and name in self._updates):
                direct.append(self._piece(stored, tensor))
                continue
            casting[name] = tensor
            held += self._bytes(stored)
            if held >= _CASTING_BYTES:
                self._read_and_cast(casting, merge)
                casting, held = {}, 0
        self._reader.read_into(direct)
        self._read_and_cast(casting, merge)

    def read_updates(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Plain name of the layer, and in fp32 A [rank, in], B [out, rank] and, of DoRA's, lengths [out], for every layer with an
        update."""
        for name, update in self._updates.items():
            parts = [self._fresh(part) for part in update.names]
            self._reader.read_into([self._piece(*each) for each in zip(update.names, parts, strict=True)])
            yield name.removesuffix(".weight"), [part.float() for part in parts]

    def _read_and_cast(self, wanted: Mapping[str, torch.Tensor], merge: bool) -> None:
        whole = {name: self._fresh(self._stored[name]) for name in wanted}
        updates = {name: self._updates[name] for name in wanted if merge and name in self._updates}
        parts = {name: [self._fresh(part) for part in update.names] for name, update in updates.items()}
        pieces = [self._piece(self._stored[name], tensor) for name, tensor in whole.items()]
        scales = {
            name: self._fresh(self._scales[stored]) for name in wanted if (stored := self._stored[name]) in self._scales
        }
        pieces += [self._piece(self._scales[self._stored[name]], tensor) for name, tensor in scales.items()]
        for name, update in updates.items():
            pieces += [self._piece(*each) for each in zip(update.names, parts[name], strict=True)]
        self._reader.read_into(pieces)
        for name, tensor in wanted.items():
            value = whole.pop(name)
            if name in scales:
                value = unpack(value, scales.pop(name), torch.float32)
            if name in parts:
                value = self._merged(name, value.float(), *parts.pop(name))
            tensor.copy_(value)

    def _merged(
        self, name: str, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Base weight plus its update, in fp32 and in peft's own order of roundings."""
        update = b.float() @ a.float()
        is_transposed = name.removesuffix(".weight") in self._transposed
        merged = base.add_((update.T if is_transposed else update) * self.recipe.transfer.lora_scaling)
        if lengths is None:
            return merged
        rows = merged.T if is_transposed else merged
        factors = (lengths.float() / torch.linalg.norm(rows, dim=1)).view(-1, 1)
        return merged.mul_(factors.T if is_transposed else factors)

    def _dtype(self, stored: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.manifest.parameters[self._owner(stored)].dtype)
        return dtype

    def _shape(self, stored: str) -> tuple[int, ...]:
        shape = self.manifest.parameters[stored].shape
        return (shape[0], 2 * shape[1]) if stored in self._scales else shape

    def _bytes(self, stored: str) -> int:
        """In memory, once read: what is kept in four bits is in fp32 then."""
        if stored in self._scales:
            return 4 * math.prod(self._shape(stored))
        return self.manifest.parameters[stored].elements * self._dtype(stored).itemsize

    def _owner(self, stored: str) -> str:
        return self.manifest.parameters[stored].tied_to or stored

    def _fresh(self, stored: str) -> torch.Tensor:
        return torch.empty(self.manifest.parameters[stored].shape, dtype=self._dtype(stored))

    def _piece(self, stored: str, tensor: torch.Tensor) -> Piece:
        states = self._reader.states(stored)
        state = next((each for each in WEIGHTS if each in states), None)
        if state is None:
            raise CheckpointIncompatible(f"{self.manifest.key}: {stored} has no weights, only {', '.join(states)}")
        flat = tensor.view(-1)
        row = Row(self._owner(stored), state, 0, flat.numel(), str(flat.dtype).removeprefix("torch."))
        return Piece(row, flat.view(torch.uint8).numpy())


def _scales_of(manifest: Manifest) -> dict[str, str]:
    """Names of stored codes of four bits -> names of their scales."""
    layers = {name.removesuffix(".scales") for name in manifest.parameters if name.endswith(".scales")}
    codes = {f"{layer}.weight": f"{layer}.scales" for layer in layers}
    there = manifest.parameters
    return {name: scales for name, scales in codes.items() if name in there and there[name].dtype == "uint8"}


def transposed_layers(model: nn.Module) -> frozenset[str]:
    """Names of the layers whose weight is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's own parameters (tied ones once, under the first name) and persistent buffers, as live tensors by name."""
    found = {name: parameter.data for name, parameter in model.named_parameters()}
    return found | dict(_buffers(model))


def _buffers(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer
