"""What tasks have in common that train one model of transformers on splits of samples.

Owns the defaults of `Task` (see there for what each method promises): the model around the recipe's source, its files, and splits
whose samples all weigh alike. `TextTask` adds the tokenizer. Called by nobody but its subclasses, each of which says what a
sample, a batch and an answer are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import numpy as np
import numpy.typing as npt

from tlcore.models import build_pretrained, build_scratch, quiet, resolve_source
from tlcore.tasks.splits import Read, Splits
from tlcore.tasks.tokens import TextModel

if TYPE_CHECKING:
    from torch import nn

    from tlcore.recipe import Recipe


class ModelTask(ABC, Generic[Read]):
    """A subclass names the transformers Auto class, and sets `_splits` when it is made."""

    auto_class: ClassVar[str]
    _splits: Splits[Read]

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        chosen = recipe.model
        source = resolve_source(chosen.source, chosen.revision, chosen.trust_remote_code)
        self._source = replace(source, attention=chosen.attention)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        """None are needed."""
        return {}

    def facts(self) -> dict[str, Any]:
        """The data settle none."""
        return {}

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        """Read each split and have the task check it."""
        for name in splits:
            self._check_split(name)
        return {name: len(self._splits[name].rows) for name in splits}

    def weights(self, split: str) -> npt.NDArray[np.float64] | None:
        """All samples weigh alike."""
        return None

    def begin_step(self, model: nn.Module, step: int) -> None:
        """Nothing follows a schedule."""
        return

    def build_model(self, from_scratch: bool) -> nn.Module:
        """The Auto class's model of the source, with the task's configuration."""
        build = build_scratch if from_scratch else build_pretrained
        return build(self._auto(), self._source, self._config(), self._recipe.train.seed)

    def export_extras(self, directory: Path) -> None:
        """The configuration, with the class that the Auto class makes of it, and the processors."""
        config = self._config()
        kind = self._auto()._model_mapping[type(config)]
        config.architectures = [(kind[0] if isinstance(kind, tuple) else kind).__name__]
        self._save(config, directory)

    def _save(self, config: Any, directory: Path) -> None:
        with quiet():
            for each in (config, *self._processors()):
                each.save_pretrained(directory)

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _check_split(self, split: str) -> None:
        """Raise DataError for what reading a split does not find."""

    def _config(self) -> Any:
        return self._source.load_config()

    @abstractmethod
    def _processors(self) -> list[Any]:
        """What turns raw input into tensors, to be saved beside the model."""


class TextTask(ModelTask[Read]):
    """One whose samples are texts: `_text` is the source's tokenizer with the recipe's length."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._text = TextModel(self._source, recipe.data.max_length)

    def _config(self) -> Any:
        return self._text.load_config()

    def _processors(self) -> list[Any]:
        return [self._text.tokenizer]
