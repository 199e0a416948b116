"""Several texts in one sample, so that no token is padding.

Owns which texts share a sample, and whether a model keeps them apart. Called by `text_generation.py`.

A packed sample has position ids that begin anew with every text and no attention mask. transformers' masks then look for several
texts, but only where a family's code hands them the position ids: OPT, Falcon and gpt-oss (in transformers 5.23) take these for
embeddings alone, Bloom and Transformer-XL ignore them, and layers that remember (Mamba, linear attention) go on from one text to
the next. None says a word.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from tlcore.errors import Fault, RecipeError

if TYPE_CHECKING:
    from torch import nn

_KEPT_APART: Final = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, as transformers' configurations name them, that read a text through such a mask and nothing else."""


def pack(lengths: npt.NDArray[np.int32], capacity: int) -> list[npt.NDArray[np.int64]]:
    """Groups of texts whose lengths sum to `capacity` at most, every text in one of them, in a fixed order.

    Longest first, each into the fullest group that still takes it (best-fit decreasing, at most 11/9 of the fewest groups possible;
    Johnson 1973). A text longer than `capacity` is a group alone: texts are cut before.
    """
    groups: list[list[int]] = []
    groups_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # ascending, those with a group; at most `capacity` of them
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[index])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            group, room = len(groups), capacity
            groups.append([])
        else:
            room = rooms[place]
            group = groups_by_room[room].pop()
            if not groups_by_room[room]:
                del rooms[place]
        groups[group].append(index)
        left = max(0, room - size)
        if not groups_by_room.setdefault(left, []):
            bisect.insort(rooms, left)
        groups_by_room[left].append(group)
    return [np.array(group, dtype=np.int64) for group in groups]


def check_keeps_apart(model: nn.Module) -> None:
    """Raise RecipeError where the texts of a packed sample would see each other in this model, which is on the CPU."""
    if others := _remembering(model):
        why = f"has layers that carry what they read on to the next text ({others})"
    elif not _looks_for_texts(model):
        why = "does not tell its texts apart by their position ids"
    else:
        return
    text = f"is true, but {type(model).__name__} {why}, so those of a sample would see each other; set it to false"
    raise RecipeError([Fault("data.packing", text)])


def _remembering(model: Any) -> str:
    """What of the model does not read through an attention mask; empty where all does."""
    from torch import nn

    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _KEPT_APART
    # Classes of transformers say so of a recurrent state; a convolution runs along the texts.
    kinds |= {type(each).__name__ for each in model.modules() if getattr(each, "_is_stateful", False)}
    kinds |= {"Conv1d" for each in model.modules() if isinstance(each, nn.Conv1d)}
    return ", ".join(sorted(kinds))


class _Answered(Exception):
    """Ends a forward pass that has said what was asked."""

    def __init__(self, looks: bool) -> None:
        super().__init__(looks)
        self.looks = looks


def _looks_for_texts(model: Any) -> bool:
    """Whether attention learns of the position ids: asked of the model's own code, by a forward pass over two texts of two tokens
    that ends where the masks are made, or where the first block begins. FlashAttention has no masks: there it ends where the first
    layer attends."""
    import torch

    two = {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    answering = _answering_at_attention if is_flash(model) else _answering_at_masks
    try:
        with answering(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(**two, use_cache=False)
    except _Answered as answer:
        return answer.looks
    except (
        TypeError,
        RuntimeError,
    ):  # it takes no position ids; or attends by code of its own, which a CPU does not run
        return False
    return False


def is_flash(model: Any) -> bool:
    """Whether the model, or the one in an engine, attends by a kind of FlashAttention."""
    from transformers.utils import generic

    return bool(generic.is_flash_attention_requested(getattr(model, "module", model).config))


@contextmanager
def _answering_at_masks(model: Any) -> Iterator[None]:
    """While it lasts, a forward pass ends with `_Answered`."""
    from torch import nn
    from transformers import masking_utils

    def looks(*_: Any) -> NoReturn:
        raise _Answered(True)

    def began(*_: Any) -> NoReturn:
        raise _Answered(False)

    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    blocks = [block for each in lists for block in each if any(True for _ in block.children())]
    hooks = [block.register_forward_pre_hook(began) for block in blocks]
    looked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = looks
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looked
        for hook in hooks:
            hook.remove()


@contextmanager
def _answering_at_attention(model: Any) -> Iterator[None]:
    """The same; the answer is whether the attention function is given the position ids."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attends(*_: Any, position_ids: Any = None, **__: Any) -> NoReturn:
        raise _Answered(position_ids is not None)

    kind = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[kind] = attends
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kind]
