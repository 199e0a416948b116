"""What a model directory holds beside its weights.

Owns writing configuration and processors so that plain transformers finds the class again. Called by the tasks' `export_extras`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlcore.models import quiet


def save_model_files(auto_class: Any, config: Any, processors: Sequence[Any], directory: Path) -> None:
    """Write `config` with the class that `auto_class` makes of it, and the tokenizers or processors."""
    kind = auto_class._model_mapping[type(config)]
    config.architectures = [(kind[0] if isinstance(kind, tuple) else kind).__name__]
    with quiet():
        config.save_pretrained(directory)
        for processor in processors:
            processor.save_pretrained(directory)
