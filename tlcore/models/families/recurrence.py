"""The recurrent layers of DeepSpeech and DeepSpeech 2, as tensors: a clipped ReLU, and a state that walks over time.

Owns the walk in one or both directions over padded sequences. No torch.nn.RNN can stand in: both papers share the input weights
between the directions, clip the ReLU, and DeepSpeech 2 normalises between input product and recurrence. Called by `deepspeech.py`
and `deepspeech2.py`.

Shapes: D directions (1, or 2 with the backward one last), B sequences, T steps, H units, G = H times the gates of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import initialization as init

CEILING = 20.0
"""g(z) = min(max(z, 0), 20) in both papers."""
CELLS = {"rnn": 1, "gru": 3}
"""Gates per cell."""

Step = Callable[[Tensor, Tensor], Tensor]


def clipped_relu(values: Tensor) -> Tensor:
    """min(max(z, 0), 20), elementwise."""
    return values.clamp(0.0, CEILING)


def walk(inputs: Tensor, keep: Tensor, units: int, step: Step) -> Tensor:
    """The states of a recurrence over time that begins at zero at each sequence's own first (backward: last) step.

    Args:
        inputs: [D, B, T, G], what each step gets; in the order of time for either direction.
        keep: [B, T], true on frames, false on padding, which stands at the end.
        step: from one step's inputs [D, B, G] and the state [D, B, H] to the next state.

    Returns:
        [D, B, T, H], zero on padding.
    """
    directions = inputs.shape[0]
    kept = keep.to(inputs.dtype).unsqueeze(-1).expand(directions, *keep.shape, 1)
    if directions == 2:  # padding comes first then, and keeps the state at zero until the sequence begins
        inputs, kept = _backward_flipped(inputs), _backward_flipped(kept)
    state = inputs.new_zeros(directions, inputs.shape[1], units)
    states = []
    for given, here in zip(inputs.unbind(2), kept.unbind(2), strict=True):
        state = step(given, state) * here
        states.append(state)
    walked = torch.stack(states, dim=2)
    return _backward_flipped(walked) if directions == 2 else walked


def _backward_flipped(both: Tensor) -> Tensor:
    return torch.stack([both[0], both[1].flip(1)])


class Recurrence(nn.Module):
    """The recurrent weights of one layer, with the input product already taken.

    `rnn`: h_t = g(x_t + U h_t-1). `gru` (Amodei et al. 2015, section 3.5): gates z and r,
    h' = g(x_h + r * (U_h h_t-1)), h_t = (1 - z) h_t-1 + z h'.
    """

    def __init__(self, units: int, cell: str, directions: int) -> None:
        super().__init__()
        self.units, self.cell = units, cell
        self.weight = nn.Parameter(torch.empty(directions, CELLS[cell] * units, units))

    def forward(self, inputs: Tensor, keep: Tensor) -> Tensor:
        """From the input products [B, T, G] of both directions to the sum of their states [B, T, H]."""
        across = self.weight.transpose(1, 2)
        step = self._gru_step(across) if self.cell == "gru" else self._rnn_step(across)
        return walk(inputs.expand(self.weight.shape[0], *inputs.shape), keep, self.units, step).sum(dim=0)

    @staticmethod
    def _rnn_step(across: Tensor) -> Step:
        return lambda given, state: clipped_relu(torch.baddbmm(given, state, across))

    @staticmethod
    def _gru_step(across: Tensor) -> Step:
        def step(given: Tensor, state: Tensor) -> Tensor:
            update, reset, new = given.chunk(3, dim=-1)
            update_h, reset_h, new_h = torch.bmm(state, across).chunk(3, dim=-1)
            gate = torch.sigmoid(update + update_h)
            candidate = clipped_relu(new + torch.sigmoid(reset + reset_h) * new_h)
            return (1 - gate) * state + gate * candidate

        return step

    def reset(self) -> None:
        """Draw the weights as torch draws those of its own recurrent layers."""
        bound = 1 / math.sqrt(self.units)
        init.uniform_(self.weight, -bound, bound)
