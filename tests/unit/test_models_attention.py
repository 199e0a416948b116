"""`model.attention`: what a model is built with, and what its class has not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_text_model import save_tiny_bert, tiny_recipe

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, build_scratch, check_device, quiet, resolve_source
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit

REMOTE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel


class OwnConfig(PreTrainedConfig):
    model_type = "own-without-flags"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(4, 4)
        self.post_init()
"""


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that these tests run is not kept with the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr("sys.path", list(sys.path))


def built(directory: Path, attention: str, build: Any = build_pretrained) -> Any:
    source = replace(resolve_source(str(directory)), attention=attention)
    return build(transformers.AutoModelForSequenceClassification, source, source.load_config(num_labels=2), 0)


@pytest.mark.parametrize("build", [build_pretrained, build_scratch])
def test_a_model_has_the_attention_that_is_wanted(tmp_path: Path, build: Any) -> None:
    save_tiny_bert(tmp_path)
    for wanted, has in {"auto": "sdpa", "sdpa": "sdpa", "eager": "eager"}.items():
        assert built(tmp_path, wanted, build).config._attn_implementation == has


def test_a_recipe_says_it(tmp_path: Path) -> None:
    model: Any = build_task(tiny_recipe(tmp_path, model__attention="eager")).build_model(from_scratch=False)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("build", [build_pretrained, build_scratch])
def test_what_the_class_has_not_is_said(tmp_path: Path, build: Any) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with quiet():
        transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**sizes)).save_pretrained(tmp_path)
    assert built(tmp_path, "auto", build).config._attn_implementation == "eager"
    for wanted in ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"):
        with pytest.raises(ModelError, match=f"is {wanted}, but DebertaV2ForSequenceClassification, .* has eager\n"):
            built(tmp_path, wanted, build)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_without_a_gpu_its_kinds_build_the_same_network_and_do_not_train(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path)
    assert built(tmp_path, "flash_attention_2", build_scratch).config._attn_implementation == "sdpa"
    with pytest.raises(
        ModelError, match=r"model\.attention is flash_attention_2, which runs on GPUs, but this rank trains on cpu"
    ):
        check_device("flash_attention_2", "cpu")
    check_device("flash_attention_2", "cuda")
    check_device("auto", "cpu")


def test_a_class_that_ships_with_the_model_and_tells_nothing_is_built(tmp_path: Path) -> None:
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (tmp_path / "own.py").write_text(REMOTE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own-without-flags", "auto_map": classes}))
    source = resolve_source(str(tmp_path), trust_remote_code=True)
    for _ in range(2):  # the second time, transformers knows the class
        model = build_scratch(transformers.AutoModelForSequenceClassification, source, source.load_config(), 0)
        assert type(model).__name__ == "OwnModel"
    with pytest.raises(ModelError, match="cannot build AutoModelForSequenceClassification: OwnModel does not support"):
        asked = replace(source, attention="sdpa")
        build_scratch(transformers.AutoModelForSequenceClassification, asked, source.load_config(), 0)
