"""What the CTC heads of this room share: the loss, and which frames are no padding.

The conventions are those of transformers' CTC models (Wav2Vec2): labels below 0 are padding, the blank is `config.pad_token_id`,
`config.ctc_loss_reduction` and `config.ctc_zero_infinity` are torch's. Called by `deepspeech.py` and `deepspeech2.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def frames_kept(features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, T] of bool, true on frames. Padding must stand at the end."""
    if attention_mask is None:
        return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return attention_mask.bool()


def shortened(keep: Tensor, stride: int) -> Tensor:
    """Which steps are kept where every `stride`-th frame, from the first, makes a step."""
    return keep[:, ::stride]


def check_features(features: Tensor, size: int) -> None:
    """Raise ValueError where `features` is not [B, T, size] with at least one frame."""
    if features.dim() != 3 or features.shape[-1] != size or features.shape[1] == 0:
        raise ValueError(
            f"input_features are {list(features.shape)}; this model takes [batch, frames, {size}] with at least one frame"
        )


def ctc_loss(config: Any, logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006) in fp32.

    Args:
        logits: [B, T, C].
        labels: [B, L]; what is below 0 is padding and may stand anywhere.
        keep: [B, T], true on steps that are no padding.

    Raises:
        ValueError: a label that is no class.
    """
    if labels.numel() and int(labels.max()) >= config.vocab_size:
        raise ValueError(f"a label is {int(labels.max())}; vocab_size is {config.vocab_size}")
    there = labels >= 0
    log_probabilities = functional.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    return functional.ctc_loss(
        log_probabilities,
        labels.masked_select(there),
        keep.sum(dim=-1),
        there.sum(dim=-1),
        blank=config.pad_token_id,
        reduction=config.ctc_loss_reduction,
        zero_infinity=config.ctc_zero_infinity,
    )
