"""Masked language modelling: which words are hidden, what a sample weighs, and long texts in pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_text_generation import task_of

from tlcore.tasks.base import IGNORED

pytestmark = pytest.mark.unit


def test_hidden_words_are_drawn_anew_in_training_and_fixed_in_evaluations(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/masked-language-modeling")
    task.load_data()
    torch.manual_seed(1)
    one, other = task.collate("train", range(20)), task.collate("train", range(20))
    assert not torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(
        task.collate("validation", [1, 0])["labels"], task.collate("validation", [1, 0])["labels"]
    )
    together, alone = task.collate("validation", [0, 1]), task.collate("validation", [1])
    width = alone["labels"].shape[1]
    for part in ("labels", "input_ids"):
        assert torch.equal(together[part][1, :width], alone[part][0]), "whatever else is in the batch"
    told = (one["labels"] != IGNORED).sum(dim=1)
    assert (told >= 1).all()
    special = torch.isin(one["labels"], torch.tensor([0, 1, 2, 3, 4]))
    assert not special.any()


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_a_sample_weighs_the_words_that_are_hidden_in_it(tmp_path: Path, share: float) -> None:
    """Known before they are drawn, so that the loss is the mean over the hidden words of the global batch."""
    task = task_of(tmp_path, "bert/masked-language-modeling", mask_probability=share)
    task.load_data()
    weights = task.weights("train")
    assert weights is not None and len(weights) == len(task.lengths("train"))
    for _ in range(3):
        told = (task.collate("train", range(20))["labels"] != IGNORED).sum(dim=1)
        assert told.tolist() == weights[:20].tolist()
    words = task.lengths("train") - 2
    assert weights.tolist() == [max(1, round(share * word)) for word in words.tolist()]


def test_micro_batches_by_weight_give_the_loss_of_all_hidden_words(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert/masked-language-modeling", mask_probability=0.5)
    task.load_data(["validation"])
    model = task.build_model(from_scratch=False).eval()
    rows = range(len(task.lengths("validation")))
    weights = task.weights("validation")
    assert weights is not None
    with torch.no_grad():
        whole = task.loss(model, task.collate("validation", rows)).item()
        alone = [task.loss(model, task.collate("validation", [row])).item() for row in rows]
        filler = task.loss(model, task.collate("validation", [])).item()
    counts = task.metrics()
    counts.update(model, task.collate("validation", rows))
    assert whole == pytest.approx(np.average(alone, weights=weights), rel=1e-5)
    assert whole == pytest.approx(counts.compute()["loss"], rel=1e-5)
    assert filler == 0


def test_long_texts_are_learned_to_their_end_in_pieces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["good", "bad", "film", "a", "the", "very", "not"] * 3)
    rows = [{"text": long}, *({"text": word} for word in ("slow", "fine", "is", "was", "long", "dull", "kind"))]
    train = tmp_path / "own.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: Any = task_of(
        tmp_path / "home", "bert/masked-language-modeling", train=str(train), max_length=8, validation=0.5
    )
    counts = task.load_data()
    read, tokenizer = task._splits["train"].read, task._text.tokenizer
    pieces = [read.store.tokens[a:b].tolist() for a, b in pairwise(read.store.offsets)]
    assert sum(counts.values()) == len(pieces) == 4 + 7
    assert all(len(ids) <= 8 and ids[0] == 2 and ids[-1] == 3 and len(ids) > 2 for ids in pieces)
    assert tokenizer.decode([token for ids in pieces[:4] for token in ids[1:-1]]) == long
    of_long = [sum(row < 4 for row in task._splits[split].rows.tolist()) for split in counts]
    assert sorted(of_long) == [0, 4], "a text's pieces are on one side"
    assert not caplog.records
