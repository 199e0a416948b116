"""A picture, what is asked about it and the answer, as a vision-language model takes them.

Owns rendering by the processor's own chat template, finding the answer's tokens, and running the processor on a batch. Called by
`image_text_to_text.py`.

A processor puts as many tokens in a picture's place as the model sees of it, which differs by family, by the picture's size and by
settings; none of that is known here. The answer stands behind all pictures, so its tokens are the last ones, however many the
pictures became.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tlcore.errors import DataError, ModelError
from tlcore.tasks.tokens import encode_with_offsets

if TYPE_CHECKING:
    from torch import Tensor

    from tlcore.models import ModelSource


@dataclass(frozen=True)
class Asked:
    """`text` with the picture's mark in it, `tokens` of it with the picture as one, the last `learned` of which are the answer;
    `whole` tokens there were before it was cut."""

    text: str
    tokens: int
    learned: int
    whole: int


class PicturePrompts:
    """The processor of a source.

    Args:
        max_length: most tokens of question and answer together, the picture's own not counted.
    """

    def __init__(self, source: ModelSource, max_length: int) -> None:
        self._source, self._max_length = source, max_length

    @cached_property
    def processor(self) -> Any:
        """Raises ModelError: none, one without pictures or text, or without a chat template."""
        processor = self._source.load_preprocessor("AutoProcessor")
        if not all(hasattr(processor, part) for part in ("tokenizer", "image_processor")):
            raise ModelError(
                f"model source {self._source.name!r} has no processor of pictures and text together",
                hint="name a vision-language model, such as HuggingFaceTB/SmolVLM-256M-Instruct",
            )
        if not processor.chat_template:
            raise ModelError(
                f"model source {self._source.name!r} has no chat template, which says where the picture stands",
                hint="name an instruction-tuned source, or add chat_template.jinja to its directory",
            )
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        pad: int = self.processor.tokenizer.pad_token_id
        return pad

    def question(self, asked: str, where: str) -> str:
        """A question about a picture, up to where the answer begins.

        Args:
            where: the row or input, for messages.

        Raises:
            DataError: it holds the mark of a picture.
        """
        self._check_mark(asked, where)
        text: str = self.processor.apply_chat_template([_turn(asked)], tokenize=False, add_generation_prompt=True)
        return text

    def sample(self, asked: str, answer: str, where: str) -> Asked:
        """A question and its answer, which is cut where both are longer than `max_length`.

        Args:
            where: the row, for messages.

        Raises:
            DataError: the question alone is as long as that, or a text holds the mark of a picture.
            ModelError: the template does not put the answer behind the question, or the tokenizer does not tell characters.
        """
        self._check_mark(answer, where)
        before = self.question(asked, where)
        turns = [_turn(asked), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        whole: str = self.processor.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(before):
            raise ModelError(
                f"{where}: the chat template of this processor rewrites the question, so the answer cannot be found",
                hint="name another model.source, or correct its chat_template.jinja",
            )
        encoded = encode_with_offsets(self.processor.tokenizer, whole, add_special_tokens=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        asking = sum(end <= len(before) for end in ends)
        if asking >= self._max_length:
            raise DataError(
                f"{where}: the question alone has {asking} tokens", hint=f"raise data.max_length ({self._max_length})"
            )
        kept = ends[: self._max_length]
        return Asked(whole[: kept[-1]] if len(kept) < len(ends) else whole, len(kept), len(kept) - asking, len(ends))

    def _check_mark(self, text: str, where: str) -> None:
        mark = getattr(self.processor, "image_token", None)
        if mark and mark in text:
            raise DataError(f"{where}: a text holds {mark}, which stands for a picture", hint="take it out of the text")

    def batch(self, texts: Sequence[str], pictures: Sequence[Any]) -> dict[str, Tensor]:
        """What the model takes for these texts, one picture each: `input_ids` and `attention_mask` [B, T], padding at the end, and
        the pictures as its family has them.

        Args:
            texts: of `question` or `sample`.
            pictures: uint8 [3, h, w] or decoded ones.
        """
        made = self.processor(
            text=list(texts),
            images=[[picture] for picture in pictures],
            add_special_tokens=False,  # the template has written what begins and ends a text
            padding=True,
            return_tensors="pt",
        )
        return dict(made)


def _turn(asked: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
