"""Produced text: scores against sacreBLEU and by hand, summed over uneven ranks; a decoder's input; weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import sacrebleu
import torch
from test_tasks_text_generation import task_of

from tlcore.errors import DataError, ModelError
from tlcore.tasks.base import IGNORED
from tlcore.tasks.produced_metrics import RougeScores, TranslationScores

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
    told = labels != IGNORED
    torch.testing.assert_close(logits[told], own.logits[told])
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
