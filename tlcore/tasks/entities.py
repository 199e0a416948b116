"""Entities in a row of tags, and F1 over them.

Owns reading spans from IOB2, IOE2 and IOBES tags and counting them. Called by `token_classification.py`.

The rule is conlleval's (Tjong Kim Sang and De Meulder 2003), which seqeval follows: a span is right when type and both ends are. It
stands here because seqeval has had no release since 2020 and no longer installs with present build tools.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[str, int, int]

_BEGINS = "BSU"
_ENDS = "ESL"


def spans(tags: Sequence[str]) -> set[Span]:
    """(type, first, last) of every entity; `O` is outside. A tag without a prefix is an entity for as long as it repeats."""
    found: set[Span] = set()
    start, before_kind, before_type = 0, "O", ""
    for at, tag in enumerate([*tags, "O"]):
        kind, type_ = _parts(tag)
        if before_kind != "O" and (kind == "O" or kind in _BEGINS or type_ != before_type or before_kind in _ENDS):
            found.add((before_type, start, at - 1))
            before_kind = "O"
        if kind != "O" and before_kind == "O":
            start = at
        before_kind, before_type = kind, type_
    return found


def _parts(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    kind, dash, type_ = tag.partition("-")
    return (kind, type_) if dash and len(kind) == 1 else ("I", tag)
