"""Directories of our own families as model sources: found by their config.json alone, refused with their own words, and trained
by a task that knows nothing of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_text_model import tiny_recipe
from transformers import AutoConfig

from tlcore.errors import ModelError
from tlcore.models import resolve_source
from tlcore.models.families import is_own, register_families, register_for
from tlcore.models.families.elmo import ElmoConfig, ElmoModel
from tlcore.models.families.elmo_tokens import ElmoTokenizer
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit

TYPES = ["deepspeech", "deepspeech2", "efficientnet-lite", "elmo", "transfo-xl", "yolox"]


@pytest.mark.parametrize("name", TYPES)
def test_a_config_json_is_enough(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": f"tlcore-{name}"}))
    config = resolve_source(str(tmp_path)).load_config(num_labels=4)
    assert (config.model_type, config.num_labels) == (f"tlcore-{name}", 4)
    assert type(config).__module__.startswith("tlcore.models.families.")


def test_what_is_not_ours_is_left_to_transformers(tmp_path: Path) -> None:
    assert not any(map(is_own, ("bert", None, 3)))
    register_for(tmp_path)
    for text in ("no JSON", "[]", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(text)
        register_for(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "bert"
    register_families()
    register_families()


def test_a_bad_value_is_said_with_the_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "tlcore-deepspeech2", "cell": "lstm"}))
    with pytest.raises(ModelError, match=r"cannot read its config\.json: .*cell is 'lstm'; give one of rnn, gru"):
        resolve_source(str(tmp_path)).load_config()


def test_text_classification_trains_elmo_as_it_trains_bert(tmp_path: Path) -> None:
    """Words are cut at `data.max_length`, batches padded by whole words, and the head alone is new."""
    sizes = {"filters": [[1, 3], [2, 4]], "character_size": 4, "projection_size": 6, "lstm_size": 7}
    torch.manual_seed(0)
    ElmoModel(ElmoConfig(**sizes)).save_pretrained(tmp_path / "model")
    ElmoTokenizer().save_pretrained(tmp_path / "model")
    task = build_task(tiny_recipe(tmp_path, data__max_length=5))
    task.load_data()
    assert sorted(set(task.lengths("train").tolist())) == [50, 100, 150, 200, 250]
    model = task.build_model(from_scratch=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch, losses = task.collate("train", range(8)), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    answers = task.predict(model.eval(), ["a good film", "bad"])
    assert len(answers) == 2
