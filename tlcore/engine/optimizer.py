"""Optimizers and learning-rate schedules by their recipe names.

Owns which kernel runs. Called by `build.py` (optimizer) and `sharded.py` (rate of each step).

torch's fused kernels are used on every device. On CPU, with freed memory kept (`process.py`), they take as long as DeepSpeed's CPU
Adam (36 against 42 ms for 22.7 M parameters on one rank of two threads, 76 against 81 ms on two ranks, reduction included), need
no compiler at first use, and carry no hidden state: DeepSpeed's keeps a running product of the betas in C++, which a restored run
cannot rebuild to the last bit. What torch lacks is in `own_optimizers.py` and `muon.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tlcore.engine.muon import MuonWithAdamW
from tlcore.engine.own_optimizers import Adagrad, Lion
from tlcore.recipe import Recipe

_SGD_MOMENTUM = 0.9


def build_optimizer(recipe: Recipe, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer over `groups` (each with `params`, `weight_decay`, and, for Muon, `muon`)."""
    rate = recipe.train.learning_rate
    match recipe.train.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=_SGD_MOMENTUM, fused=True)
        case "lion":
            return Lion(groups, lr=rate)
        case "adagrad":
            return Adagrad(groups, lr=rate)
        case "muon":
            return MuonWithAdamW(groups, lr=rate)


def learning_rate(recipe: Recipe, step: float, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `total_steps`: linear warm-up, then the recipe's schedule down to 0.

    A pure function of the step, so nothing of it needs to be in a checkpoint. A step may be a fraction of one, where the
    global batch changed on the way.
    """
    peak = recipe.train.learning_rate
    warmup = math.ceil(recipe.train.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    match recipe.train.lr_schedule:
        case "linear":
            return peak * (1.0 - done)
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return peak
