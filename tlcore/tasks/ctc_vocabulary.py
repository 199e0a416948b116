"""Texts as the signs of a CTC model, and back from its steps.

Owns the vocabulary: the source's own tokenizer, or one made of the characters of the training transcripts; and how a transcript is
brought into it. Called by `ctc_transcriber.py`.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLANK, UNKNOWN, BETWEEN_WORDS = "<pad>", "<unk>", "|"
SPECIAL: Final = (BLANK, UNKNOWN, BETWEEN_WORDS)
ASSUMED: Final = (*SPECIAL, *"abcdefghijklmnopqrstuvwxyz'")
"""Where no data is looked at."""
_WORD_PARTS: Final = "LNM"
"""Unicode's letters, numbers and marks."""
_INNER_APOSTROPHE: Final = re.compile(r"(?<=\w)[’ʼ＇](?=\w)")
"""What is written for `'` within a word; elsewhere it may be a quotation mark."""
_DIVIDING: Final = "/…"
"""Beside dashes and hyphens: signs that stand between two words without a blank."""


@dataclass(frozen=True)
class Word:
    """A word and the steps it was said at, `end` the one after the last; `signs` are its places in the text's signs."""

    text: str
    start: int
    end: int
    signs: tuple[int, ...] = ()


def find_vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """The signs of a vocabulary over every character of these texts, in the order of their numbers; the blank is the first."""
    characters = {character for text in texts for character in " ".join(text.split())}
    return (*SPECIAL, *sorted(characters - {" ", BETWEEN_WORDS}))


def make_tokenizer(signs: Sequence[str]) -> Any:
    """A Wav2Vec2CTCTokenizer of these signs, the first of which are `SPECIAL`."""
    from transformers import Wav2Vec2CTCTokenizer

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocab.json"
        path.write_text(json.dumps({sign: number for number, sign in enumerate(signs)}), "utf-8")
        return Wav2Vec2CTCTokenizer(
            str(path),
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN,
            pad_token=BLANK,
            word_delimiter_token=BETWEEN_WORDS,
        )


class CtcVocabulary:
    """A CTC model's tokenizer, whose pad token is the blank."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.blank = int(tokenizer.pad_token_id)
        self._signs = set(tokenizer.get_vocab())
        letters = [sign for sign in self._signs if len(sign) == 1 and sign.isalpha()]
        self._upper = bool(letters) and all(letter == letter.upper() for letter in letters)
        self._lower = bool(letters) and all(letter == letter.lower() for letter in letters)
        self._composed = not any(unicodedata.combining(sign) for sign in self._signs if len(sign) == 1)
        self._silent = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
        self.unknown = tokenizer.unk_token_id
        self._between = getattr(tokenizer, "word_delimiter_token_id", None)

    def plain(self, text: str) -> str:
        """The text as this vocabulary tells it: in its case, with its apostrophe, accents composed where it has no marks of their
        own, single spaces, without punctuation that it does not have; where a hyphen or a dash was, two words."""
        if self._composed:
            text = unicodedata.normalize("NFC", text)
        if self._upper != self._lower:
            text = text.upper() if self._upper else text.lower()
        if "'" in self._signs:
            text = _INNER_APOSTROPHE.sub(lambda found: found[0] if found[0] in self._signs else "'", text)
        return " ".join("".join(map(self._known, text)).split())

    def _known(self, character: str) -> str:
        """What stands for a character: a letter stays, which the vocabulary may know or not."""
        if character in self._signs or character.isspace():
            return character
        kind = unicodedata.category(character)
        if kind == "Pd" or character in _DIVIDING:
            return " "
        return character if kind[0] in _WORD_PARTS else ""

    def encode(self, text: str) -> list[int]:
        """Numbers of the plain text's signs; a letter that the vocabulary does not have is its unknown sign."""
        ids: list[int] = self.tokenizer(self.plain(text), add_special_tokens=False)["input_ids"]
        return ids

    def words(self, best: npt.NDArray[np.integer]) -> list[Word]:
        """The words that the likeliest sign of each step [S] spells: like signs that follow each other are one, blanks none."""
        runs, step = [], 0
        for sign, run in groupby(best.tolist()):
            length = len(list(run))
            if sign not in self._silent:
                runs.append((sign, step, step + length))
            step += length
        return self.join(*zip(*runs, strict=True)) if runs else []

    def join(self, signs: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[Word]:
        """Words of these signs, each of which was said from its start to its end."""
        tokens = self.tokenizer.convert_ids_to_tokens([int(sign) for sign in signs])
        words: list[Word] = []
        places = range(len(signs))
        for between, group in groupby(places, key=lambda place: self._is_between(int(signs[place]), tokens[place])):
            if not between:
                inside = tuple(group)
                text = "".join(tokens[place] for place in inside)
                words.append(Word(text, int(starts[inside[0]]), int(ends[inside[-1]]), inside))
        return words

    def _is_between(self, sign: int, token: str) -> bool:
        return sign == self._between or token == " "
