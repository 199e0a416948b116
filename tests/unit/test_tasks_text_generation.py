"""Language modelling and chat: what is learned of a text, weights, prompts, bad conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families import text
from tlcore.errors import DataError, ModelError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task, tokens
from tlcore.tasks.base import IGNORED
from tlcore.tasks.conversations import encode_conversation, encode_prompt, template_of

pytestmark = pytest.mark.unit

CHAT = "llama/text-generation"


def task_of(home: Path, name: str, **data: Any) -> Task:
    return task_on(home, text.MAKERS[name], name.partition("/")[2], **data)


def task_on(home: Path, maker: Callable[[Path], dict[str, Any]], kind: str, **data: Any) -> Task:
    home.mkdir(parents=True, exist_ok=True)
    made = maker(home)
    return build_task(
        recipe_from_dict(
            {
                "name": "words",
                "task": kind,
                "model": made["model"],
                "data": {**made["data"], **data},
                "storage": str(home / "store"),
            }
        )
    )


def words_of(tokenizer: Any, encoded: tuple[list[int], list[bool]]) -> tuple[list[str], list[str]]:
    """All words of a text, and the learned ones."""
    words = tokenizer.convert_ids_to_tokens(encoded[0])
    return words, [word for word, mark in zip(words, encoded[1], strict=True) if mark]


def learned_words(task: Any, split: str, index: int) -> tuple[list[str], list[str]]:
    batch = task.collate(split, [index])
    tokenizer = task._text.tokenizer
    marked = batch["labels"][0] != IGNORED
    return tuple(tokenizer.convert_ids_to_tokens(ids) for ids in (batch["input_ids"][0], batch["labels"][0][marked]))  # type: ignore[return-value]


def test_the_assistants_turns_alone_are_learned(tmp_path: Path) -> None:
    task = task_of(tmp_path, CHAT)
    batch = task.collate("train", [0])
    tokenizer = task._text.tokenizer  # type: ignore[attr-defined]
    learned = batch["labels"][0] != IGNORED
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0][learned])
    assert words[:2] in (["good", "good"], ["bad", "bad"])
    assert words[2:] == ["[SEP]"], "the end of the turn is learned as well: it is what stops the answer"
    everything = tokenizer.decode(batch["input_ids"][0])
    assert "user" in everything and "user" not in words


def test_two_turns_are_both_found(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = text.TEMPLATE
    turns = [("user", "film"), ("assistant", "good"), ("user", "plot"), ("assistant", "bad slow")]
    messages = [{"role": role, "content": content} for role, content in turns]
    [text_of_both] = encode_conversation(tokenizer, messages, "row 1")
    assert words_of(tokenizer, text_of_both)[1] == ["good", "[SEP]", "bad", "slow", "[SEP]"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "film"}], "row 3: no turn is the assistant's"),
        ([{"role": "assistant", "content": "good"}], "row 3: no turn but the first is the assistant's"),
        ([{"role": "boss", "content": "film"}], r"row 3: turn 0 is \{'role': 'boss'"),
        ([{"role": "assistant"}], r"row 3: turn 0 is \{'role': 'assistant'\}"),
        (["film"], "row 3: turn 0 is film"),
        ([{"from": "boss", "value": "film"}], r"row 3: turn 0 is \{'from': 'boss'"),
        ([{"role": "user", "content": "film"}, {"role": "assistant", "tool_calls": []}], "row 3: turn 1 is"),
        ("film", "row 3: got a text that is no JSON"),
        ({"role": "user", "content": "film"}, "row 3: got .*, not a list of turns"),
    ],
)
def test_bad_conversations_are_named(tmp_path: Path, messages: Any, said: str) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = text.TEMPLATE
    with pytest.raises(DataError, match=said):
        encode_conversation(tokenizer, messages, "row 3")


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = "{{ messages | length }} {{ messages[-1]['content'] }}"
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        encode_conversation(
            tokenizer, [{"role": "user", "content": "film"}, {"role": "assistant", "content": "good"}], "row 1"
        )


def test_no_chat_template_is_said(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="has no chat template") as caught:
        encode_conversation(tokenizer, TWO_TURNS, "row 1")
    assert caught.value.hint is not None and "data.chat_template" in caught.value.hint


THINKING = (
    "{% for m in messages %}[CLS] {{ m['role'] }} {% if m['role'] == 'assistant' and loop.last %}slow {% endif %}"
    "{{ m['content'] }}{% for call in m['tool_calls'] or [] %}{{ call['name'] }}{% endfor %} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant{% endif %}"
)
"""Like Qwen3's: only the last turn of all has its thoughts, and a turn that others follow has not."""
TWO_TURNS = [
    {"role": "user", "content": "film"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "plot"},
    {"role": "assistant", "content": "bad"},
]


def test_a_template_that_writes_earlier_turns_otherwise_gives_a_text_per_turn(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = THINKING
    first, second = (words_of(tokenizer, each) for each in encode_conversation(tokenizer, TWO_TURNS, "row 1"))
    assert first[1] == ["slow", "good", "[SEP]"] and first[0][-3:] == first[1]
    assert second[1] == ["slow", "bad", "[SEP]"] and second[0].count("slow") == 1
    assert "good" in second[0] and "plot" not in first[0]


@pytest.mark.parametrize("packing", [False, True])
def test_turns_of_one_conversation_are_held_out_together(tmp_path: Path, packing: bool) -> None:
    (tmp_path / "thinking.jinja").write_text(THINKING)
    words = [word for word in text.WORDS if word not in ("slow", "user", "assistant")]
    rows = [
        {"messages": [{"role": role, "content": word} for role in ("user", "assistant", "user", "assistant")]}
        for word in words
    ]
    task: Any = task_of(
        tmp_path / "home",
        CHAT,
        train=text.write_rows(tmp_path / "rows.jsonl", rows),
        packing=packing,
        validation=0.4,
        chat_template=str(tmp_path / "thinking.jinja"),
    )
    counts = task.load_data()
    seen = {
        split: [set(learned_words(task, split, at)[1]) - {"slow", "[SEP]"} for at in range(count)]
        for split, count in counts.items()
    }
    trained, judged = (set().union(*seen[split]) for split in ("train", "validation"))
    assert trained | judged == set(words) and not trained & judged
    assert len(judged) == round(0.4 * len(words))
    if not packing:
        assert sum(counts.values()) == 2 * len(words), "each turn is a sample"
    for split, count in counts.items():
        told = [(task.collate(split, [at])["labels"][:, 1:] != IGNORED).sum().item() for at in range(count)]
        assert told == task.weights(split).tolist() and len(task.lengths(split)) == count
        assert sum(told) == 3 * 2 * len(trained if split == "train" else judged)


def test_a_tool_call_without_content_is_learned(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = THINKING
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "plot"}]}
    [encoded] = encode_conversation(tokenizer, [TWO_TURNS[0], call], "row 1")
    assert words_of(tokenizer, encoded)[1] == ["slow", "plot", "[SEP]"]


def test_sharegpts_turns_are_read_as_openais(tmp_path: Path) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = text.TEMPLATE
    names = ("human", "gpt", "user", "assistant")
    theirs = [{"from": name, "value": turn["content"]} for name, turn in zip(names, TWO_TURNS, strict=True)]
    for given in (theirs, json.dumps(theirs)):
        assert encode_conversation(tokenizer, given, "row 1") == encode_conversation(tokenizer, TWO_TURNS, "row 1")


@pytest.mark.parametrize("template", [text.TEMPLATE, "{{ messages[0]['role'] }} " + text.TEMPLATE])
def test_what_the_assistant_says_before_anybody_asked_is_left_out(tmp_path: Path, template: str) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end="[SEP]")
    tokenizer.chat_template = template
    before = {"role": "assistant", "content": "slow"}
    assert encode_conversation(tokenizer, [before, *TWO_TURNS], "row 1") == encode_conversation(
        tokenizer, TWO_TURNS, "row 1"
    )
    asked = encode_prompt(tokenizer, TWO_TURNS[:3], "input 0")
    assert encode_prompt(tokenizer, [before, *TWO_TURNS[:3]], "input 0") == asked


LONG = " ".join(text.WORDS[:14])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("most", [5, 8])
def test_a_long_text_is_learned_to_its_end_in_pieces(tmp_path: Path, packing: bool, most: int) -> None:
    texts = [LONG, "is", f"{LONG} was", "long dull", "kind", "sharp user"]
    train = text.write_rows(tmp_path / "rows.jsonl", [{"text": each} for each in texts])
    task: Any = task_of(
        tmp_path / "home", "gpt2/text-generation", train=train, max_length=most, packing=packing, validation=0.5
    )
    counts, tokenizer = task.load_data(), task._text.tokenizer
    read = task._splits["train"].read
    every = [read.texts.tokens[a:b].tolist() for a, b in pairwise(read.texts.offsets)]
    used = sorted(read.grouped.tolist())
    pieces = [every[piece] for piece in used]
    expected = []
    for each in texts:
        ids = tokenizer(each)["input_ids"]
        cut = [ids[at : at + most] for at in range(0, len(ids), most)]
        expected += cut if len(cut[-1]) > 1 else cut[:-1]  # nothing stands before a last token alone
    assert pieces == expected and len(pieces) > len(texts)
    samples = [[read.texts_of(row) for row in task._splits[split].rows] for split in counts]
    rows = [{used.index(piece) for sample in side for piece in sample.tolist()} for side in samples]
    assert rows[0] | rows[1] == set(range(len(pieces))) and not rows[0] & rows[1]
    first = set(range(-(-16 // most) - (16 % most == 1)))
    assert first <= rows[0] or first <= rows[1], "the pieces of a text are on one side"
    for split, count in counts.items():
        told = [(task.collate(split, [at])["labels"][:, 1:] != IGNORED).sum().item() for at in range(count)]
        assert told == task.weights(split).tolist()
        assert max(task.lengths(split)) <= most
    assert sum(task.weights(split).sum() for split in counts) == sum(len(ids) - 1 for ids in pieces)


def test_test_data_of_one_long_text_hold_nothing_out(tmp_path: Path) -> None:
    test = text.write_rows(tmp_path / "test.jsonl", [{"text": LONG}])
    for name in ("gpt2/text-generation", "bert/masked-language-modeling"):
        task = task_of(tmp_path / name.partition("/")[0], name, test=test, max_length=8, validation=0.5)
        assert task.load_data(["test"])["test"] > 1


def test_texts_are_the_same_in_whatever_chunks_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = task_of(tmp_path, "gpt2/text-generation")
    whole = task._prepare(str(tmp_path / "rows.jsonl"), "train", None)
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 40)
    assert [len(chunk) for chunk in tokens.chunks(["a" * 50, "a", "a" * 39, "a"])] == [1, 2, 1]
    parts = task._prepare(str(tmp_path / "rows.jsonl"), "train", None)
    np.testing.assert_array_equal(whole.texts.tokens, parts.texts.tokens)
    np.testing.assert_array_equal(whole.texts.offsets, parts.texts.offsets)


def test_conversations_of_a_file_are_looked_at_before_workers_start(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "film"}, {"from": "gpt", "value": "good"}]}] * 3
    good = text.write_rows(tmp_path / "good.jsonl", rows)
    task_of(tmp_path / "good", CHAT, train=good, messages="conversations").check_data()
    rows = [*rows, {"conversations": [{"from": "human", "value": "film"}]}]
    bad = text.write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match="row 4: no turn is the assistant's"):
        task_of(tmp_path / "bad", CHAT, train=bad, messages="conversations").check_data()
    with pytest.raises(DataError, match=r"cannot read .*gone\.jinja"):
        task_of(tmp_path / "gone", CHAT, chat_template=str(tmp_path / "gone.jinja")).check_data()


ALPACA = [
    {"instruction": "film plot", "input": "", "output": "good"},
    {"instruction": "film", "input": "plot long", "output": "bad slow"},
    {"instruction": "long", "input": None, "output": "slow"},
    {"instruction": "plot", "output": "good good"},
]
COLUMNS = {"messages": None, "text": "instruction", "input": "input", "target": "output"}


def alpaca(tmp_path: Path, name: str, **data: Any) -> Any:
    place = tmp_path / "alpaca_data.json"
    place.write_text(json.dumps(ALPACA, indent=2))
    task = task_of(tmp_path / "home", name, train=str(place), **{**COLUMNS, "validation": str(tmp_path), **data})
    task.check_data()
    return task


def test_of_a_prompt_with_its_answer_the_answer_is_learned(tmp_path: Path) -> None:
    task = alpaca(tmp_path, "gpt2/text-generation", chat_template=None)
    task._text.tokenizer.chat_template = None
    found = [learned_words(task, "train", at) for at in range(4)]
    assert found[1] == (["[CLS]", "film", "plot", "long", "bad", "slow", "[SEP]"], ["bad", "slow", "[SEP]"])
    assert [learned for _, learned in found] == [[*row["output"].split(), "[SEP]"] for row in ALPACA]
    assert task._prompt("film\n\nplot long", 0) == task.collate("train", [1])["input_ids"][0, :4].tolist()
    assert task.examples("train", 2) == [("film plot", "good"), ("film\n\nplot long", "bad slow")]


@pytest.mark.parametrize("packing", [False, True])
def test_a_pair_is_written_by_the_chat_template(tmp_path: Path, packing: bool) -> None:
    task = alpaca(tmp_path, CHAT, packing=packing, max_length=32)
    turns = [{"role": "user", "content": "film\n\nplot long"}, {"role": "assistant", "content": "bad slow"}]
    [(ids, learned)] = encode_conversation(task._text.tokenizer, turns, "row")
    assert sum(learned) == 3
    read = task._splits["train"].read
    assert read.texts.tokens[read.texts.offsets[1] : read.texts.offsets[2]].tolist() == ids
    assert task._prompt("film\n\nplot long", 0) == ids[:-3]
    assert task.weights("train").sum() == sum(len(row["output"].split()) + 1 for row in ALPACA)
    assert len(task.lengths("train")) < 4 if packing else len(task.lengths("train")) == 4


def test_rows_of_which_nothing_is_left_to_learn_are_said(tmp_path: Path) -> None:
    task = alpaca(tmp_path, CHAT, max_length=3)
    with pytest.raises(DataError, match="nothing is left to be learned of any row, once each is cut at 3 tokens"):
        task.load_data(["train"])


@pytest.mark.parametrize(
    ("end", "known", "learned"),
    [("[SEP]", False, "good[SEP]\n"), ("[SEP]", True, "good<|im_end|>[SEP]\n"), (None, True, "good<|im_end|>\n")],
)
def test_chatml_ends_an_answer_with_what_stops_the_model(
    tmp_path: Path, end: str | None, known: bool, learned: str
) -> None:
    tokenizer = text.save_tokenizer(tmp_path, end=end)
    if known:
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template_of("chatml", tokenizer)
    before = tokenizer.apply_chat_template(TWO_TURNS[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(TWO_TURNS[:2], tokenize=False)
    assert whole == before + learned
    assert before.startswith("<|im_start|>user\nfilm") and before.endswith("<|im_start|>assistant\n")


def test_a_named_chat_template_is_exported_and_outlives_its_file(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "own.jinja"
    file.write_text(THINKING)
    task = task_of(tmp_path / "home", CHAT, chat_template=str(file))
    facts = task.facts()
    file.unlink()
    again = build_task(task._recipe, facts)  # type: ignore[attr-defined]
    (tmp_path / "out").mkdir()
    again.export_extras(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == THINKING
    assert task_of(tmp_path / "plain", CHAT).facts() == {}


def test_turns_are_not_found_with_a_slow_tokenizer_and_it_is_said() -> None:
    from transformers import CanineTokenizer

    tokenizer = CanineTokenizer()
    tokenizer.chat_template = text.TEMPLATE
    turns = text.conversation("good film")["messages"]
    with pytest.raises(ModelError, match="is a CanineTokenizer, which does not say which characters"):
        encode_conversation(tokenizer, turns, "rows, row 1")


@pytest.mark.parametrize(("name", "packing"), [(CHAT, False), (CHAT, True), ("gpt2/text-generation", True)])
def test_a_sample_weighs_what_its_batch_tells(tmp_path: Path, name: str, packing: bool) -> None:
    task = task_of(tmp_path, name, packing=packing)
    weights = task.weights("train")
    for index, weight in enumerate(weights):
        labels = task.collate("train", [index])["labels"]
        assert (labels[:, 1:] != IGNORED).sum().item() == weight
    assert len(weights) == len(task.lengths("train"))
    filler = task.collate("train", [])
    assert (filler["labels"] == IGNORED).all()


def test_the_mean_over_a_batch_is_that_over_its_parts_by_weight(tmp_path: Path) -> None:
    task = task_of(tmp_path, CHAT)
    model = task.build_model(from_scratch=False)
    weights = task.weights("train")
    whole = task.loss(model, task.collate("train", range(6))).item()
    parts = [
        (task.loss(model, task.collate("train", part)).item(), weights[list(part)].sum())
        for part in ([0], [1, 2], [3, 4, 5])
    ]
    assert sum(loss * weight for loss, weight in parts) / sum(w for _, w in parts) == pytest.approx(whole, rel=1e-5)


def test_an_answer_is_only_what_was_produced(tmp_path: Path) -> None:
    task = task_of(tmp_path, CHAT)
    model = task.build_model(from_scratch=False).eval()
    [answer] = task.predict(model, ["film"])
    assert "user" not in answer["prediction"].split()[:1]
    with pytest.raises(DataError, match="input 0 is '', not a text"):
        task_of(tmp_path / "plain", "gpt2/text-generation").predict(model, [""])


def test_a_prompt_longer_than_the_models_positions_is_gone_on_from_at_its_end(tmp_path: Path) -> None:
    task = task_of(tmp_path, "gpt2/text-generation", max_length=16)
    model = task.build_model(from_scratch=False).eval()
    positions = model.config.max_position_embeddings
    prompt, room = task._fitted(list(range(positions + 40)))  # type: ignore[attr-defined]
    assert prompt[-1] == positions + 39 and len(prompt) + room == positions and room == 16
    assert task._fitted([1, 2]) == ([1, 2], 16)  # type: ignore[attr-defined]
    [answer] = task.predict(model, ["good film " * positions])
    assert isinstance(answer["prediction"], str)


def test_what_a_source_says_of_producing_text_holds_for_a_model_built_without_its_weights(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    task = task_of(tmp_path, "gpt2/text-generation")
    GenerationConfig(eos_token_id=[3, 7], no_repeat_ngram_size=2).save_pretrained(tmp_path)
    for from_scratch in (False, True):
        settings: Any = task.build_model(from_scratch=from_scratch).generation_config
        assert (settings.eos_token_id, settings.no_repeat_ngram_size) == ([3, 7], 2)
