"""Pre-trained sources: where weights, configuration and tokenizer come from, and how a torch model is made of them.

`source.py` resolves the recipe's `model.source` to one local directory (and a checkpoint), `fetch.py` brings `s3://` prefixes
there, `torchvision_source.py` and `gguf_source.py` convert what is no transformers directory, `build.py` constructs transformers
models, `stored.py` reads a checkpoint's weights. Called by `tasks/`, by the driver for the identity of a run
(`ModelSource.digest`), and by the exports.
Importing this package costs neither torch nor transformers.
"""

from tlcore.models.attention import check_device
from tlcore.models.build import (
    build_pretrained,
    build_scratch,
    is_carried,
    mark_new,
    new_backbone_line,
    new_head_line,
    new_parameters,
    quiet,
    seeded,
)
from tlcore.models.source import ModelSource, resolve_source

__all__ = [
    "ModelSource",
    "build_pretrained",
    "build_scratch",
    "check_device",
    "is_carried",
    "mark_new",
    "new_backbone_line",
    "new_head_line",
    "new_parameters",
    "quiet",
    "resolve_source",
    "seeded",
]
