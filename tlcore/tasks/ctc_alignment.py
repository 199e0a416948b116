"""Which steps of a sound a known text was said at: CTC forced alignment, and how well each sign of it was said.

Owns the search and the scores; knows tensors and numbers, no text. Called by `ctc_transcriber.py`.

Sources: the trellis over signs with blanks between is that of Graves et al. 2006, "Connectionist Temporal Classification", section
4.1; taking its best path as an alignment is Kürzinger et al. 2020, "CTC-Segmentation of Large Corpora for German End-to-End Speech
Recognition". The score of a sign is the goodness of pronunciation of Witt and Young 2000, "Phone-level pronunciation scoring and
assessment for interactive language learning": by how much, per step, the sign is less likely than what is likeliest there.

Shapes: S steps of the model's output, V signs of its vocabulary, L signs of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """Of each sign of the text: `starts` [L] and `ends` [L], the first step it is said at and the one after its last; `scores` [L],
    0 to 1, 1 where nothing was likelier. `log_probability` is that of the whole path."""

    starts: Ints
    ends: Ints
    scores: Floats
    log_probability: float


def steps_needed(signs: npt.NDArray[np.integer]) -> int:
    """The fewest steps that this text can be said in: like signs that follow each other need a blank between."""
    return len(signs) + int((signs[1:] == signs[:-1]).sum())


def align(log_probabilities: npt.NDArray[np.floating], signs: npt.NDArray[np.integer], blank: int) -> Alignment:
    """The likeliest path of a text through a sound.

    Args:
        log_probabilities: [S, V].
        signs: [L], none of them the blank; at least one.

    Raises DataError: the text is empty or needs more steps than there are.
    """
    if len(signs) == 0:
        raise DataError("the text to align has nothing in it that the model knows", hint="give the words that are said")
    steps, needed = len(log_probabilities), steps_needed(signs)
    if needed > steps:
        raise DataError(
            f"the text needs {needed} steps of the model, and the sound has {steps}",
            hint="it is too long for this sound; check that they belong together",
        )
    told = log_probabilities.astype(np.float64)
    states = np.full(2 * len(signs) + 1, blank, dtype=np.int64)
    states[1::2] = signs
    path, log_probability = _best_path(told[:, states], _may_skip(states, blank))
    starts, ends = _spans(path, len(signs))
    lag = told[:, signs] - told.max(axis=1, keepdims=True)
    scores = np.exp([lag[start:end, sign].mean() for sign, (start, end) in enumerate(zip(starts, ends, strict=True))])
    return Alignment(starts, ends, scores, log_probability)


def _may_skip(states: Ints, blank: int) -> npt.NDArray[np.bool_]:
    """[2L + 1]: whether the state may follow the one before the last, past the blank between two different signs."""
    may = np.zeros(len(states), dtype=np.bool_)
    may[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    return may


def _best_path(told: Floats, may_skip: npt.NDArray[np.bool_]) -> tuple[Ints, float]:
    """Viterbi: the state [S] at each step, and the path's log probability. `told` [S, 2L + 1] is of each state."""
    steps, states = told.shape
    moves = np.zeros((steps, states), dtype=np.int8)
    best = np.full(states, -np.inf)
    best[:2] = told[0, :2]
    reached = np.full((3, states), -np.inf)
    for step in range(1, steps):
        reached[0] = best
        reached[1, 1:] = best[:-1]
        reached[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        moves[step] = reached.argmax(axis=0)
        best = reached.max(axis=0) + told[step]
    path = np.empty(steps, dtype=np.int64)
    path[-1] = states - 1 if best[-1] >= best[-2] else states - 2
    for step in range(steps - 1, 0, -1):
        path[step - 1] = path[step] - moves[step, path[step]]
    return path, float(max(best[-1], best[-2]))


def _spans(path: Ints, signs: int) -> tuple[Ints, Ints]:
    """First step of each sign and the one after its last; its state is at 2 * sign + 1, and states never go back."""
    wanted = 2 * np.arange(signs) + 1
    return np.searchsorted(path, wanted, side="left"), np.searchsorted(path, wanted, side="right")
