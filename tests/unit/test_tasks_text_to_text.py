"""Produced text: scores against sacreBLEU and by hand, summed over uneven ranks; a decoder's input; weights; languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import transformers
from test_tasks_text_generation import task_of

from tests.families import text
from tlcore.errors import DataError, ModelError, RecipeError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import build_task
from tlcore.tasks.base import IGNORED
from tlcore.tasks.generate import generate
from tlcore.tasks.produced_metrics import RougeScores, TranslationScores
from tlcore.tasks.text_to_text import _languages

pytestmark = pytest.mark.unit

PRODUCED = [
    "the cat sat on the mat",
    "a dog",
    "nothing like it at all",
    "il pleut beaucoup aujourd'hui",
    "the end is near now",
]
EXPECTED = [
    "the cat sat on a mat",
    "a big dog barked",
    "something else",
    "il pleut beaucoup aujourd'hui",
    "the end was near",
]


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4]], [[0], [1, 2, 3, 4], []]])
def test_translation_scores_are_sacrebleus_over_the_whole_corpus(shares: list[list[int]]) -> None:
    ranks = []
    for share in shares:
        scores = TranslationScores()
        if share:
            scores.update([PRODUCED[at] for at in share], [EXPECTED[at] for at in share])
        ranks.append(scores)
    summed = torch.stack([scores.sums() for scores in ranks]).sum(dim=0)
    for scores in ranks:
        scores.load(summed)
        found = scores.compute()
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PRODUCED, [EXPECTED]).score, rel=1e-4)
        assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PRODUCED, [EXPECTED]).score, rel=1e-4)


def test_rouge_by_hand_and_in_any_script() -> None:
    scores = RougeScores()
    scores.update(["кот сидит", "a b c"], ["кот спит", "a b c"])
    found = scores.compute()
    assert found["rouge1"] == pytest.approx((0.5 + 1) / 2)
    assert found["rouge2"] == pytest.approx((0 + 1) / 2)


def test_the_decoder_is_given_the_target_one_later(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bart/summarization")
    batch = task.collate("train", [0, 1, 2])
    model = task.build_model(from_scratch=False).eval()
    logits, labels = task._told(model, batch)  # type: ignore[attr-defined]
    with torch.no_grad():
        own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    told = batch["labels"] != IGNORED
    torch.testing.assert_close(logits, own.logits[told])
    assert torch.equal(labels, batch["labels"][told])
    assert task.loss(model, batch).item() == pytest.approx(own.loss.item(), rel=1e-5)
    assert task.weights("train")[:3].sum() == told.sum().item()
    filler = task.collate("train", [])
    assert (filler["labels"] == IGNORED).all()
    assert task.loss(model, filler).item() == 0.0


def test_metrics_count_samples_and_no_filler(tmp_path: Path) -> None:
    task = task_of(tmp_path, "t5/summarization")
    task.load_data()
    model = task.build_model(from_scratch=False).eval()
    counted, padded = task.metrics(), task.metrics()
    for metrics in (counted, padded):
        metrics.update(model, task.collate("validation", [0, 1, 2]))
    padded.update(model, task.collate("validation", []))
    for metrics in (counted, padded):
        metrics.merge(lambda sums: sums)
    assert counted.compute() == padded.compute()
    with pytest.raises(DataError, match="no text was evaluated"):
        task.metrics().compute()


def test_a_prefix_stands_before_each_text(tmp_path: Path) -> None:
    plain, said = (
        task_of(tmp_path / name, "t5/summarization", prefix=prefix) for name, prefix in (("a", ""), ("b", "the "))
    )
    assert (said.lengths("train") - plain.lengths("train")).tolist() == [1] * len(plain.lengths("train"))


def test_a_model_without_a_first_token_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "t5/summarization")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"decoder_start_token_id": 0', '"decoder_start_token_id": null'))
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        task.build_model(from_scratch=False)


SENTENCES = [{"text": "a good film", "target": "le film"}, {"text": "a film", "target": "film a"}] * 4


def save_nllb(home: Path) -> Any:
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"▁agodfilme"])}
    return transformers.NllbTokenizer(vocab=vocabulary, merges=[])


def save_mbart(home: Path) -> Any:
    pieces = [*((each, 0.0) for each in ("<s>", "<pad>", "</s>", "<unk>")), *((each, -1.0) for each in "▁agodfilme")]
    codes = transformers.models.mbart.tokenization_mbart.FAIRSEQ_LANGUAGE_CODES
    return transformers.MBartTokenizer(vocab=[*pieces, *((code, 0.0) for code in codes), ("<mask>", 0.0)])


def save_m2m100(home: Path) -> Any:
    import sentencepiece

    (home / "words.txt").write_text("a good film\nle film\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(home / "words.txt"),
        model_prefix=str(home / "words"),
        vocab_size=16,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(home / "words.model"))
    known = [pieces.id_to_piece(at) for at in range(3, len(pieces))]
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *known])}
    (home / "vocab.json").write_text(json.dumps(vocabulary))
    return transformers.M2M100Tokenizer(str(home / "vocab.json"), str(home / "words.model"))


def translator(home: Path, save: Any, start: int | None, **data: Any) -> Any:
    """A translator of many languages with a tokenizer that `save` gives."""
    home.mkdir(parents=True, exist_ok=True)
    tokenizer = save(home)
    tokenizer.save_pretrained(home)
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer) + 128, pad_token_id=1, eos_token_id=2, decoder_start_token_id=start, **text.BART
    )
    source = text.save(home, config, "M2M100ForConditionalGeneration")
    settings = {"train": text.write_rows(home / "rows.jsonl", SENTENCES), "validation": 0.25, "max_length": 32, **data}
    return build_task(
        recipe_from_dict(
            {
                "name": "languages",
                "task": "translation",
                "model": {"source": source},
                "data": settings,
                "storage": str(home / "store"),
            }
        )
    )


@pytest.mark.parametrize(
    ("save", "source", "target", "is_first"),
    [
        (save_nllb, "deu_Latn", "fra_Latn", True),
        (save_m2m100, "de", "fr", True),
        (save_mbart, "de_DE", "fr_XX", False),
    ],
)
def test_texts_of_a_model_of_many_languages_carry_theirs(
    tmp_path: Path, save: Any, source: str, target: str, is_first: bool
) -> None:
    task = translator(tmp_path, save, 2, source_language=source, target_language=target, max_target_length=8)
    task.load_data()
    tokenizer = task._processors()[0]
    of_source, of_target = _languages(tokenizer)[source], _languages(tokenizer)[target]
    batch = task.collate("train", [0])
    said, expected = (batch[name][0].tolist() for name in ("input_ids", "labels"))
    assert of_source in said and of_target not in said
    assert (expected[0] if is_first else expected[-1]) == of_target and of_source not in expected
    for from_scratch in (True, False):
        model = task.build_model(from_scratch=from_scratch).eval()
        settings = model.generation_config
        assert settings.decoder_start_token_id == (2 if is_first else of_target)
        assert settings.forced_bos_token_id == (of_target if is_first else None)
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    produced = generate(model, given, together=False, max_new_tokens=4)[0].tolist()
    assert produced[: 2 if is_first else 1] == ([2, of_target] if is_first else [of_target])
    [answer] = task.predict(model, ["a good film"])
    for words in (answer["prediction"], *task._expected(batch)):
        assert tokenizer.convert_ids_to_tokens(of_target) not in words
    task.export_extras(tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (exported.src_lang, exported.tgt_lang) == (source, target)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.decoder_start_token_id == (2 if is_first else of_target)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, ["source_language: is null, but model", "target_language: is null, but model"]),
        (
            {"source_language": "eng_Latn", "target_language": "french"},
            [
                "target_language: is 'french', which model .* does not know; give a code of its tokenizer, such as ace_Arab"
            ],
        ),
    ],
)
def test_languages_that_a_model_must_be_told_are_asked_for(
    tmp_path: Path, data: dict[str, str], said: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        translator(tmp_path, save_nllb, 2, **data).load_data()
    assert len(caught.value.faults) == len(said)
    for fault, words in zip(caught.value.faults, said, strict=True):
        assert re.match(f"data.{words}", str(fault)) and "ace_Arab, ace_Latn" in str(fault)


def test_a_model_of_two_languages_is_told_none(tmp_path: Path) -> None:
    task = task_of(tmp_path, "marian/translation", source_language="en", target_language="fr")
    with pytest.raises(RecipeError, match=r"data.source_language: is 'en', but model .* is told no languages; take"):
        task.build_model(from_scratch=True)
