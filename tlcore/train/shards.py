"""What an exported model's files hold: which tensors under which names, cut into safetensors files of a bounded size.

Owns the plan, made from a model on the meta device, and the layout of one file. Reads no weights. Called by `export.py`.

transformers 5 loads some families through conversions (fused experts, renamed or stacked weights) and reverts them on saving. The
plan asks transformers itself what a state dict reverts to, and groups the tensors that one reversal needs together, so that a
shard is made from a few tensors and not from the whole model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tlcore.models.stored import weights_of

_FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls a dtype."""
_ALIGNMENT = 8


@dataclass(frozen=True)
class Target:
    """One tensor of the export."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of it in the file."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Part:
    """Tensors of the model that become tensors of the export together; `converted` unless it is one that stays as it is."""

    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    converted: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of its targets."""
        return sum(target.size_bytes for target in self.targets)


def plan_parts(model: Any, dtype: torch.dtype) -> list[Part]:
    """The parts of an export in the model's order.

    Args:
        model: on the meta device; a transformers model, or any module, whose state is then exported by its own names.
        dtype: of what is floating; the rest keeps its own.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return [_part((name,), {name: tensor}, dtype, False) for name, tensor in weights_of(model).items()]
    state = _own_state(model)
    parts = [
        _part(group, revert(model, {name: state[name] for name in group}), dtype, converted)
        for group, converted in _groups(model, list(state))
    ]
    whole = _part(tuple(state), revert(model, state), dtype, True)
    found = {target for part in parts for target in part.targets}
    # Only together do they come to what transformers saves: one part, at the price of the model's memory.
    return parts if found == set(whole.targets) else [whole]


def _own_state(model: Any) -> dict[str, torch.Tensor]:
    """What `save_pretrained` would save, before conversions: tied weights under the name that loading expects."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    kept: dict[str, torch.Tensor] = remove_tied_weights_from_state_dict(state, model)
    return kept


def _groups(model: Any, names: Sequence[str]) -> list[tuple[tuple[str, ...], bool]]:
    """Names that one reversal needs together, and whether it does more than to rename one."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightConverter, apply_converters

    mapping = [
        entry
        for entry in get_model_conversion_mapping(model, add_legacy=False) or ()
        if not isinstance(entry, PrefixChange)
    ]
    # As transformers does for a model that was not loaded; kept, so that it is worked out once.
    model._weight_conversions = mapping or None
    reverses = [entry.reverse_transform() for entry in reversed(mapping)]
    converters = [entry for entry in reverses if isinstance(entry, WeightConverter)]
    groups: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        becomes, pattern = apply_converters(name, converters)
        groups.setdefault((pattern is not None, name if pattern is None else becomes), []).append(name)
    return [(tuple(group), converted) for (converted, _), group in groups.items()]


def revert(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """These tensors as `save_pretrained` would save them."""
    from transformers.core_model_loading import revert_weight_conversion

    if getattr(model, "_weight_conversions", None) is None:
        return dict(tensors)
    reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(tensors))
    return reverted


def _part(sources: tuple[str, ...], targets: Mapping[str, torch.Tensor], dtype: torch.dtype, converted: bool) -> Part:
    made = (
        Target(name, tuple(tensor.shape), dtype if tensor.dtype.is_floating_point else tensor.dtype)
        for name, tensor in targets.items()
    )
    return Part(sources, tuple(made), converted)


def cut(parts: Iterable[Part], most_bytes: int) -> list[list[Part]]:
    """Shards of at most `most_bytes` of tensors, in order; a part that is larger has one of its own."""
    shards: list[list[Part]] = []
    size = 0
    for part in parts:
        if not shards or size + part.size_bytes > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.size_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """File names as transformers writes them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


@dataclass(frozen=True)
class Layout:
    """One file: its header, and where each tensor's bytes are."""

    header: bytes
    offsets: Mapping[str, int]
    size_bytes: int

    @classmethod
    def of(cls, targets: Iterable[Target]) -> Layout:
        """Wide formats first, so that every tensor lies on a multiple of its own item size."""
        ordered = sorted(targets, key=lambda target: -target.dtype.itemsize)
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offsets: dict[str, int] = {}
        end = 0
        for target in ordered:
            offsets[target.name] = end
            end += target.size_bytes
            entries[target.name] = {
                "dtype": _FORMATS[target.dtype],
                "shape": list(target.shape),
                "data_offsets": [offsets[target.name], end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, {name: len(header) + offset for name, offset in offsets.items()}, len(header) + end)

    def views(self, targets: Iterable[Target], memory: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Write the header into `memory` and give each tensor's place in it."""
        memory[: len(self.header)] = np.frombuffer(self.header, dtype=np.uint8)
        found = {}
        for target in targets:
            start = self.offsets[target.name]
            flat = torch.from_numpy(memory[start : start + target.size_bytes])
            found[target.name] = flat.view(target.dtype).view(target.shape)
        return found
