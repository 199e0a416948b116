"""Words with their times as captions: which of them are shown together, and the two formats of files that players read.

Owns cutting words into captions and writing them as SubRip (`.srt`) or WebVTT (W3C Candidate Recommendation of 4 April 2019).
Called by the command `caption`.

The bounds are broadcasters' own (Netflix's Timed Text Style Guide, English): two lines of 42 characters, 5/6 to 7 seconds. A
caption ends where a sentence does, or where nobody speaks for a while, before it is full.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

LINE_CHARACTERS: Final = 42
MOST_CHARACTERS: Final = 2 * LINE_CHARACTERS
LEAST_S, MOST_S = 5 / 6, 7.0
PAUSE_S: Final = 0.8
VTT_HEAD: Final = "WEBVTT\n\n"
_ENDS: Final = (".", "?", "!", "…", "。", "？", "！")


@dataclass(frozen=True)
class Caption:
    """Shown from `start_s` to `end_s`; `text` may have two lines."""

    start_s: float
    end_s: float
    text: str


def captions(words: Sequence[Mapping[str, Any]], between: str = " ", until_s: float = float("inf")) -> list[Caption]:
    """The captions of words `{word, start_s, end_s}` in order; none overlap.

    Args:
        between: what is written between two words.
        until_s: when others may follow, so that none stays longer.
    """
    groups = list(_groups(words, between))
    starts = [*(group[0]["start_s"] for group in groups), until_s]
    made = []
    for group, (start, next_start) in zip(groups, pairwise(starts), strict=True):
        end = max(group[-1]["end_s"], min(start + LEAST_S, next_start))
        made.append(Caption(start, min(end, next_start), _lines(between.join(word["word"] for word in group))))
    return made


def _groups(words: Sequence[Mapping[str, Any]], between: str) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for word in words:
        if group and _is_full(group, word, between):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _is_full(group: Sequence[Mapping[str, Any]], word: Mapping[str, Any], between: str) -> bool:
    characters = sum(len(each["word"]) + len(between) for each in group) + len(word["word"])
    return (
        characters > MOST_CHARACTERS
        or word["end_s"] - group[0]["start_s"] > MOST_S
        or word["start_s"] - group[-1]["end_s"] > PAUSE_S
        or group[-1]["word"].endswith(_ENDS)
        or len(textwrap.wrap(between.join(each["word"] for each in (*group, word)), LINE_CHARACTERS)) > 2
    )


def _lines(text: str) -> str:
    """In one line where it fits, else in two of about one length."""
    if len(text) <= LINE_CHARACTERS:
        return text
    widths = range(len(text) // 2, MOST_CHARACTERS)
    width = next((width for width in widths if len(textwrap.wrap(text, width)) <= 2), MOST_CHARACTERS)
    return "\n".join(textwrap.wrap(text, width))


def as_srt(shown: Iterable[Caption], first: int) -> Iterator[str]:
    """Blocks of a SubRip file, numbered from `first` on, each with the blank line that ends it."""
    for number, each in enumerate(shown, first):
        yield f"{number}\n{_clock(each.start_s, ',')} --> {_clock(each.end_s, ',')}\n{each.text}\n\n"


def as_vtt(shown: Iterable[Caption], first: int) -> Iterator[str]:
    """Blocks of a WebVTT file, likewise; it begins with `VTT_HEAD`."""
    for number, each in enumerate(shown, first):
        text = each.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{number}\n{_clock(each.start_s, '.')} --> {_clock(each.end_s, '.')}\n{text}\n\n"


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
