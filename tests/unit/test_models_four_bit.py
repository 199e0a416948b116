"""Weights in four bits: the paper's numbers, the product and its gradient, and what autograd keeps of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tlcore.errors import RequestError
from tlcore.models import four_bit
from tlcore.models.four_bit import BLOCK, FourBitLinear, pack, unpack

pytestmark = pytest.mark.unit

NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The sixteen numbers as the paper prints them (appendix E)."""


def layer(rows: int = 96, columns: int = 64, bias: bool = True) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(columns, rows, bias)


def by_hand(weight: torch.Tensor) -> torch.Tensor:
    """Each number as the nearest of the sixteen times the largest of its block, whose format is bf16 where it is multiplied."""
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / largest)[..., None].sub(NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * largest.bfloat16().float()).view(weight.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_becomes_the_nearest_of_the_papers_numbers(dtype: torch.dtype) -> None:
    weight = layer().weight.detach().to(dtype)
    codes, scales = pack(weight)
    assert (codes.dtype, codes.shape) == (torch.uint8, (96, 32))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (96,))
    torch.testing.assert_close(unpack(codes, scales, torch.float32), by_hand(weight.float()), rtol=1e-6, atol=1e-7)


def test_it_takes_four_and_a_quarter_bits_a_weight() -> None:
    made = FourBitLinear(layer(bias=False))
    assert sum(each.nbytes for each in made.parameters()) == 96 * 64 * 4.25 / 8


def test_a_width_that_no_block_divides_is_taken() -> None:
    weight = layer(5, 6).weight.detach()
    made = unpack(*pack(weight), torch.float32)
    assert made.shape == weight.shape
    assert (made - weight).abs().max() < 0.16 * weight.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_dense_weight(dtype: torch.dtype) -> None:
    made = FourBitLinear(layer()).to(dtype)
    dense = unpack(made.weight, made.scales, dtype)
    given = torch.randn(3, 7, 64, dtype=dtype, requires_grad=True)
    twin = given.detach().clone().requires_grad_()
    output, expected = made(given), nn.functional.linear(twin, dense) + made.bias
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(given.grad, twin.grad)
    assert made.weight.grad is None and made.scales.grad is None


def test_autograd_keeps_no_dense_weight() -> None:
    made = FourBitLinear(layer(256, 128, bias=False))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made(torch.randn(1, 128, requires_grad=True))
    assert {each.data_ptr() for each in kept} == {made.weight.data_ptr(), made.scales.data_ptr()}


def test_a_cast_of_the_model_changes_no_weight() -> None:
    made = FourBitLinear(layer())
    before = unpack(made.weight, made.scales, torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made.to(dtype)
        assert made.weight.dtype == torch.uint8
        assert torch.equal(unpack(made.weight, made.scales, torch.float32), before)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None

    monkeypatch.setattr(four_bit.importlib.util, "find_spec", absent)
    with pytest.raises(RequestError, match="need the package bitsandbytes") as caught:
        FourBitLinear(layer())
    assert caught.value.hint is not None and "pip install 'tlcore[qlora]'" in caught.value.hint
