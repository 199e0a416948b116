"""Language modelling and chat: what is learned of a text, packing, weights, prompts, bad conversations."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import text
from tlcore.errors import DataError, ModelError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task
from tlcore.tasks.base import IGNORED
from tlcore.tasks.conversations import encode_conversation
from tlcore.tasks.packing import pack

pytestmark = pytest.mark.unit

CHAT = "llama/text-generation"


def task_of(home: Path, name: str, **data: Any) -> Task:
    home.mkdir(parents=True, exist_ok=True)
    made = text.MAKERS[name](home)
    return build_task(
        recipe_from_dict(
            {
                "name": "words",
                "task": name.partition("/")[2],
                "model": made["model"],
                "data": {**made["data"], **data},
                "storage": str(home / "store"),
            }
        )
    )


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
    ids, learned = encode_conversation(
        tokenizer, [{"role": role, "content": content} for role, content in turns], "row 1"
    )
    said = tokenizer.convert_ids_to_tokens([token for token, mark in zip(ids, learned, strict=True) if mark])
    assert said == ["good", "[SEP]", "bad", "slow", "[SEP]"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "film"}], "row 3: no turn is the assistant's"),
        ([{"role": "boss", "content": "film"}], r"row 3: turn 0 is \{'role': 'boss'"),
        ([{"role": "assistant"}], r"row 3: turn 0 is \{'role': 'assistant'\}"),
        (["film"], "row 3: turn 0 is film"),
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
    with pytest.raises(ModelError, match="has no chat template"):
        encode_conversation(tokenizer, [{"role": "assistant", "content": "good"}], "row 1")


def test_every_text_is_packed_once_and_no_group_is_too_long() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 500).astype(np.int32)
    groups = pack(lengths, 64)
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    assert max(int(lengths[group].sum()) for group in groups) <= 64
    assert len(groups) <= 1.05 * lengths.sum() / 64, "hardly any room is left"
    assert [group.tolist() for group in groups] == [group.tolist() for group in pack(lengths, 64)]


@pytest.mark.parametrize("name", ["llama/text-generation", "qwen3/text-generation", "gpt2/text-generation"])
def test_packed_texts_do_not_see_each_other(tmp_path: Path, name: str) -> None:
    packed = task_of(tmp_path / "packed", name, packing=True, validation=0.5)
    model = packed.build_model(from_scratch=False).eval()
    read = packed._splits["train"].read  # type: ignore[attr-defined]
    row = next(row for row in range(len(read)) if len(read.groups[row]) > 1)
    with torch.no_grad():
        ids, _, places = packed._sample(read, row)  # type: ignore[attr-defined]
        together = model(
            input_ids=torch.tensor(np.array([ids]), dtype=torch.int64),
            position_ids=torch.tensor(np.array([places])),
            use_cache=False,
        ).logits[0]
        starts = [*np.flatnonzero(places == 0).tolist(), len(ids)]
        for start, end in pairwise(starts):
            alone = model(
                input_ids=torch.tensor(np.array([ids[start:end]]), dtype=torch.int64), use_cache=False
            ).logits[0]
            torch.testing.assert_close(together[start:end], alone, rtol=1e-4, atol=1e-5)


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
