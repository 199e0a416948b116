"""Tokenized texts as two flat arrays, and batches of them.

Owns tokenizing, padding per batch, and what a model's tokenizer allows. Called by the text tasks. Flat arrays because lists of
lists of a million snippets cost 30 times their tokens, and a batch is then one masked copy. Texts are taken from their table block
by block, and the tokens of a large one lie on the node's disk, made once for all its processes (`data/on_node.py`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from tlcore.data import GrowingArray, arrays_on_node, block_done, content_stamp, is_held
from tlcore.errors import Fault, ModelError, RecipeError
from tlcore.tasks.telling import Cut, tell_once

if TYPE_CHECKING:
    import pyarrow as pa

    from tlcore.models import ModelSource

Arrays = TypeVar("Arrays")

CHUNK_TEXTS = 8192
"""Texts given to the tokenizer at once; its lists of a chunk are gone before the next."""
CHUNK_CHARACTERS = 4 << 20
"""Characters given to it at once: of long documents, 8,192 would fill the memory with its lists."""
_CELLS: Final = 1024

SEGMENTS: Final = "token_type_ids"
"""In a batch: which text of a pair each token is of."""
_IDS_ALONE: Final = {"return_attention_mask": False, "return_token_type_ids": False}


@dataclass(frozen=True)
class TokenStore:
    """`tokens` of all texts after one another (int32); text i is `tokens[offsets[i]:offsets[i + 1]]` (int64)."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens per text."""
        return np.diff(self.offsets).astype(np.int32)

    def pad(self, indices: npt.NDArray[np.int64], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids and attention mask, both [B, T] with T the longest of these texts; padding stands at the end."""
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        width = int((ends - starts).max())
        mask = np.arange(width) < (ends - starts)[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([self.tokens[start:end] for start, end in zip(starts, ends, strict=True)])
        return ids, mask.astype(np.int64)


class TokenBuilder:
    """Texts appended after one another, in memory or, of very many, on the node's disk."""

    def __init__(self) -> None:
        self._tokens = GrowingArray(np.int32)
        self._lengths = GrowingArray(np.int32)

    def append(self, texts: Sequence[Sequence[int]]) -> TokenStore:
        """Add texts, which are tokens already; these texts alone."""
        part = store_tokens(texts)
        self._tokens.append(part.tokens)
        self._lengths.append(part.lengths)
        block_done()
        return part

    def store(self) -> TokenStore:
        """All texts; none is appended after this."""
        return TokenStore(self._tokens.array(), _offsets(self._lengths.array()))


def tokenize(tokenizer: Any, texts: Iterable[str], max_length: int, as_target: bool = False) -> tuple[TokenStore, Cut]:
    """Tokenize with the model's special tokens, cutting at `max_length` tokens; `as_target` with the vocabulary of what is
    produced, where a tokenizer has two (Marian). And how many texts were cut."""
    given = "text_target" if as_target else "text"
    builder, cut = TokenBuilder(), Cut(max_length)
    for chunk in chunks(texts):
        encoded = tokenizer(**{given: chunk}, truncation=True, max_length=max_length, **_IDS_ALONE)
        builder.append(encoded["input_ids"])
        cut += Cut.of(whole_lengths(encoded, max_length, partial(_uncut, tokenizer, given, chunk)), max_length)
    return builder.store(), cut


def tokenize_in_pieces(
    tokenizer: Any, texts: Iterable[str], max_length: int
) -> Iterator[tuple[list[list[int]], npt.NDArray[np.int64]]]:
    """Every text whole, in pieces of at most `max_length` tokens, each with the model's special tokens around it; and which text
    each piece is of, ascending. Block by block."""
    first = 0
    for chunk in chunks(texts):
        pieces, of = _pieces(tokenizer, chunk, max_length)
        yield pieces, np.array(of, dtype=np.int64) + first
        first += len(chunk)


def prepared_texts(
    kind: type[Arrays], table: pa.Table, given: Sequence[object], place: str, tokenizer: Any, make: Callable[[], Arrays]
) -> Arrays:
    """What `make` makes of a table's texts: in this process, or of a large table once on the node, mapped.

    Args:
        kind: as `arrays_on_node` takes it.
        given: what it is made with, besides the table's content and the tokenizer.
        place: where the table is from.
    """
    if is_held(table):
        return make()
    return arrays_on_node(kind, [*content_stamp(place), *given, _digest(tokenizer)], place, make)


def cells(column: pa.ChunkedArray) -> Iterator[Any]:
    """The cells of a column in turn, few of them as Python objects at one time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), _CELLS):
            yield from chunk.slice(start, _CELLS).to_pylist()


def _digest(tokenizer: Any) -> str:
    """Of everything that a tokenizer is saved as, and of its class."""
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = path.read_bytes()
            if path.name == "tokenizer.json":
                # a fast one is saved with how it was called last
                facts = {**json.loads(content), "truncation": None, "padding": None}
                content = json.dumps(facts, sort_keys=True).encode()
            digest.update(path.name.encode() + content)
    return digest.hexdigest()


def _pieces(tokenizer: Any, texts: list[str], max_length: int) -> tuple[list[list[int]], list[int]]:
    if tokenizer.is_fast:
        encoded = tokenizer(
            texts, truncation=True, max_length=max_length, return_overflowing_tokens=True, verbose=False, **_IDS_ALONE
        )
        return encoded["input_ids"], encoded["overflow_to_sample_mapping"]
    # a slow one gives what it cut off of a text as one piece
    plain = tokenizer(texts, add_special_tokens=False, verbose=False, **_IDS_ALONE)["input_ids"]
    room = max_length - tokenizer.num_special_tokens_to_add()
    cut = [(ids[at : at + room], number) for number, ids in enumerate(plain) for at in range(0, max(len(ids), 1), room)]
    return [tokenizer.build_inputs_with_special_tokens(ids) for ids, _ in cut], [number for _, number in cut]


def encode_with_offsets(tokenizer: Any, *texts: Any, **settings: Any) -> Any:
    """What the tokenizer gives of texts, with the characters that each token is of (`offset_mapping`).

    Raises ModelError: it does not know them. Only those of the `tokenizers` library do; one in Python or of mistral-common leaves
    them out or refuses.
    """
    if not getattr(tokenizer, "is_fast", False):
        where = getattr(tokenizer, "name_or_path", "") or "this model source"
        raise ModelError(
            f"the tokenizer of {where} is a {type(tokenizer).__name__}, which does not say which characters each token is of, "
            "and learning from answers inside a text needs that",
            hint="name a source with a fast tokenizer (one that has a tokenizer.json)",
        )
    return tokenizer(*texts, return_offsets_mapping=True, **settings)


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in turn, as many at once as the tokenizer's lists of them may take memory."""
    some: list[str] = []
    characters = 0
    for text in texts:
        if some and (len(some) >= CHUNK_TEXTS or characters + len(text) > CHUNK_CHARACTERS):
            yield some
            some, characters = [], 0
        some.append(text)
        characters += len(text)
    if some:
        yield some


def whole_lengths(encoded: Any, max_length: int, uncut: Callable[[Sequence[int]], Any]) -> list[int]:
    """Tokens that each text has, or words of a tokenizer by characters, of which no more than `max_length` were kept.

    Args:
        encoded: what the tokenizer gave, cut.
        uncut: what it gives for these texts, by their numbers, without a limit; asked of a slow one, which keeps nothing of what
            it cut off.
    """
    if getattr(encoded, "encodings", None) is not None:
        return [len(each) + sum(map(_own_tokens, each.overflowing)) for each in encoded.encodings]
    wide = getattr(encoded, "wide", 1)
    lengths = [len(ids) // wide for ids in encoded["input_ids"]]
    full = [row for row, length in enumerate(lengths) if length >= max_length]
    if full:
        for row, ids in zip(full, uncut(full)["input_ids"], strict=True):
            lengths[row] = len(ids) // wide
    return lengths


def _uncut(tokenizer: Any, given: str, texts: Sequence[str], rows: Sequence[int]) -> Any:
    # not `verbose`: it warns of texts longer than the model takes, which is what is asked
    return tokenizer(**{given: [texts[row] for row in rows]}, truncation=False, verbose=False)


def _own_tokens(encoding: Any) -> int:
    """Without the special ones, which each piece of a cut text has anew."""
    return int(len(encoding) - sum(encoding.special_tokens_mask))


def store_tokens(texts: Sequence[Sequence[int]]) -> TokenStore:
    """Texts that are tokens already."""
    tokens = np.fromiter((token for ids in texts for token in ids), dtype=np.int32)
    return TokenStore(tokens, _offsets([len(ids) for ids in texts]))


def _offsets(lengths: Sequence[int] | npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class TextModel:
    """The tokenizer of a source, and how long a text it takes.

    Args:
        max_length: `data.max_length` of the recipe, tokens.
    """

    def __init__(self, source: ModelSource, max_length: int) -> None:
        self._source, self._wanted = source, max_length

    @cached_property
    def tokenizer(self) -> Any:
        """Raises ModelError."""
        return self._source.load_tokenizer()

    @property
    def pad_id(self) -> int:
        """Token that fills a text up."""
        pad: int = self.tokenizer.pad_token_id
        return pad

    @cached_property
    def max_length(self) -> int:
        """The recipe's, if the model has that many positions. Raises RecipeError."""
        most, named = _positions(self._source.load_config()), self.tokenizer.model_max_length
        if most is not None and self._wanted > most:
            text = f"is {self._wanted}, but model {self._source.name!r} takes at most {most} tokens"
            raise RecipeError([Fault("data.max_length", f"{text}; set it to {most} or less")])
        if self._wanted > named:  # T5's says 512, and its positions are relative; unknown is a huge number there
            has = "no limit of its own" if most is None else f"{most} positions"
            text = f"the tokenizer of model {self._source.name!r} names {named} tokens, but the model has {has}"
            tell_once(f"data.max_length={self._wanted}: {text}")
        return self._wanted

    @cached_property
    def has_segments(self) -> bool:
        """Whether the model learned to tell two texts apart; some tokenizers give segments to models that have one kind."""
        kinds = getattr(self.load_config(), "type_vocab_size", None) or 0
        return kinds > 1 and SEGMENTS in self.tokenizer.model_input_names

    def load_config(self, **changes: Any) -> Any:
        """The model's configuration with `changes` and the tokenizer's pad token. Raises ModelError."""
        config = self._source.load_config(**changes)
        config.pad_token_id = self.tokenizer.pad_token_id
        tokens = getattr(config, "vocab_size", None)
        if tokens is not None and len(self.tokenizer) > tokens:
            raise ModelError(
                f"model source {self._source.name!r}: its tokenizer has {len(self.tokenizer)} tokens, the model only {tokens}",
                hint="tokenizer and weights do not belong together",
            )
        return config


def _positions(config: Any) -> int | None:
    """How many tokens a model has positions for; None where they are relative, without a limit (XLNet's says -1)."""
    rows: int = getattr(config, "max_position_embeddings", None) or -1
    # RoBERTa and its kin number positions from 2 on: 514 rows, or 130 or 4098 or 8194, take two tokens less.
    return (rows - 2 if rows % 8 == 2 else rows) if rows > 0 else None
