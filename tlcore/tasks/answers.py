"""Answers that stand in a text: as data gives them, as places among tokens, and as what a model's scores point at.

Owns those three forms. Called by `question_answering.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_ANSWER: Final = 30
"""Tokens of an answer, at most, when the best span is looked for; BERT's published setting."""


def read_answers(cell: Any, context: str, where: str) -> list[tuple[str, int]]:
    """(text, first character) of each answer, checked against the text. Raises DataError."""
    answers = _pairs(cell)
    if answers is None:
        raise DataError(
            f"{where}: the answers are {str(cell)[:80]!r}",
            hint="give {text: [...], answer_start: [...]}, a place for each text; in a csv as JSON, with double quotes "
            "(json.dumps of each cell, before pandas writes it)",
        )
    for text, start in answers:
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            raise DataError(
                f"{where}: answer {text!r} does not stand at character {start} of the text, where there is {there!r}",
                hint="answer_start counts characters from 0",
            )
    return answers


def _pairs(cell: Any) -> list[tuple[str, int]] | None:
    """(text, first character) of each answer as they are written; None where they are not written as answers."""
    try:
        found = json.loads(cell) if isinstance(cell, str) else cell
    except json.JSONDecodeError:
        return None
    texts, starts = (found.get(name) if isinstance(found, Mapping) else None for name in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    whole = all(isinstance(text, str) for text in texts) and all(isinstance(start, int) for start in starts)
    return list(zip(texts, starts, strict=True)) if whole else None


def characters(encoded: Any, window: int) -> npt.NDArray[np.int32]:
    """[T, 2]: first and past-the-last character of each token in the text; -1 for tokens of the question and special ones."""
    of_text = np.array([part == 1 for part in encoded.sequence_ids(window)])
    return np.where(of_text[:, None], np.array(encoded["offset_mapping"][window], dtype=np.int32), np.int32(-1))


def token_span(place: npt.NDArray[np.int32], answers: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) where this window does not hold all of it."""
    if not answers:
        return 0, 0
    text, start = answers[0]
    first = np.flatnonzero((place[:, 0] >= 0) & (place[:, 0] <= start) & (place[:, 1] > start))
    last = np.flatnonzero((place[:, 0] >= 0) & (place[:, 0] < start + len(text)) & (place[:, 1] >= start + len(text)))
    return (int(first[0]), int(last[0])) if len(first) and len(last) else (0, 0)


def best_span(scores: Tensor, spans: Sequence[npt.NDArray[np.int32]], context: str, may_be_nothing: bool) -> str:
    """The text of the span with the highest start plus end score over all windows of a question.

    Args:
        scores: [W, T, 2].
        may_be_nothing: pointing at a window's first token with a higher score, in every window, says that there is no answer: the
            text is then empty.
    """
    best, answer, nothing = -np.inf, "", np.inf
    for window, place in enumerate(spans):
        start, end = scores[window, : len(place), 0].numpy(), scores[window, : len(place), 1].numpy()
        nothing = min(nothing, float(start[0] + end[0]))
        inside = np.flatnonzero(place[:, 0] >= 0)
        for first in inside[np.argsort(-start[inside])[:20]]:
            lasts = inside[(inside >= first) & (inside < first + LONGEST_ANSWER)]
            last = lasts[np.argmax(end[lasts])]
            if start[first] + end[last] > best:
                best, answer = float(start[first] + end[last]), context[place[first, 0] : place[last, 1]]
    return "" if may_be_nothing and best < nothing else answer
