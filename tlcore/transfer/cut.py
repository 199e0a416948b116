"""A model whose blocks are passed over, their output being given: what makes the outputs of a frozen part reusable.

Owns the cut behind the last block. It holds for every model that has a list of like blocks, through which one tensor is handed on;
whether what follows reads anything else of the blocks, only a comparison tells, which `train/features.py` makes. Called there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.transfer.structure import block_names


class BlocksCut:
    """Stands in for the blocks of `model`, in place: while `given` is a tensor, it is the last block's output and none runs.

    Raises:
        RecipeError: a model without blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        names = block_names(model)
        if not names:
            text = f"is true, but {type(model).__name__} has no list of like blocks to pass over"
            raise RecipeError([Fault("transfer.cache_features", text)])
        self.given: torch.Tensor | None = None
        self._wraps: dict[int, bool] = {}
        self._seen: torch.Tensor | None = None
        for place, name in enumerate(names):
            block: Any = model.get_submodule(name)
            block.forward = self._stand_in(place, block.forward, place == len(names) - 1)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], torch.Tensor]]:
        """Inside, the blocks run; the call that is given returns the last block's output of the newest pass."""
        given, self.given = self.given, None

        def newest() -> torch.Tensor:
            assert self._seen is not None  # a pass was made
            return self._seen

        try:
            yield newest
        finally:
            self.given, self._seen = given, None

    def _stand_in(self, place: int, forward: Callable[..., Any], is_last: bool) -> Callable[..., Any]:
        def stand_in(*args: Any, **settings: Any) -> Any:
            if self.given is None:
                return self._noted(place, forward(*args, **settings), is_last)
            passed = args[0] if args else settings["hidden_states"]
            output = self.given.to(passed.device) if is_last else passed
            return (output,) if self._wraps[place] else output

        return stand_in

    def _noted(self, place: int, output: Any, is_last: bool) -> Any:
        is_tuple = isinstance(output, tuple)
        hidden = output[0] if is_tuple else output
        if not isinstance(hidden, torch.Tensor) or (is_tuple and any(each is not None for each in output[1:])):
            text = "is true, but the blocks hand on more than one tensor; take it out"
            raise RecipeError([Fault("transfer.cache_features", text)])
        self._wraps[place] = is_tuple
        if is_last:
            self._seen = hidden.detach()
        return output
