"""Parameters and buffers in the format of training: what is rounded, what must not be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tlcore.engine.formats import move_buffers, move_parameters

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def moved(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    move_parameters(model, CPU, dtype)
    move_buffers(model, CPU, dtype)
    return model


def test_rotary_frequencies_are_those_of_pre_training() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=11, hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    before = model.model.rotary_emb.inv_freq.clone()
    moved(model)
    assert torch.equal(model.model.rotary_emb.inv_freq, before) and before.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    loss = model(input_ids=torch.tensor([[1, 2, 3, 4]]), labels=torch.tensor([[1, 2, 3, 4]])).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("momentum", [0.01, None])
def test_a_batch_norms_statistics_go_all_the_way(momentum: float | None) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(3, momentum=momentum) for _ in range(2)]
    moved(norms[0])
    for _ in range(400):
        values = (0.5 * torch.randn(4, 3, 4, 4) + 0.25).bfloat16()
        outputs = [norm(given) for norm, given in zip(norms, (values, values.float()), strict=True)]
    assert outputs[0].dtype == torch.bfloat16
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(norms[0], name), getattr(norms[1], name), rtol=1e-3, atol=1e-3)
    outputs[0].float().square().sum().backward()
    assert norms[0].weight.grad.dtype == torch.bfloat16
    for norm in norms:
        norm.eval()
    torch.testing.assert_close(norms[0](values).float(), norms[1](values.float()), rtol=2e-2, atol=2e-2)


def test_what_only_looks_like_a_batch_norm_is_rounded_with_the_rest() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model = moved(nn.Sequential(FrozenBatchNorm2d(3), nn.Conv2d(3, 2, 1)))
    assert model(torch.randn(2, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_integers_stay_integers_and_fp32_stays_as_it_is() -> None:
    norm = moved(nn.BatchNorm1d(2), torch.float32)
    assert norm.num_batches_tracked.dtype == torch.int64 and "forward" not in vars(norm)
