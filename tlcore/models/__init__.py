"""Pre-trained sources: where weights, configuration and tokenizer come from, and how a torch model is made of them.

`source.py` resolves the recipe's `model.source` to one local directory, `fetch.py` brings `s3://` prefixes there, `build.py`
constructs transformers models. Called by `tasks/`, and by the driver for the identity of a run (`ModelSource.digest`).
Importing this package costs neither torch nor transformers.
"""

from tlcore.models.build import build_pretrained, build_scratch, new_parameters, quiet
from tlcore.models.source import ModelSource, resolve_source

__all__ = ["ModelSource", "build_pretrained", "build_scratch", "new_parameters", "quiet", "resolve_source"]
