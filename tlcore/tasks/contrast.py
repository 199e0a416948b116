"""Telling hidden steps of a sound from distractors: masks, negatives and the loss of wav2vec 2.0.

Owns the draws and the loss, on tensors. Called by `audio_pretraining.py`.

Source: Baevski et al. 2020, "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations", sections 3.1
(masking), 3.2 (contrastive and diversity loss) and 4.2 (spans). Distractors are other hidden steps of the same sound. Draws come
from torch's global generator, or from one that is given.

Shapes: B sounds, S steps, D dimensions, H hidden steps of the batch, K distractors of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from tlcore.tasks.base import IGNORED


@dataclass(frozen=True)
class Hidden:
    """`mask` [B, S]: what is hidden; `distractors` [H, K]: for each hidden step, in the order of `mask`, numbers of hidden steps of
    the same sound, `IGNORED` where that has no other."""

    mask: Tensor
    distractors: Tensor


def hide(
    steps: list[int],
    width: int,
    share: float,
    span: int,
    distractors: int,
    generators: list[torch.Generator] | None = None,
) -> Hidden:
    """Draw what to hide of each sound and what to confuse it with.

    Args:
        steps: of each sound; `width` is the longest's, with padding.
        share: of a sound's steps, about, in spans that may overlap.
        span: steps hidden together; of a short sound at most half its steps.
        distractors: for each hidden step.
        generators: one for each sound, for draws that must not depend on anything else.
    """
    mask = torch.zeros(len(steps), width, dtype=torch.bool)
    drawn = []
    first = 0
    for row, count in enumerate(steps):
        generator = None if generators is None else generators[row]
        length = max(1, min(span, count // 2))
        places = max(1, count - length + 1)
        starts = torch.randperm(places, generator=generator)[: max(1, round(share * count / length))]
        for start in starts.tolist():
            mask[row, start : start + length] = True
        hidden = int(mask[row].sum())
        drawn.append(_others(hidden, distractors, generator, first))
        first += hidden
    return Hidden(mask, torch.cat(drawn))


def _others(hidden: int, count: int, generator: torch.Generator | None, first: int) -> Tensor:
    """[hidden, count] numbers from `first` on, evenly drawn, in no row its own."""
    if hidden == 1:
        return torch.full((1, count), IGNORED)
    drawn = torch.randint(0, hidden - 1, (hidden, count), generator=generator)
    own = torch.arange(hidden).unsqueeze(1)
    return drawn + (drawn >= own) + first


def contrast(told: Tensor, wanted: Tensor, hidden: Hidden, temperature: float) -> Tensor:
    """Logits [H, 1 + K] in fp32 of each hidden step's own target, which is the first, and of its distractors.

    Args:
        told: [B, S, D], what the model says of each step.
        wanted: [B, S, D], the quantised features of each step.
    """
    mask, distractors = hidden.mask.to(told.device), hidden.distractors.to(told.device)
    said, targets = told[mask].float(), wanted[mask].float()
    others = targets[distractors.clamp(min=0)]
    logits = (
        cosine_similarity(said.unsqueeze(1), torch.cat([targets.unsqueeze(1), others], dim=1), dim=-1) / temperature
    )
    # A distractor that is quantised like the target is none.
    same = (others == targets.unsqueeze(1)).all(dim=-1) | (distractors == IGNORED)
    return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(same, -torch.inf)], dim=1)


def contrastive_losses(logits: Tensor) -> Tensor:
    """Cross entropy [H] of the first."""
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device), reduction="none")
