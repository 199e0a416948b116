"""Sounds that are longer than a model hears at once: overlapping windows, and one text from those of the windows.

Owns the cutting and the joining. Called by the transcribers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

OVERLAP: Final = 6
"""A window shares this part of its length with each neighbour: there it lacks the sound around, so its middle is believed."""


@dataclass(frozen=True)
class Window:
    """`start` to `end` of a sound are heard, of which `kept_start` to `kept_end` are believed; samples."""

    start: int
    end: int
    kept_start: int
    kept_end: int

    def steps_kept(self, steps: int) -> slice:
        """Which of the model's steps over the window are believed."""
        length = self.end - self.start
        return slice(
            round((self.kept_start - self.start) * steps / length), round((self.kept_end - self.start) * steps / length)
        )


def windows(samples: int, most: int) -> list[Window]:
    """Windows of `most` samples whose believed parts make up the sound without gap or overlap."""
    if samples <= most:
        return [Window(0, samples, 0, samples)]
    margin = most // (2 * OVERLAP)
    stride = most - 2 * margin
    made: list[Window] = []
    for start in range(0, samples - 2 * margin, stride):
        end = min(start + most, samples)
        made.append(Window(start, end, start + margin if start else 0, end - margin if end < samples else samples))
    return made


def join_texts(texts: Sequence[str], between: str = " ") -> str:
    """One text of those of overlapping windows: each goes on where the longest run of words that it shares with the end of the
    text so far has its middle.

    Args:
        between: what stands between two words; empty for a language that writes nothing there, whose signs are looked at alone.
    """
    least = 1 if between else 2  # one sign alone is shared by chance
    joined: list[str] = []
    for text in texts:
        words = text.split() if between else list(text.strip())
        end, head = joined[-len(words) :], words
        match = SequenceMatcher(None, _folded(end), _folded(head), autojunk=False).find_longest_match()
        # A run in the first half of the new text and the last half of the old one is the overlap; else there is none.
        if match.size >= least and match.b <= len(head) // 2 and match.a + match.size >= len(end) // 2:
            joined = joined[: len(joined) - len(end) + match.a]
            words = words[match.b :]
        joined += words
    return between.join(joined)


def _folded(words: Sequence[str]) -> list[str]:
    return [word.strip(".,;:!?\"'").casefold() for word in words]
