"""`transfer.strategy: lora`, `dora` and `qlora`: low-rank updates beside frozen linear layers (Hu et al. 2021), through peft.

Owns which layers get an update, putting it there, and saying what has none: weights in no linear layer, such as the experts of
Mixtral, Qwen's MoE and gpt-oss, which are one tensor of three dimensions each. Does not own what trains (`strategies.py`), nor
merging an update into its layer for an export (`models/stored.py`). Called by `strategies.py`.

The model keeps its class. A layer `x` becomes peft's wrapper, so that parameters, also in checkpoints, are called
`x.base_layer.weight` (frozen), `x.lora_A.default.weight` [rank, in] and `x.lora_B.default.weight` [out, rank]. A begins random,
drawn from `train.seed`, B zero: the first forward pass is the source's.

DoRA (Liu et al. 2024, arXiv:2402.09353) also trains the length of each of the layer's rows, its direction being the updated
weight's: `x.lora_magnitude_vector.default.weight` [out].

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) is LoRA over blocks whose linear layers are kept in four bits
(`models/four_bit.py`), adapted or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.models.four_bit import FourBitLinear
from tlcore.tasks.telling import tell_once
from tlcore.transfer.structure import Structure

if TYPE_CHECKING:
    from tlcore.recipe import Recipe

_SHOWN = 8
_WORTH_SAYING = 0.1
"""Share of the blocks' parameters without an update."""


def add_updates(model: nn.Module, recipe: Recipe, structure: Structure, whole: AbstractSet[str]) -> set[str]:
    """Put an update beside each chosen layer, in place; returns the names of the updates' parameters.

    Args:
        structure: the model's parts as they were before.
        whole: names of the parameters that train themselves.

    Raises:
        RecipeError: a name of `transfer.target_modules` that matches nothing, no linear layer, one that is tied to another, or what
            trains whole; no blocks for `auto`.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    transfer = recipe.transfer
    chosen = _chosen(model, recipe, structure, whole)
    config = LoraConfig(
        r=transfer.lora_rank,
        # peft says int and divides by the rank, so that a float will do.
        lora_alpha=cast(Any, transfer.lora_alpha),
        lora_dropout=transfer.dropout or 0.0,
        target_modules=chosen,
        bias="none",
        use_dora=transfer.strategy == "dora",
    )
    before = {name for name, _ in model.named_parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft says of GPT-2's transposed layers that it has set fan_in_fan_out for them, which is what is wanted.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        torch.manual_seed(recipe.train.seed)
        inject_adapter_in_model(config, model)
    return {name for name, _ in model.named_parameters() if name not in before and ".base_layer." not in name}


def keep_blocks_in_four_bits(model: nn.Module, structure: Structure) -> None:
    """Replace the linear layers of the blocks, in place, by ones that keep their weight in four bits.

    Those that the model's code keeps in fp32 stay (it reads their weight itself: T5's `wo`), and those of an odd width.

    Raises:
        RecipeError: there is none: no blocks, or blocks of other layers (GPT-2's are transposed); or most of the blocks' parameters
            are elsewhere (experts), and would stay as large as they are.
        RequestError: bitsandbytes is not installed.
    """
    inside = _modules_of_blocks(structure)
    fixed = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    names = [
        name
        for name, module in model.named_modules()
        # of this very class: torch's attention has a subclass whose weight it reads itself
        if name in inside
        and type(module) is nn.Linear
        and not fixed & set(name.split("."))
        and module.in_features % 2 == 0
    ]
    if not names:
        text = f"is 'qlora', but {type(model).__name__} has no list of like blocks with linear layers (nn.Linear); use lora"
        raise RecipeError([Fault("transfer.strategy", text)])
    sizes = _sizes_of_blocks(model, structure)
    whole = _outside(sizes, set(names))
    if 2 * sum(whole.values()) > sum(sizes.values()):
        text = (
            f"is 'qlora', but {_so_many(whole, sizes, model)} are in no linear layer (nn.Linear) that can be kept in four bits "
            f"({_largest(whole)}); use lora"
        )
        raise RecipeError([Fault("transfer.strategy", text)])
    for name in names:
        model.set_submodule(name, FourBitLinear(cast(nn.Linear, model.get_submodule(name))))


def _modules_of_blocks(structure: Structure) -> set[str]:
    return {name.rpartition(".")[0] for block in structure.blocks for name in block}


def _sizes_of_blocks(model: nn.Module, structure: Structure) -> dict[str, int]:
    """Numbers in each parameter of the blocks, by name; in four bits, a byte holds two."""
    found = {name: model.get_parameter(name) for block in structure.blocks for name in block}
    return {name: each.numel() * (1 if each.is_floating_point() else 2) for name, each in found.items()}


def _outside(sizes: Mapping[str, int], layers: AbstractSet[str]) -> dict[str, int]:
    """The parameters that are in none of these layers."""
    return {name: size for name, size in sizes.items() if name.rpartition(".")[0] not in layers}


def _so_many(some: Mapping[str, int], sizes: Mapping[str, int], model: nn.Module) -> str:
    return f"{sum(some.values()):,} of the {sum(sizes.values()):,} parameters in the blocks of {type(model).__name__}"


def _largest(sizes: Mapping[str, int]) -> str:
    return _some(sorted(sizes, key=lambda name: -sizes[name]))


def _say_what_has_none(model: nn.Module, recipe: Recipe, sizes: Mapping[str, int], layers: AbstractSet[str]) -> None:
    """One line where `transfer.target_modules: auto` leaves much of the blocks without an update."""
    left = _outside(sizes, layers)
    if sum(left.values()) > _WORTH_SAYING * sum(sizes.values()):
        tell_once(
            f"transfer.strategy={recipe.transfer.strategy}: {_so_many(left, sizes, model)} get no update and stay as they are: "
            f"they are in no linear layer ({_largest(left)})"
        )


def _chosen(model: nn.Module, recipe: Recipe, structure: Structure, whole: AbstractSet[str]) -> list[str]:
    """Names of the layers to adapt, in the model's order."""
    layers, tied = _linear_layers(model), _tied_layers(model)
    wanted = recipe.transfer.target_modules
    if isinstance(wanted, str):
        inside = _modules_of_blocks(structure)
        found = [name for name in layers if name in inside and name not in tied]
        if not found:
            text = f"is auto, but {type(model).__name__} has no list of like blocks with linear layers; name its layers"
            raise RecipeError([Fault("transfer.target_modules", f"{text}: {_some(layers)}")])
        _say_what_has_none(model, recipe, _sizes_of_blocks(model, structure), set(found))
        return found
    taken = {name.rpartition(".")[0] for name in whole}
    modules = [name for name, _ in model.named_modules() if name]
    matched = {name for end in wanted for name in _matches(end, layers, modules, taken, tied)}
    return [name for name in modules if name in matched]


def _matches(
    end: str, layers: Sequence[str], modules: Sequence[str], taken: AbstractSet[str], tied: Mapping[str, str]
) -> list[str]:
    """The linear layers whose name is `end` or ends with it."""
    named = [name for name in modules if name == end or name.endswith(f".{end}")]
    if not named:
        raise RecipeError([Fault("transfer.target_modules", f"no layer is called {end!r}; there are {_some(layers)}")])
    for name in named:
        if name not in layers:
            text = f"{end!r} means {name}, which is no linear layer; there are {_some(layers)}"
            raise RecipeError([Fault("transfer.target_modules", text)])
        if name in tied:
            text = f"{end!r} means {name}, whose weight is tied to {tied[name]}: no model could hold it merged; take it out"
            raise RecipeError([Fault("transfer.target_modules", text)])
        if name in taken:
            text = f"{end!r} means {name}, which is the head and is trained whole; take it out"
            raise RecipeError([Fault("transfer.target_modules", text)])
    return named


def _linear_layers(model: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _tied_layers(model: nn.Module) -> dict[str, str]:
    """Layers whose weight another layer has too, such as an output layer and the embedding, to that other's name.

    An update belongs to one of them alone: merged into the one weight that an export has, it would change both.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.endswith(".weight"):
            names.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    ties = [same for same in names.values() if len(same) > 1]
    return {name: next(other for other in same if other != name) for same in ties for name in same}


def _some(layers: Sequence[str]) -> str:
    """Different last parts of the names, a few of them."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    return ", ".join(ends[:_SHOWN]) + (", ..." if len(ends) > _SHOWN else "") if ends else "no linear layers at all"
