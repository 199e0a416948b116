"""Conversations as tokens, with the assistant's turns marked as what is learned.

Owns rendering by the tokenizer's own chat template and finding the assistant's words in it. Called by `text_generation.py`.

The turns are found by rendering the conversation up to each of them: what a template adds between the prompt and the rendered turn
is the turn, with its closing token. That needs nothing of the template but that it appends; the `{% generation %}` marks that
transformers offers for this stand in few published templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlcore.errors import DataError, ModelError

ROLES = ("system", "user", "assistant", "tool")


def encode_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and for each whether it is learned.

    Args:
        where: the row, for messages.

    Raises:
        DataError: a turn without role or content, an unknown role, no assistant turn, or what the template refuses.
        ModelError: the tokenizer has no chat template, or one that rewrites earlier turns.
    """
    _check(messages, where)
    whole = _render(tokenizer, messages, where)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:at], where, prompt=True)
            after = _render(tokenizer, messages[: at + 1], where)
            if not (whole.startswith(after) and after.startswith(before)):
                raise ModelError(
                    f"{where}: the chat template of this tokenizer rewrites earlier turns, so the assistant's cannot be found",
                    hint="give conversations of one assistant turn each, or another model.source",
                )
            spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    learned = [any(start < end and a <= start < b for a, b in spans) for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], learned


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation that the assistant is to go on with."""
    text = _render(tokenizer, messages, "input", prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _check(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or not isinstance(message.get("content"), str):
            raise DataError(
                f"{where}: turn {number} is {str(message)[:80]}",
                hint=f"each turn is {{role, content}} with a role of {', '.join(ROLES)} and a text",
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where}: no turn is the assistant's, so nothing is to be learned", hint="remove that row")


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise ModelError(
            "the tokenizer of this model source has no chat template",
            hint="name an instruction-tuned source, or learn plain text: data.messages: null and data.text",
        )
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError) as error:
        raise DataError(
            f"{where}: the chat template refuses it: {error}", hint="see model.source's own template"
        ) from error
    return text
