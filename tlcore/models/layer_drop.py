"""Layer drop, which is switched off for training on ranks.

Owns which settings of a configuration leave out whole layers. Called by `source.py`, for every model.

transformers' models draw on each rank by itself whether a layer is left out. Under ZeRO stages 1 and 2 gradients of other layers
would be averaged then; under ZeRO-3 a layer that one rank leaves out and another runs is a collective that never ends.
"""

from __future__ import annotations

from typing import Any

_ENDINGS = ("layerdrop", "layer_drop")
"""`layerdrop`, and what it is of before it: encoder_, decoder_, speech_encoder_ (SeamlessM4T)."""


def without_layer_drop(config: Any) -> Any:
    """The transformers configuration, changed in place: no layer drop in it, nor in those of its towers."""
    from transformers import PreTrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            without_layer_drop(value)
        elif name.endswith(_ENDINGS) and value:
            setattr(config, name, 0.0)
    return config
