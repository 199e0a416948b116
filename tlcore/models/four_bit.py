"""Linear layers whose weight is kept in four bits a number, as QLoRA does (Dettmers et al. 2023, arXiv:2305.14314).

Owns the layer and what it stores: NormalFloat4 codes, two to a byte, and one scale for every 64 of them. Does not own the kernels,
which are bitsandbytes', nor which layers become such ones (`transfer/lora.py`). Called there, and by `stored.py`, which reads such
layers out of checkpoints.

Not bitsandbytes' own `Linear4bit`: it keeps scales in an attribute of a parameter's subclass, where ZeRO-3 does not cut them and a
checkpoint does not find them. Here codes and scales are plain frozen parameters, so that every stage, save and restore takes them
as it takes others. Scales are bf16 and not quantized a second time: 4.25 bits a weight for the paper's 4.127; every training format
but fp16's subnormal numbers holds them exactly, so that a cast of the model changes no weight.

The backward pass makes the dense weight again instead of keeping it: autograd holds codes and scales alone.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from tlcore.errors import RequestError
from tlcore.models.build import carry_over

BLOCK = 64
"""Weights that share a scale, along the rows of the matrix laid end to end."""
_KIND = "nf4"


class FourBitLinear(nn.Linear):
    """`layer` with its weight in four bits: `weight` [out, in / 2] of uint8, `scales` [out * in / 64] of bf16, both frozen; the
    bias as it is. `in_features` must be even.

    Raises RequestError where bitsandbytes is not installed.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scales = pack(layer.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        carry_over(layer.weight, self.weight, self.scales)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out], in the input's format."""
        output: Tensor = _Product.apply(input, self.weight, self.scales)
        return output if self.bias is None else output + self.bias


class _Product(torch.autograd.Function):
    """input times the transposed dense weight."""

    @staticmethod
    def forward(context: Any, input: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        context.save_for_backward(codes, scales)
        return input @ unpack(codes, scales, input.dtype).T

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient] = gradients
        codes, scales = context.saved_tensors
        return gradient @ unpack(codes, scales, gradient.dtype), None, None


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, in / 2] and scales [out * in / 64, rounded up] of a weight [out, in], on the device where the weight is. From the
    host it goes through the GPU where there is one: a CPU takes some 50 s for a billion weights."""
    kernels = _kernels()
    home = weight.device
    through_gpu = home.type == "cpu" and torch.cuda.is_available() and type(weight) in (Tensor, nn.Parameter)
    moved = weight.cuda() if through_gpu else weight
    codes, state = kernels.quantize_4bit(moved.contiguous(), blocksize=BLOCK, quant_type=_KIND)
    return codes.view(weight.shape[0], -1).to(home), state.absmax.to(home, torch.bfloat16)


def unpack(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that codes and scales stand for."""
    kernels = _kernels()
    shape = torch.Size((codes.shape[0], 2 * codes.shape[1]))
    state = kernels.QuantState(
        absmax=scales.float(), shape=shape, blocksize=BLOCK, quant_type=_KIND, dtype=dtype, code=None
    )
    weight: Tensor = kernels.dequantize_4bit(codes.reshape(-1, 1), state)
    return weight


def _kernels() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RequestError(
            "weights in four bits (transfer.strategy: qlora) need the package bitsandbytes, which is not installed here",
            hint="pip install 'tlcore[qlora]', on every node that trains; or use lora",
        )
    from bitsandbytes import functional

    return functional
