"""Configurations of sound models, as they are trained here.

Owns what is changed in them for training on ranks. Called by the tasks of sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlcore.models import ModelSource

_LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")


def load_sound_config(source: ModelSource, **changes: Any) -> Any:
    """The source's configuration with `changes`, and without layer drop. Raises ModelError.

    Layer drop leaves out whole layers by a draw of each rank's own; under ZeRO-3 a layer that one rank leaves out and another runs
    is a collective that never ends.
    """
    config = source.load_config(**changes)
    for name in _LAYER_DROPS:
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    return config
