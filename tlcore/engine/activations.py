"""Memory of one forward and backward pass, counted without running it.

Owns the count, and the switch for activation checkpointing. The model is built over fake tensors, which have shapes, dtypes and a
device and no memory; a forward and a backward pass over them calls every operator, so what autograd saves, what an operator needs
besides, and what activation checkpointing drops and makes again are all in the count, for whatever family of models. On a CPU it is
the same, to the byte, as counted over real tensors. Nothing is known here of ZeRO: gradients are noted as they arrive and taken
away, since what becomes of them is DeepSpeed's business (`zero_memory.py`).

A published formula (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198,
equation 2: s b h (34 + 5 a s / h) bytes per layer at 16 bits) holds for one kind of transformer with one kind of attention; fused
attention, other heads and frozen parts are counted here as they are. Called by `train/`, which makes model and batch from a recipe.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tlcore.errors import RequestError


@dataclass(frozen=True)
class Arrival:
    """A gradient is complete: `name` is its parameter's, `peak_bytes` the most that activations took since the one before."""

    name: str
    peak_bytes: int


@dataclass(frozen=True)
class PassMemory:
    """What one micro-batch takes beside weights and gradients.

    `forward_bytes`: the most during the forward pass; `arrivals`: the gradients in the order in which the backward pass gives them.
    """

    forward_bytes: int
    arrivals: tuple[Arrival, ...]

    @property
    def peak_bytes(self) -> int:
        """The most of both passes."""
        return max(self.forward_bytes, *(arrival.peak_bytes for arrival in self.arrivals), 0)


@contextmanager
def nothing_allocated() -> Iterator[None]:
    """Inside, tensors that are made have no memory, and what a model checks of their values is taken to hold. Build the model and
    its batch here, then `count_pass`."""
    moved, checked = torch.nn.Module._apply, torch._check_tensor_all_with
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    torch._check_tensor_all_with = lambda *condition: None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.nn.Module._apply = moved  # type: ignore[method-assign]
        torch._check_tensor_all_with = checked


def _apply(self: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
    """`Module.to` and its kin over fake tensors: torch would exchange parameters in place, which these cannot."""
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is not None and (made := fn(parameter.detach())).dtype != parameter.dtype:
                module._parameters[name] = torch.nn.Parameter(made, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return self


def count_pass(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> PassMemory:
    """Run `loss()` and its backward pass over fake tensors and count. Call inside `nothing_allocated`.

    Args:
        loss: the mean loss of one micro-batch that lies ready, a scalar with gradient.
    """
    arrivals: list[Arrival] = []
    with _Live() as live:

        def note(name: str, parameter: torch.Tensor) -> None:
            parameter.grad = None
            arrivals.append(Arrival(name, live.take_peak()))

        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda each, name=name: note(name, each))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        try:
            value = loss()
            forward = live.take_peak()
            value.backward()
        finally:
            for hook in hooks:
                hook.remove()
    return PassMemory(forward, tuple(arrivals))


class _Live(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._now = self._peak = 0

    def take_peak(self) -> int:
        """The most at any time since the last call."""
        peak, self._peak = self._peak, self._now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_key(each) for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            # a view, or what was written in place, is nothing new
            if isinstance(each, torch.Tensor) and (key := _key(each)) not in self._sizes and key not in inputs:
                self._add(key, each.untyped_storage())
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._sizes[key] = size
        self._now += size
        self._peak = max(self._peak, self._now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _key(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def checkpoint_activations(model: torch.nn.Module) -> None:
    """Have the model recompute its activations. Raises RequestError where its class cannot."""
    # transformers' older releases know only the second name, its newer ones warn of that
    for word in ("activation_checkpointing", "gradient_checkpointing"):
        if enable := getattr(model, f"{word}_enable", None):
            enable(**{f"{word}_kwargs": {"use_reentrant": False}})
            return
    raise RequestError(
        f"train.activation_checkpointing: {type(model).__name__} does not offer it",
        hint="set train.activation_checkpointing to false",
    )
