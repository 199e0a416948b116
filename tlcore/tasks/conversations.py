"""Conversations and prompts as tokens, with the assistant's words marked as what is learned.

Owns the forms that a conversation is given in, rendering by a chat template, and finding the assistant's words in it. Called by
`text_generation.py`.

The turns are found by rendering the conversation up to each of them: what a template adds between the prompt and the rendered turn
is the turn, with its closing token. That needs nothing of the template but that it appends; the `{% generation %}` marks that
transformers offers for this stand in few published templates. Some templates write an assistant's turn otherwise once others
follow (Qwen3 drops its thoughts, gpt-oss closes it with another token): then each turn is a text of its own, rendered as it was
when it was the last, which is also how the model will be asked for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any, Final, TypeAlias

from tlcore.data import read_text
from tlcore.errors import DataError, ModelError
from tlcore.tasks.tokens import encode_with_offsets

Turn: TypeAlias = "dict[str, Any]"
Encoded: TypeAlias = "tuple[list[int], list[bool]]"
"""Token ids of a text, and for each whether it is learned."""

ROLES: Final = ("system", "user", "assistant", "tool")
_SHAREGPT: Final = {"human": "user", "gpt": "assistant"}
"""Names that ShareGPT's files have for roles; they share the others."""

_CHATML: Final = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}"
    "{% for call in m['tool_calls'] or [] %}"
    "{{ '\\n<tool_call>\\n' + ((call['function'] or call) | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ END }}{% if m['role'] == 'assistant' %}{{ STOP }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def template_of(given: str, tokenizer: Any) -> str:
    """The Jinja template that `data.chat_template` names, for this tokenizer.

    In chatml the assistant's turn ends with the model's own end token, since that is what stops it: after `<|im_end|>` where the
    tokenizer has such a token, in place of it where it has not.

    Raises DataError: no such file.
    """
    if given != "chatml":
        return read_text(given)
    end, own = "<|im_end|>", tokenizer.eos_token
    if own is None or own == end:
        return _CHATML.replace("END", f"'{end}'").replace("STOP", "''")
    if end in tokenizer.get_vocab():
        return _CHATML.replace("END", f"'{end}'").replace("STOP", "eos_token")
    return _CHATML.replace("END", "eos_token").replace("STOP", "''")


def read_conversation(cell: Any, where: str) -> list[Turn]:
    """The turns of a conversation, each with role and content: of a list, or one written as JSON, in OpenAI's form or ShareGPT's.

    Raises:
        DataError: neither; a turn without role or content, or with an unknown role.
    """
    try:
        turns = json.loads(cell) if isinstance(cell, str) else _without_nulls(cell)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: got a text that is no JSON ({error})", hint=_FORM) from error
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f"{where}: got {str(turns)[:80]}, not a list of turns", hint=_FORM)
    return [_read_turn(turn, number, where) for number, turn in enumerate(turns)]


def asked_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns from the first that is not the assistant's: ShareGPT's dumps have conversations whose beginning is lost, and of an
    answer to nothing there is nothing to learn."""
    return list(dropwhile(lambda turn: turn["role"] == "assistant", turns))


def check_learnable(turns: Sequence[Turn], where: str) -> None:
    """Raise DataError where no turn is the assistant's, or none that follows another."""
    if not any(turn["role"] == "assistant" for turn in asked_turns(turns)):
        what = "no turn but the first" if turns and turns[0]["role"] == "assistant" else "no turn"
        raise DataError(f"{where}: {what} is the assistant's, so nothing is to be learned", hint="remove that row")


def encode_conversation(tokenizer: Any, messages: Any, where: str) -> list[Encoded]:
    """A whole conversation as one text, or as one for each assistant turn where the template writes earlier ones otherwise.

    Args:
        messages: as `read_conversation` takes them.
        where: the row, for messages.

    Raises:
        DataError: as `read_conversation`; no assistant turn, or what the template refuses.
        ModelError: there is no chat template, or one that does not append the answer to the question, or the tokenizer does not
            tell characters (`encode_with_offsets`).
    """
    given = read_conversation(messages, where)
    check_learnable(given, where)
    turns = asked_turns(given)
    whole = _render(tokenizer, turns, where)
    ends = [at + 1 for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    rendered = [_render_last(tokenizer, turns[:end], where) for end in ends]
    if all(whole.startswith(text) for text, _ in rendered):
        return [_encode(tokenizer, whole, [(start, len(text)) for text, start in rendered])]
    return [_encode(tokenizer, text, [(start, len(text))]) for text, start in rendered]


def encode_prompt(tokenizer: Any, messages: Any, where: str) -> list[int]:
    """Token ids of a conversation that the assistant is to go on with. Raises as `encode_conversation`."""
    text = _render(tokenizer, asked_turns(read_conversation(messages, where)), where, prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_question(tokenizer: Any, prompt: str, where: str) -> list[int]:
    """Token ids of a prompt that is to be answered: as a user's turn, or with a newline behind it where there is no template."""
    if tokenizer.chat_template is not None:
        return encode_prompt(tokenizer, [{"role": "user", "content": prompt}], where)
    ids: list[int] = tokenizer(f"{prompt}\n")["input_ids"]
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def join_input(prompt: str, about: str | None) -> str:
    """A prompt with what it is about below it, where there is anything: as it is learned, and as it is asked."""
    return f"{prompt}\n\n{about}" if about else prompt


def encode_pair(tokenizer: Any, prompt: str, target: str, where: str) -> list[Encoded]:
    """A prompt and its answer, of which the answer is learned, with the token that ends it. Raises as `encode_conversation`."""
    if tokenizer.chat_template is not None:
        pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
        return encode_conversation(tokenizer, pair, where)
    asked, end = encode_question(tokenizer, prompt, where), tokenizer.eos_token_id
    # Tokens of their own, as the model meets them when it is asked.
    said = [*tokenizer(target, add_special_tokens=False)["input_ids"], *([] if end is None else [end])]
    return [([*asked, *said], [False] * len(asked) + [True] * len(said))]


_FORM: Final = (
    f"a conversation is a list of turns {{role, content}} or {{from, value}} with a role of {', '.join(ROLES)} (human, gpt) "
    "and a text; the assistant's may have tool_calls instead"
)


def _read_turn(given: Any, number: int, where: str) -> Turn:
    turn = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    if "role" not in turn and "from" in turn:
        name = turn.pop("from")
        turn = {"role": _SHAREGPT.get(str(name), name), "content": turn.pop("value", None), **turn}
    if turn.get("role") == "assistant" and turn.get("tool_calls"):
        turn = {**turn, "content": turn.get("content") or ""}
    if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise DataError(f"{where}: turn {number} is {str(given)[:80]}", hint=_FORM)
    return turn


def _without_nulls(value: Any) -> Any:
    """Without the keys that Arrow gives every turn, and every tool's arguments, because another one has them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def _render_last(tokenizer: Any, turns: Sequence[Turn], where: str) -> tuple[str, int]:
    """A conversation that ends with the assistant's turn, as text, and where in it that turn starts."""
    before = _render(tokenizer, turns[:-1], where, prompt=True)
    text = _render(tokenizer, turns, where)
    if not text.startswith(before):
        raise ModelError(
            f"{where}: the chat template rewrites earlier turns when an answer is added, so the assistant's cannot be found",
            hint="set data.chat_template to one that appends, such as chatml, or name another model.source",
        )
    return text, len(before)


def _encode(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
    encoded = encode_with_offsets(tokenizer, text, add_special_tokens=False)
    learned = [any(start < end and a <= start < b for a, b in spans) for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], learned


def _render(tokenizer: Any, turns: Sequence[Turn], where: str, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise ModelError(
            "the tokenizer of this model source has no chat template",
            hint="set data.chat_template to chatml or a file with a Jinja template, or name an instruction-tuned model.source",
        )
    try:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(
            f"{where}: the chat template refuses it: {error}",
            hint="see data.chat_template, or model.source's own template",
        ) from error
    return text
