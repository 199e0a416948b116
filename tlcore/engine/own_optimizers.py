"""Optimizers that torch does not have, or has in a form that ZeRO cannot shard: Lion and Adagrad (Muon is in `muon.py`).

Owns their steps, and the walk over groups that all of these share. Called by `optimizer.py` and `muon.py`. All make their state at
the first step, on whatever tensors the groups then hold: the model's parameters, or the flat partitions that DeepSpeed puts in
their place.

DeepSpeed's Lion kernels (`FusedLion`, `DeepSpeedCPULion`) compile C++ or CUDA at first use and keep hidden state; torch has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adagrad import adagrad

Group = dict[str, Any]


class ByGroup(torch.optim.Optimizer):
    """An optimizer whose `_update` gets one group's parameters and their gradients."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            held = [each for each in group["params"] if each.grad is not None]
            if held:
                self._update(group, held, [each.grad for each in held])
        return loss

    def _update(self, group: Group, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        raise NotImplementedError


class Lion(ByGroup):
    """EvoLved Sign Momentum (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, program 1).

    The update is the sign of an interpolation between momentum and gradient, with decoupled weight decay. Half of Adam's state. The
    paper takes a 3 to 10 times smaller learning rate than AdamW's, and as many times more decay.
    """

    def __init__(self, groups: Iterable[Group], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    def _update(self, group: Group, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for each in parameters:
            if not self.state[each]:
                self.state[each]["exp_avg"] = torch.zeros_like(each)
        momenta = [self.state[each]["exp_avg"] for each in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        updates = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)


class Adagrad(ByGroup):
    """Adagrad (Duchi et al. 2011) over torch's own kernel.

    Not `torch.optim.Adagrad`: that makes its state in the constructor, whole on every rank, and DeepSpeed, which knows it by its
    class, builds it anew over the partitions without the groups' own settings, so that weight decay would be lost without a word.
    """

    def __init__(self, groups: Iterable[Group], lr: float, eps: float = 1e-10) -> None:
        super().__init__(groups, {"lr": lr, "eps": eps, "weight_decay": 0.0})

    def _update(self, group: Group, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        for each in parameters:
            if not self.state[each]:
                self.state[each].update(step=torch.zeros(()), sum=torch.zeros_like(each))
        adagrad(
            parameters,
            gradients,
            [self.state[each]["sum"] for each in parameters],
            [self.state[each]["step"] for each in parameters],
            foreach=True,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            lr_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
