"""What every family of `tlcore/models/families` must do, as functions that its test file calls with a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tlcore.engine.activations import checkpoint_activations
from tlcore.models import build_pretrained, build_scratch, new_parameters, resolve_source
from tlcore.models.families import register_families
from tlcore.transfer.structure import read_structure

register_families()


def parameters_on_meta(auto_class: Any, config: Any) -> int:
    """How many parameters the network has; none of them in memory."""
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def fixed(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation mode with every parameter and statistic drawn anew, biases and scales too."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(drawn + 0.5 if "var" in name else (drawn - 0.5) * 0.6)
    return model.eval()


def check_is_a_source(auto_class: Any, config: Any, directory: Path, batch: dict[str, Any], output: str) -> None:
    """Saved as safetensors it is built again by `build_pretrained` with equal outputs, and its backbone alone with a new head."""
    model = fixed(auto_class.from_config(config))
    model.save_pretrained(directory / "whole")
    source = resolve_source(str(directory / "whole"))
    again = build_pretrained(auto_class, source, source.load_config(), seed=0)
    assert again.training
    assert type(again) is type(model)
    assert new_parameters(again) == frozenset()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch)[output], model(**batch)[output], rtol=0, atol=0)

    prefix = model.base_model_prefix
    getattr(model, prefix).save_pretrained(directory / "backbone")
    backbone = resolve_source(str(directory / "backbone"))
    headed = build_pretrained(auto_class, backbone, backbone.load_config(), seed=0)
    assert new_parameters(headed)
    assert not any(name.startswith(f"{prefix}.") for name in new_parameters(headed))


def check_scratch_follows_the_seed(auto_class: Any, config: Any, directory: Path) -> None:
    """Every parameter and buffer is initialised, by `train.seed` alone, on the CPU and when built over the meta device."""
    auto_class.from_config(config).save_pretrained(directory)
    source = resolve_source(str(directory))
    one, other, third = (build_scratch(auto_class, source, source.load_config(), seed) for seed in (1, 1, 2))
    for name, tensor in one.state_dict().items():
        assert torch.isfinite(tensor.float()).all(), name
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert any(not torch.equal(tensor, third.state_dict()[name]) for name, tensor in one.state_dict().items())
    weights = {name: each for name, each in one.named_parameters() if each.dim() > 1 and "bias" not in name}
    assert not [name for name, weight in weights.items() if not weight.any()]


def check_structure(model: torch.nn.Module, blocks: int, head: set[str]) -> None:
    """Transfer strategies find this many blocks and this head; together the parts are the whole model."""
    found = read_structure(model)
    assert len(found.blocks) == blocks
    assert all(found.blocks)
    assert set(found.head) == head
    parts = [*found.before, *found.after, *found.head, *(name for block in found.blocks for name in block)]
    assert sorted(parts) == sorted(name for name, _ in model.named_parameters())


def check_learns(model: torch.nn.Module, batch: dict[str, Any], steps: int = 12, rate: float = 1e-2) -> None:
    """The loss falls on one batch; every trained parameter gets a finite gradient."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        losses.append(loss.item())
        lacking = [
            name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()
        ]
        assert not lacking
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], losses


def check_checkpointing_changes_nothing(model: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Gradients are equal with and without recomputed activations. The model must have no dropout."""

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()
        model(**batch)["loss"].backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    plain = gradients()
    checkpoint_activations(model)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
