"""ELMo's words as characters.

Source: the character vocabulary of bilm-tf and AllenNLP's ELMo, from Peters et al. 2018 (arXiv:1802.05365): the bytes of a word in
UTF-8 between two marks, filled up to 50; every id is one more than bilm-tf's, since 0 is padding. Owns ids, and a tokenizer that
gives them in the form that tasks expect: one row of ids per text, `max_characters_per_token` of them for each word. Registered by
`__init__.py` as this family's AutoTokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import BatchEncoding, PreTrainedTokenizer

CHARACTERS = 262
"""Ids: 0 padding, 1 to 256 bytes, then the five marks."""
_BEGIN_SENTENCE, _END_SENTENCE, _BEGIN_WORD, _END_WORD, _FILL = range(257, CHARACTERS)
_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_MARKS = ("<s>", "</s>", "<w>", "</w>", "<fill>")


def word_characters(word: str, wide: int = 50) -> list[int]:
    """The `wide` ids of a word; bytes beyond those that fit between the marks are left out."""
    return _filled([byte + 1 for byte in word.encode("utf-8")[: wide - 2]], wide)


def boundary_words(wide: int = 50) -> tuple[list[int], list[int]]:
    """The words that stand before and after every sentence."""
    return _filled([_BEGIN_SENTENCE], wide), _filled([_END_SENTENCE], wide)


def _filled(inside: list[int], wide: int) -> list[int]:
    ids = [_BEGIN_WORD, *inside, _END_WORD]
    return ids + [_FILL] * (wide - len(ids))


class ElmoEncoding(BatchEncoding):
    """A batch whose ids can be asked for their words, as with transformers' fast tokenizers."""

    wide: int = 50

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The word of each id of one row; None on padding."""
        row = self["input_ids"][batch_index]
        return [at // self.wide if int(row[at // self.wide * self.wide]) else None for at in range(len(row))]


class ElmoTokenizer(PreTrainedTokenizer):
    """Splits at spaces and punctuation; there is no vocabulary of words.

    `model_max_length` and `max_length` count words, the rows of ids are `max_characters_per_token` times as long.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, max_characters_per_token: int = 50, pad_token: str = "<pad>", **kwargs: Any) -> None:
        self.max_characters_per_token = max_characters_per_token
        self._ids = {pad_token: 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
        self._ids |= {mark: at for at, mark in enumerate(_MARKS, start=_BEGIN_SENTENCE)}
        super().__init__(pad_token=pad_token, max_characters_per_token=max_characters_per_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return CHARACTERS

    def get_vocab(self) -> dict[str, int]:
        """Ids by name."""
        return dict(self._ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing to save: the vocabulary is the same for all."""
        return ()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        names = list(self._ids)
        return [
            names[at] for word in _WORDS.findall(text) for at in word_characters(word, self.max_characters_per_token)
        ]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._ids)[index]

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        text_pair: None = None,
        *,
        is_split_into_words: bool = False,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = None,
        **_: Any,
    ) -> ElmoEncoding:
        """Rows of ids, one per text; of a single text, the row itself, unless tensors are asked for. A text without a word is
        one empty word.

        Args:
            text: a text or several; with `is_split_into_words` the words of one text, or of several.
            max_length: words to keep where `truncation` is set, words to pad to with `padding="max_length"`.

        Raises:
            ValueError: a pair of texts.
        """
        if text_pair is not None:
            raise ValueError("ELMo reads one text at a time; it takes no pairs of texts")
        single = isinstance(text, str) or (is_split_into_words and all(isinstance(word, str) for word in text))
        texts: Any = [text] if single else text
        limit = max_length or self.model_max_length
        rows = [self._row(each, is_split_into_words, limit if truncation else None) for each in texts]
        if padding:
            longest = limit * self.max_characters_per_token if padding == "max_length" else max(map(len, rows))
            rows = [row + [0] * (longest - len(row)) for row in rows]
        data: dict[str, Any] = {"input_ids": rows}
        if return_attention_mask:
            data["attention_mask"] = [[int(each > 0) for each in row] for row in rows]
        if single and return_tensors is None:
            data = {name: value[0] for name, value in data.items()}
        encoding = ElmoEncoding(data, tensor_type=return_tensors)
        encoding.wide = self.max_characters_per_token
        return encoding

    def _row(self, text: Any, split: bool, words: int | None) -> list[int]:
        found = (list(text) if split else _WORDS.findall(text)) or [""]
        return [at for word in found[:words] for at in word_characters(word, self.max_characters_per_token)]
