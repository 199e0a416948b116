"""Which of transformers' attention implementations a model is built with.

Owns the meaning of `model.attention`, and the check that the model's class has what is wanted. Whether the package behind it is
installed, transformers says when the model is made. Called by `build.py`, and by `train/` for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tlcore.errors import ModelError
from tlcore.models.families import is_own, register_families

if TYPE_CHECKING:
    from tlcore.models.source import ModelSource

_FLAGS: Final = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""What a class of transformers says of itself; every class has `eager`."""
_AUTO: Final = "auto"
_OF_GPUS: Final = ("flash_attention_2", "flash_attention_3", "flex_attention")


def attention_of(auto_class: Any, source: ModelSource, config: Any) -> str | dict[str, str | None] | None:
    """For `attn_implementation`, also of the backbone that a detector is built around. None leaves it to transformers: of a class
    that ships with the model, nothing is known before it is loaded.

    A GPU's kind is asked for where there is one: an estimate or an export on another machine needs the same network, not its speed.

    Raises ModelError: the model's class has not what `source.attention` wants.
    """
    import torch
    from transformers import AutoBackbone

    if is_own(config.model_type):  # the configuration need not come from `load_config`
        register_families()
    family, wanted = _family(auto_class, source, config), source.attention
    if family is not None and not getattr(family, _FLAGS.get(wanted, ""), True):
        has = ["eager", *(kind for kind, flag in _FLAGS.items() if getattr(family, flag, False))]
        raise ModelError(
            f"model.attention is {wanted}, but {family.__name__}, as which model source {source.name!r} is built, "
            f"has {', '.join(has)}",
            hint=f"set it to one of these, or to {_AUTO}",
        )
    if wanted in _OF_GPUS and not torch.cuda.is_available():
        wanted = _AUTO
    chosen = _chosen(family, wanted)
    backbone = getattr(config, "backbone_config", None)
    if backbone is None:
        return chosen
    return {"": chosen, "backbone_config": _chosen(_family(AutoBackbone, source, backbone), wanted)}


def check_device(attention: str, device: str) -> None:
    """Raise ModelError where `model.attention` wants a GPU's kind and training runs on another device."""
    if attention in _OF_GPUS and device != "cuda":
        raise ModelError(
            f"model.attention is {attention}, which runs on GPUs, but this rank trains on {device}",
            hint=f"set resources.gpus_per_worker, or model.attention to {_AUTO}, sdpa or eager",
        )


def _chosen(family: Any, wanted: str) -> str | None:
    """What is wanted, where the class has it; else torch's own fused attention, or eager where it has not that."""
    if family is None:
        return None if wanted == _AUTO else wanted
    if wanted == "eager" or (wanted in _FLAGS and getattr(family, _FLAGS[wanted], True)):
        return wanted
    return "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"


def _family(auto_class: Any, source: ModelSource, config: Any) -> Any:
    """The class that the model will be of; None where it comes with the model, or transformers knows none."""
    if source.trust_remote_code and auto_class.__name__ in (getattr(config, "auto_map", None) or {}):
        return None
    found = auto_class._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found
