"""Which parameters train, by the recipe's `transfer.strategy`.

Owns freezing. Does not build optimizers (`groups.py`) nor models. Called by `train/` before an engine is made: once per trial, and
again where a schedule unfreezes more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.transfer.lora import add_updates, keep_blocks_in_four_bits
from tlcore.transfer.naming import named_parameters
from tlcore.transfer.schedule import joining, parts_below
from tlcore.transfer.structure import Structure, learned_output, read_structure

if TYPE_CHECKING:
    from tlcore.recipe import Recipe


def apply_strategy(model: nn.Module, recipe: Recipe, joined: int | None = None) -> None:
    """Set `requires_grad` of every parameter: `full`, `layerwise` and `scratch` train all (the first two what `transfer.train` and
    `transfer.freeze` say), `head` all that follows the last block (pooler or final norm, and the task's head), `last_n` also the
    last n blocks, `lora`, `dora` and `qlora` also low-rank updates that they add to the model (`qlora` first keeps its blocks in
    four bits), `bitfit` also every bias (Ben Zaken et al. 2022, "BitFit", arXiv:2106.10199), `gradual` also the first `joined`
    parts below the head, or all that ever join.

    A pooler belongs to the head because it only feeds it: RoBERTa has the same layer inside its head. On MiniLM, which never
    trained its pooler, one epoch over 1,800 movie snippets gives 0.67 to 0.70 accuracy with it and 0.48 to 0.62 without.

    A language model whose output layer is its embedding has no head: it stays as it is, but for what follows the last block.
    An output layer of its own, if the source has it, stays as it is under `lora`, `dora`, `qlora` and `bitfit`: it is as large as
    the embedding, so trained whole it would be most of what these strategies are there to save. Without another head nothing
    but the updates trains under the first three.

    What the model's own code keeps fixed (Marian's sine positions) never trains.

    Where nothing below a point trains, autograd records nothing there, so a frozen backbone costs its forward pass alone.

    Raises:
        RecipeError: more blocks asked for than there are, or a model without what the strategy or the recipe names, or nothing
            that trains.
    """
    # What a model directory does not hold is computed when it is loaded: trained, it would be lost by an export.
    # Told by its name, not by `requires_grad`: a schedule thaws what it froze before.
    fixed: set[str] = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    trained = _trained(model, recipe, joined)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed and (trained is None or name in trained))
    set_training_mode(model)


def set_training_mode(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode for modules whose parameters are all frozen; instead of `model.train()`.

    A frozen part is a fixed function: no dropout noise on features, no running statistics drifting away from frozen weights
    (batch norms of image backbones), and the same features in every epoch, so that they can be cached. Modules without parameters
    follow the module they stand in.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _trained(model: nn.Module, recipe: Recipe, joined: int | None) -> set[str] | None:
    """Names of what trains, once it is all there; None for all."""
    strategy = recipe.transfer.strategy
    if strategy == "scratch":
        return None
    structure = read_structure(model)
    if strategy in ("full", "layerwise"):
        return _chosen(model, recipe, structure)
    if not structure.head and strategy in ("head", "gradual"):
        text = f"is {strategy!r}, but {type(model).__name__} has no head apart from its backbone; use full or lora"
        raise RecipeError([Fault("transfer.strategy", text)])
    top = {*structure.head, *structure.after}
    match strategy:
        case "lora" | "dora" | "qlora":
            if strategy == "qlora":
                keep_blocks_in_four_bits(model, structure)
            whole = _whole_beside_updates(model, structure)
            return whole | add_updates(model, recipe, structure, whole)
        case "bitfit":
            return (top - learned_output(model)) | _biases(model, top)
        case "gradual":
            parts = parts_below(structure)[: len(joining(model, recipe)) if joined is None else joined]
            return top.union(*parts)
        case "last_n":
            return top | _last_blocks(structure, recipe.transfer.n or 1, type(model).__name__)
    return top


def _whole_beside_updates(model: nn.Module, structure: Structure) -> set[str]:
    """What trains itself where the blocks have updates: a head that is to learn the task, and what feeds it.

    Without such a head nothing does: a final norm that the source carries would make an adapter of more than updates, which
    servers (vLLM among them) refuse.
    """
    learned = learned_output(model)
    head = set(structure.head) - learned
    return (head | set(structure.after)) - learned if head else set()


def _chosen(model: nn.Module, recipe: Recipe, structure: Structure) -> set[str] | None:
    """What `transfer.train` and `transfer.freeze` leave; None for all."""
    train, freeze = recipe.transfer.named("train"), recipe.transfer.named("freeze")
    if not train and not freeze:
        return None
    left = {name for name, _ in model.named_parameters()}
    if train:
        left = named_parameters(model, structure, train, "transfer.train")
    left -= named_parameters(model, structure, freeze, "transfer.freeze") if freeze else set()
    if not left:
        raise RecipeError([Fault("transfer.freeze", f"names all of {type(model).__name__}; leave something to train")])
    return left


def _biases(model: nn.Module, top: set[str]) -> set[str]:
    found = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    if not found - top:
        text = f"is 'bitfit', but {type(model).__name__} has no biases below its head; use head or lora"
        raise RecipeError([Fault("transfer.strategy", text)])
    return found


def _last_blocks(structure: Structure, n: int, model_name: str) -> set[str]:
    there = len(structure.blocks)
    if n > there:
        choice = f"{there} blocks; give 1 to {there}" if there else "no list of like blocks; use full or head"
        raise RecipeError([Fault("transfer.n", f"is {n}, but {model_name} has {choice}")])
    return {name for block in structure.blocks[there - n :] for name in block}
