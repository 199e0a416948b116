"""The translation job's rules on made-up packages; the real ones need a package index."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jobs import prepare_translation as job
from tlcore.errors import DataError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit


def listing(root: Path, language: str, lines: dict[str, str]) -> None:
    name = f"asterisk-core-sounds-{language}"
    path = root / f"usr/share/doc/{name}/core-sounds-{language}.txt.gz"
    path.parent.mkdir(parents=True)
    text = "; Core Sounds\n\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())
    path.write_bytes(gzip.compress(text.encode()))


def test_prompts_are_those_that_are_said_in_both_languages(tmp_path: Path) -> None:
    english = {"b": "Thank you.", "a": "One", "beep": "[a tone]", "alone": "Alone.", "torn": "Please record."}
    french = {"a": "un", "b": "Merci  bien.", "beep": "[tone]", "torn": "Enregistrez.vm-review-nonurgent: Pour enlever"}
    listing(tmp_path, "en", english)
    listing(tmp_path, "fr", french)
    assert job.read_prompts(tmp_path) == [job.Pair("a", "One", "un"), job.Pair("b", "Thank you.", "Merci bien.")]


def test_captions_are_first_line_and_french_one(tmp_path: Path) -> None:
    for name, text in {
        "birds/owl": "An owl.\nde.utf8=Eine Eule.\nfr.utf8=Un hibou.\n",
        "birds/crow": "A crow.\nfr_CA.utf8=Une corneille.\n",
        "empty": "",
    }.items():
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert job.read_captions(tmp_path) == [job.Pair("birds/owl", "An owl.", "Un hibou.")]


def test_like_pairs_stand_once_and_long_ones_not_at_all() -> None:
    pairs = [job.Pair("1", "A cat!", "Un chat."), job.Pair("2", "a cat", "un chat"), job.Pair("3", "A cat", "Le chat")]
    pairs += [job.Pair("4", "word " * 41, "mot"), job.Pair("5", "...", "...")]
    assert [pair.id for pair in job.once(pairs)] == ["1", "3"]


def test_nothing_that_is_said_in_the_test_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TEST_PAIRS", 10)
    pairs = [job.Pair(f"{n}-{take}", f"text {n // 2}", f"mot {n % 7} {take}") for n in range(60) for take in range(2)]
    train, test = job.cut(pairs)
    assert 10 <= len(test) < 20 and train
    for language in (0, 1):
        assert not {pair.said[language] for pair in train} & {pair.said[language] for pair in test}
    assert {pair.id for pair in job.cut(pairs[::-1])[1]} == {pair.id for pair in test}
    with pytest.raises(DataError, match="there are 4 pairs, too few"):
        job.cut(pairs[:4])


def test_the_model_that_is_made_translates_once_it_is_trained(tmp_path: Path) -> None:
    pairs = [job.Pair(str(n), f"The letter {chr(97 + n)}.", f"La lettre {chr(97 + n)}.") for n in range(20)]
    for name, content in job.make_model(pairs).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Été 10 €?")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Été 10 €?"
    rows = [json.dumps({"text": pair.text, "target": pair.target}) for pair in pairs]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe = {
        "name": "small",
        "task": "translation",
        "model": {"source": str(tmp_path)},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "transfer": {"strategy": "scratch"},
        "storage": str(tmp_path / "store"),
    }
    task = build_task(recipe_from_dict(recipe))
    task.load_data()
    model = task.build_model(from_scratch=True)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    assert task.loss(model, task.collate("train", [0, 1])).item() > 0
