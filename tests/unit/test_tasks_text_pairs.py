"""Pairs of texts (`data.text_pair`): tokens and segments as the model's tokenizer gives them, in training and in predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import WORDS, save_tiny_bert, snippets, tiny_recipe, write_rows

from tests.families import own
from tlcore.errors import DataError, RecipeError
from tlcore.recipe import apply_point
from tlcore.tasks import build_task
from tlcore.tasks.telling import _TOLD
from tlcore.train.inputs import read_inputs
from tlcore.transfer.select import rank_sources

pytestmark = pytest.mark.unit

PAIRS = (("bad", "good film"), ("a very slow plot", "fine"), ("good", "the film not bad"))


def save_pair_bert(directory: Path, kinds: int = 2) -> None:
    """A tiny BERT with BERT's own tokenizer, which tells two texts apart, and `kinds` of segments in the model."""
    from transformers import AutoConfig, BertModel, BertTokenizer

    save_tiny_bert(directory)
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    BertTokenizer(vocab=vocabulary, mask_token="[UNK]", model_max_length=16).save_pretrained(directory)
    if kinds != 2:
        BertModel(AutoConfig.from_pretrained(directory, type_vocab_size=kinds)).save_pretrained(directory)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_pair_bert(tmp_path / "model")
    rows = [{**row, "other": snippets(40)[-1 - number]["text"]} for number, row in enumerate(snippets(40))]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(
        tmp_path / "pairs.jsonl",
        [{"text": first, "other": second, "label": "pos"} for first, second in PAIRS],
    )
    return tmp_path


def task_of(home: Path, **changes: Any) -> Any:
    given = {"data__test": str(home / "pairs.jsonl"), "data__text_pair": "other", "data__max_length": 12, **changes}
    return build_task(tiny_recipe(home, **given))


def plain(home: Path, pairs: Any = PAIRS, most: int = 12) -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    firsts, seconds = [list(each) for each in zip(*pairs, strict=True)]
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    encoded = tokenizer(firsts, seconds, truncation="longest_first", max_length=most, padding=True, return_tensors="pt")
    return dict(encoded)


def test_a_batch_of_pairs_is_what_the_models_own_tokenizer_gives(home: Path) -> None:
    task = task_of(home)
    batch, expected = task.collate("test", [0, 1, 2]), plain(home)
    assert batch.keys() == {*expected, "labels"}
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert batch["token_type_ids"].sum().item() == 3 + 2 + 5
    assert task.lengths("test").tolist() == expected["attention_mask"].sum(dim=1).tolist()
    model = task.build_model(from_scratch=False).eval()
    assert task.loss(model, batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)
    unsegmented = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
    assert task.loss(model, unsegmented).item() != task.loss(model, batch).item()
    largest = task.largest_batch(2)
    assert largest.keys() == batch.keys() and largest["token_type_ids"].shape == (2, 12)


def test_the_longer_text_of_a_pair_is_cut_and_that_is_said(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    _TOLD.clear()
    pairs = (("bad", "good film a the very not plot"), ("good film a the very", "bad"), ("bad", "good"))
    rows = [{"text": first, "other": second, "label": "pos"} for first, second in pairs]
    place = str(write_rows(home / "long.jsonl", rows))
    batch = task_of(home, data__test=place, data__max_length=6).collate("test", [0, 1, 2])
    expected = plain(home, pairs, 6)
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert [record.getMessage() for record in caplog.records if place in record.getMessage()] == [
        f"2 of 3 pairs of texts of {place} are longer than data.max_length=6 tokens and were cut (longest has 11)"
    ]


def test_a_model_of_one_kind_of_segment_gets_none(home: Path) -> None:
    save_pair_bert(home / "model", kinds=1)
    task = task_of(home)
    batch = task.collate("test", [0, 1])
    assert batch.keys() == {"input_ids", "attention_mask", "labels"} == task.largest_batch(2).keys()
    assert task.loss(task.build_model(from_scratch=False).eval(), batch).isfinite()


def test_texts_alone_and_pairs_of_them_do_not_share_what_was_read(home: Path) -> None:
    alone, pair, turned = (
        task_of(home, data__text_pair=None),
        task_of(home),
        task_of(home, data__text="other", data__text_pair="text"),
    )
    ids = [task.collate("test", [0])["input_ids"].tolist() for task in (alone, pair, turned)]
    assert ids == [[[2, 5, 3]], [[2, 5, 3, 4, 6, 3]], [[2, 4, 6, 3, 5, 3]]]


def test_a_pair_is_asked_as_an_object_a_list_or_as_json_of_either(home: Path) -> None:
    task = task_of(home)
    model = task.build_model(from_scratch=False).eval()
    first, second = PAIRS[1]
    named = {"text": first, "text_pair": second}
    answers = task.predict(model, [named, [first, second], json.dumps(named), json.dumps([first, second])])
    probabilities = model(**plain(home, [PAIRS[1]])).logits.softmax(-1)[0].tolist()
    for answer in answers:
        assert list(answer["scores"].values()) == pytest.approx(probabilities, abs=1e-6)
    for wrong in ("good film", 7, ["a"], {"text": "a"}, {"text": "a", "text_pair": 3}, '["a", "b", "c"]'):
        with pytest.raises(DataError, match=r"input 1 is .*, no pair of texts") as raised:
            task.predict(model, [named, wrong])
        assert "or a list of both" in raised.value.hint
    with pytest.raises(DataError, match=r"input 0 is .*, not a text"):
        task_of(home, data__text_pair=None).predict(model, [named])


def test_rows_of_a_file_and_examples_are_pairs_as_predict_takes_them(home: Path) -> None:
    task = task_of(home)
    recipe = tiny_recipe(home, data__text_pair="other")
    asked = list(read_inputs(recipe, str(home / "pairs.jsonl")))
    assert [each.given for each in asked] == [{"text": a, "text_pair": b} for a, b in PAIRS]
    assert asked[0].columns == {"text": "bad", "other": "good film"}
    assert task.examples("test", 2) == [({"text": a, "text_pair": b}, "pos") for a, b in PAIRS[:2]]
    model = task.build_model(from_scratch=False).eval()
    assert len(task.predict(model, [each.given for each in asked])) == 3


def test_a_missing_or_empty_second_text_is_found_before_workers_start(home: Path) -> None:
    task_of(home).check_data()
    (home / "gaps.csv").write_text("text,other,label\nbad,good,pos\nbad,,neg\n")
    with pytest.raises(DataError, match=r"gaps\.csv: column 'other' is empty in 1 of 2 rows, first in row 2"):
        task_of(home, data__train=str(home / "gaps.csv")).check_data()
    with pytest.raises(DataError, match="has no column 'others'; did you mean 'other'"):
        task_of(home, data__text_pair="others").check_data()
    with pytest.raises(RecipeError, match=r"data\.text_pair: got 'text', the same column as data\.text"):
        task_of(home, data__text_pair="text")


def test_sources_are_ranked_on_pairs(home: Path) -> None:
    recipe = tiny_recipe(home, data__text_pair="other", data__max_length=12)
    save_pair_bert(home / "other", kinds=1)
    found = rank_sources(
        recipe, [apply_point(recipe, {"model.source": str(home / each)}) for each in ("model", "other")], 99
    )
    assert sorted(each.rank or 0 for each in found) == [1, 2], [each.error for each in found]


def test_a_tokenizer_without_pairs_says_which_setting(home: Path) -> None:
    sections = own.MAKERS["elmo/text-classification"](home)
    task = task_of(home, model__source=sections["model"]["source"])
    with pytest.raises(RecipeError, match=r"data\.text_pair: is set, but .* takes no pairs of texts; take it out"):
        task.load_data(("test",))
