"""Texts, or pairs of texts, as what a model that reads one sequence takes.

Owns tokenizing pairs, with the segments that tell the two apart where the model learned to, and what a pair looks like when a
prediction is asked for. Single texts are `tokens.py`'s. Called by `text_classification.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError, Fault, RecipeError
from tlcore.tasks.base import Batch
from tlcore.tasks.telling import Cut
from tlcore.tasks.tokens import SEGMENTS, TextModel, TokenBuilder, TokenStore, tokenize, whole_lengths

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection

_CHUNK: Final = 4096
"""Pairs given to the tokenizer at once."""
_KEYS: Final = ("text", "text_pair")


@dataclass(frozen=True)
class TokenizedTexts:
    """`segments`: which text of its pair each token is of, as the model counts them; None for single texts, and for models that
    have none. `cut`: how many texts, or pairs, were."""

    tokens: TokenStore
    segments: TokenStore | None
    cut: Cut

    def batch(self, rows: npt.NDArray[np.int64], pad_id: int) -> Batch:
        """Of these texts, each tensor [B, T]."""
        import torch

        ids, mask = self.tokens.pad(rows, pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.segments is not None:
            arrays[SEGMENTS] = self.segments.pad(rows, 0)[0]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def text_columns(data: DataSection) -> list[str]:
    """One, or two of a pair."""
    return [data.text] if data.text_pair is None else [data.text, data.text_pair]


def tokenize_texts(text: TextModel, columns: Sequence[Iterable[str]]) -> TokenizedTexts:
    """One column of texts, or two of pairs, of which the longer text is cut first.

    Raises:
        RecipeError: the tokenizer takes no pairs.
    """
    if len(columns) == 1:
        tokens, cut = tokenize(text.tokenizer, columns[0], text.max_length)
        return TokenizedTexts(tokens, None, cut)
    firsts, seconds = (iter(column) for column in columns)
    with_segments = text.has_segments
    builder, segments, cut = TokenBuilder(), TokenBuilder(), Cut(text.max_length)
    while chunk := list(islice(firsts, _CHUNK)):
        pair = [chunk, list(islice(seconds, _CHUNK))]
        encoded = _encoded(text, pair, with_segments)
        builder.append(encoded["input_ids"])
        if with_segments:
            segments.append(encoded[SEGMENTS])
        # asked again for the full ones: what a fast tokenizer cuts off of a pair it gives several times over
        ids = {"input_ids": encoded["input_ids"]}
        cut += Cut.of(whole_lengths(ids, text.max_length, partial(_uncut, text.tokenizer, pair)), text.max_length)
    return TokenizedTexts(builder.store(), segments.store() if with_segments else None, cut)


def _encoded(text: TextModel, chunk: Sequence[list[str]], with_segments: bool) -> Any:
    try:
        return text.tokenizer(
            *chunk,
            truncation="longest_first",
            max_length=text.max_length,
            return_attention_mask=False,
            return_token_type_ids=with_segments,
        )
    except ValueError as error:  # ELMo's, which reads a text at a time
        raise RecipeError(
            [Fault("data.text_pair", f"is set, but the model's tokenizer says: {error}; take it out")]
        ) from error


def _uncut(tokenizer: Any, chunk: Sequence[list[str]], rows: Sequence[int]) -> Any:
    return tokenizer(*([each[row] for row in rows] for each in chunk), truncation=False, verbose=False)


def largest_texts(text: TextModel, samples: int, pairs: bool) -> Batch:
    """A batch of that many texts, or pairs, as long as the recipe allows."""
    import torch

    tokens = torch.zeros(samples, text.max_length, dtype=torch.int64)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {**batch, SEGMENTS: torch.zeros_like(tokens)} if pairs and text.has_segments else batch


def asked_columns(inputs: Sequence[Any], pairs: bool) -> list[list[str]]:
    """What `predict` was asked, by column. A pair is {text, text_pair} or a list of both, given as such or as JSON.

    Raises:
        DataError: an input that is no text, or no pair of them.
    """
    if pairs:
        found = [_pair(given, number) for number, given in enumerate(inputs)]
        return [[first for first, _ in found], [second for _, second in found]]
    for number, given in enumerate(inputs):
        if not isinstance(given, str):
            raise DataError(f"input {number} is {given!r}, not a text", hint="give one text per input")
    return [list(inputs)]


def _pair(given: Any, number: int) -> tuple[str, str]:
    try:
        pair = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError:
        pair = None
    both = [pair.get(key) for key in _KEYS] if isinstance(pair, Mapping) else pair
    if not isinstance(both, list | tuple) or len(both) != 2 or not all(isinstance(each, str) for each in both):
        raise DataError(
            f"input {number} is {str(given)[:80]!r}, no pair of texts",
            hint='give {"text": "...", "text_pair": "..."}, or a list of both',
        )
    return both[0], both[1]


def pair_of(first: Any, second: Any) -> dict[str, Any]:
    """A pair as `predict` takes it."""
    return dict(zip(_KEYS, (first, second), strict=True))
