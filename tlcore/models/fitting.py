"""Whether the weights of a source are those of the network that its configuration describes.

Owns which parameters a source must carry, and what is said of those that it lacks. transformers draws what a file lacks, and what
has another shape there, at random and goes on: right for a task's new head, and ruin for a block. Called by `build.py`.

A model's backbone is what stands below transformers' backbone attribute. Where the model has none (T5 with its language head, a
bare backbone), it is all but the output embeddings. A block is an element of a list of modules there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tlcore.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_NAMES_SHOWN = 4
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""What DistributedDataParallel, torch.compile and DeepSpeed put before every name of the model inside them."""
_MISFIT = "config.json and the weights do not belong together"


def check_fits(model: Any, source: str, missing: set[str], reshaped: set[str], stored: Collection[str]) -> None:
    """A head may be new, and what lies between it and the blocks; a block may not, nor most of the backbone.

    Args:
        missing, reshaped: names of the model's parameters that the source has not, or in another shape.
        stored: names in the source.

    Raises ModelError.
    """
    backbone, blocks = backbone_names(model), _block_names(model)
    must_agree = backbone if _has_backbone(model) else blocks | _input_embeddings(model)
    if wrong := sorted(reshaped & must_agree):
        others = f", and so have {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"model source {source!r}: {wrong[0]} has another shape in the weights than config.json says{others}",
            hint=_MISFIT,
        )
    absent = sorted(missing & backbone)
    if blocks.isdisjoint(absent) and 2 * len(absent) <= len(backbone):
        return
    wrapper = next((each for each in _WRAPPERS if stored and all(name.startswith(each) for name in stored)), None)
    raise ModelError(
        f"model source {source!r}: its weights lack {len(absent)} of {len(backbone)} backbone parameters, such as {named(absent)}",
        hint=f"every name in its weights begins with {wrapper!r}, left by what was around the model when it was saved: "
        "take that off the names and save them again"
        if wrapper
        else f"{_MISFIT}: that describes another network, or more blocks than were saved",
    )


def named(names: Collection[str]) -> str:
    """Some of the names, and how many more there are."""
    shown = sorted(names)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more


def backbone_names(model: Any) -> set[str]:
    """Names of the parameters that a task does not add."""
    names = {name for name, _ in model.named_parameters()}
    if _has_backbone(model):
        return {name for name in names if name.startswith(f"{model.base_model_prefix}.")}
    return names - _names_of(model, "get_output_embeddings")


def is_pooler(name: str) -> bool:
    """Whether the parameter is of a pooler, which a backbone is often saved without."""
    return "pooler" in name.split(".")


def _has_backbone(model: Any) -> bool:
    prefix = getattr(model, "base_model_prefix", "")
    return bool(prefix) and getattr(model, prefix, None) is not None


def _block_names(model: Any) -> set[str]:
    """Of the backbone's parameters, those inside an element of a list. A list of bare layers (one linear layer per class head, as
    detectors have) is none of blocks."""
    from torch import nn

    homes = tuple(
        f"{name}.{index}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for index, each in enumerate(module)
        if any(True for _ in each.children())
    )
    return {name for name in backbone_names(model) if name.startswith(homes)}


def _input_embeddings(model: Any) -> set[str]:
    return _names_of(model, "get_input_embeddings")


def _names_of(model: Any, getter: str) -> set[str]:
    """Of the parameters of a layer that transformers' models tell; none where this one does not. One that is tied to another layer
    goes by the name that it is listed under."""
    try:
        layer: nn.Module | None = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return set()
    own = {id(each) for each in layer.parameters()} if layer is not None else set()
    return {name for name, each in model.named_parameters() if id(each) in own}
